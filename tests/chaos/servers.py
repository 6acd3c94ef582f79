"""A server with two models on null engines, two replicas each: one that embeds, one that generates."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.running_server import WORDS, RunningServer, make_model_directory, start_server
from tests.server.fake_generator import build_byte_level

__all__ = ["WORDS", "ChaosServer", "start_chaos_server", "write_chaos_config"]

FAIL_WORD, NAN_WORD = "word58", "word59"
ENGINE = {
    "kind": "null",
    "warmup": False,
    "replicas": 2,
    "null_step_ms": 10,
}
FAULTS = {"null_fail_token_id": WORDS.index(FAIL_WORD), "null_nan_token_id": WORDS.index(NAN_WORD)}
GENERATOR = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": None,
}


def make_generator_directory(directory: Path) -> Path:
    directory.mkdir()
    tokenizer = build_byte_level()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(GENERATOR | {"vocab_size": tokenizer.get_vocab_size()}))
    return directory


def write_chaos_config(folder: Path, *, has_generator: bool = True, **sections: dict[str, Any]) -> Path:
    """`sections`: server, engine, limits; of both models."""
    limits = {"max_batch_tokens": 256, "max_batch_requests": 8, **sections.get("limits", {})}
    engine = ENGINE | sections.get("engine", {})
    sources = {"embedder": (make_model_directory(folder / "embedder"), engine | FAULTS)}
    if has_generator:
        sources["writer"] = (make_generator_directory(folder / "writer"), engine)
    models = [
        {"name": name, "source": {"path": str(path)}, "engine": engine, "limits": limits}
        for name, (path, engine) in sources.items()
    ]
    server = {"port": 0, "canary_interval_s": 0.5, "drain_timeout_s": 10, **sections.get("server", {})}
    path = folder / "chaos.yaml"
    path.write_text(json.dumps({"server": server, "models": models}))
    return path


@dataclass
class ChaosServer(RunningServer):
    """`has_generator`: serves the second model as well."""

    has_generator: bool = True

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def sum_metric(self, name: str) -> float:
        """Over all labels. A worker that has just died answers nothing: asked again."""
        for _ in range(100):
            try:
                status, text = self.get("/metrics")
            except OSError:
                status = 0
            if status == 200:
                return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))
            time.sleep(0.1)
        raise AssertionError("/metrics does not answer")

    def find_engines(self, model_index: int) -> list[int]:
        """Process ids, by `... engine_process RUN_DIR MODEL_INDEX REPLICA NUM_STARTS`."""
        return [
            pid
            for pid in self.children("server.processes.engine_process")
            if Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-4] == str(model_index)
        ]


def start_chaos_server(config: Path, *, has_generator: bool = True) -> ChaosServer:
    started = start_server(config)
    server = ChaosServer(started.process, started.log_path, has_generator=has_generator)
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server
