"""Starts the server as its users do, in processes of its own, on a free port of the loopback."""

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = ["[PAD]", "[UNK]", *(f"word{index}" for index in range(60))]
START_S = 120.0


def make_model_directory(directory: Path) -> Path:
    """What the null engine needs: a config and a tokenizer, no weights."""
    directory.mkdir()
    config = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": 4,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def write_config(path: Path, model_directory: Path, **sections: dict[str, Any]) -> Path:
    """YAML is a superset of JSON. `sections`: server, engine, limits."""
    model = {
        "name": "null",
        "source": {"path": str(model_directory)},
        # No warm-up: timing an engine of slow steps takes many of them.
        "engine": {"kind": "null", "warmup": False, **sections.get("engine", {})},
        "limits": {"max_batch_tokens": 256, **sections.get("limits", {})},
    }
    server = {"port": 0, "canary_interval_s": 0.5, **sections.get("server", {})}
    path.write_text(json.dumps({"server": server, "models": [model]}))
    return path


@dataclass
class RunningServer:
    """Mutable: `log`, everything it has printed, complete once it has ended. `trust`: for its certificate."""

    process: subprocess.Popen[str]
    log_path: Path
    url: str = ""
    trust: ssl.SSLContext | None = None

    def wait_ready(self) -> None:
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            assert self.process.poll() is None, self.log
            self.url = next(iter(re.findall(r"https?://127\.0\.0\.1:\d+", self.log)), "")
            if self.url and self.get("/ready")[0] == 200:
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready after {START_S} s:\n{self.log}")

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        return self.send(urllib.request.Request(self.url + path))

    def embed(self, text: object, model: str = "null", **headers: str) -> tuple[int, str]:
        body = json.dumps({"model": model, "input": text, "encoding_format": "float"}).encode()
        return self.send(
            urllib.request.Request(
                self.url + "/v1/embeddings",
                body,
                {"content-type": "application/json", "connection": "close", **headers},
            )
        )

    def send(self, request: urllib.request.Request) -> tuple[int, str]:
        """Status and body, of errors too."""
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trust) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def children(self, module: str) -> list[int]:
        """Process ids of our own children that run this module."""
        listing = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=False
        ).stdout
        return [int(line.split()[0]) for line in listing.splitlines() if module in line]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start_server(config: Path, *arguments: str, environment: dict[str, str] | None = None) -> RunningServer:
    command = [sys.executable, "-m", "server", "--config", str(config), *arguments]
    return start_command(command, config.with_suffix(".log"), environment=environment)


def start_command(
    command: list[str], log_path: Path, *, directory: Path | None = None, environment: dict[str, str] | None = None
) -> RunningServer:
    """`directory` is where it runs; `environment` is added to ours."""
    with log_path.open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | (environment or {}),
        )
    return RunningServer(process, log_path)
