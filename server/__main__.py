"""The command line: `padless serve MODEL` or `--config FILE`, `config`, `graph`, `quantize`, `export`, `hash-key`."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from models.info import ModelDirectoryError
from server.api_keys import MIN_KEY_CHARS, check_key, hash_key
from server.config import ConfigError, ServerConfig
from server.config_file import dump_config, load_config
from server.processes.child import build_command, build_environment
from server.processes.launch import launch
from server.processes.one_model import configure_model

COMMANDS = ("serve", "config", "graph", "quantize", "export", "hash-key")
SET_VARIABLES = ("PADLESS_IMAGE_SET", "PADLESS_SET")
"""Overrides for every command, as a shell would split them: `server.host=0.0.0.0 engine.device=cuda`. The first is for
container images, so that the second is the user's there too, and unsets nothing; `--set` comes after both, and wins."""


def main() -> None:
    """Entry point of the console script. User errors are one line on standard error and exit status 2."""
    arguments = build_parser().parse_args(with_default_command(sys.argv[1:]))
    try:
        sys.exit(run(arguments))
    except (ConfigError, ModelDirectoryError) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


def with_default_command(words: list[str]) -> list[str]:
    """`padless --config FILE` means `padless serve --config FILE`, and `padless DIRECTORY` the same with serve."""
    if not words or words[0] in ("-h", "--help", "--version", *COMMANDS):
        return words
    is_model = "/" in words[0] or Path(words[0]).is_dir()
    return ["serve", *words] if words[0].startswith("-") or is_model else words


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("padless", description="A Transformer inference server without padding.")
    parser.add_argument("--version", action="version", version=f"padless {version('padless')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = add_serve(commands)
    config = commands.add_parser("config", help="print the effective configuration, every default spelt out")
    config.add_argument("config", type=Path, metavar="FILE")
    graph = commands.add_parser("graph", help="print a model's graph after each pass, and its execution plan")
    graph.add_argument("--config", type=Path, required=True, metavar="FILE")
    graph.add_argument("--model", default=None, metavar="NAME", help="which model of the file; the first if left out")
    quantize, export = add_quantize(commands), add_export(commands)
    commands.add_parser("hash-key", help="read an API key from standard input, and print its line for server.api_keys")
    for command in (serve, config, graph, quantize, export):
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a value of the file; a model's key without models.N is set in all models",
        )
    return parser


def add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    serve = commands.add_parser("serve", help="start the server (the default: padless --config FILE)")
    what = serve.add_mutually_exclusive_group(required=True)
    what.add_argument("model", nargs="?", metavar="MODEL", help="a directory, or org/name[@revision] on a hub")
    what.add_argument("--config", type=Path, metavar="FILE", help="for more than that, or for several models")
    serve.add_argument("--name", default=None, help="what clients call MODEL; its own name if left out")
    serve.add_argument("--host", default=None, help="the address to listen on, in place of server.host")
    serve.add_argument("--port", type=int, default=None, help="in place of server.port; 0: a free one")
    return serve


def add_quantize(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    quantize = commands.add_parser("quantize", help="calibrate a model for INT8 on your texts, and measure the result")
    quantize.add_argument("--config", type=Path, required=True, metavar="FILE")
    quantize.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help='JSON lines: texts, or objects with a text under "text"',
    )
    quantize.add_argument(
        "--model", default=None, metavar="NAME", help="which model of the file; the first if left out"
    )
    quantize.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="default: MODEL.int8.safetensors beside the config file"
    )
    quantize.add_argument("--static", action="store_true", help="fixed ranges of activations, not each row's own")
    quantize.add_argument(
        "--max-texts",
        type=int,
        default=1250,
        metavar="N",
        help="most texts to use: a fifth calibrates, the rest measures",
    )
    return quantize


def add_export(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    export = commands.add_parser("export", help="write an encoder as an ONNX file, packed behind padded inputs")
    export.add_argument("--config", type=Path, required=True, metavar="FILE")
    export.add_argument("--model", default=None, metavar="NAME", help="which model of the file; the first if left out")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write: model.onnx")
    return export


def list_overrides(arguments: argparse.Namespace) -> list[str]:
    """The environment's, then --host and --port, then --set: the last one wins. Raises ConfigError."""
    overrides = [word for variable in SET_VARIABLES for word in split_words(variable)]
    # Values are YAML, and JSON is YAML: an address like :: needs its quotes.
    given = {key: vars(arguments).get(key) for key in ("host", "port")}
    overrides += [f"server.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    return [*overrides, *arguments.set]


def split_words(variable: str) -> list[str]:
    """Raises ConfigError."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as error:
        raise ConfigError(f"{variable}: {error}. Write it as a shell's words: key=value key=value") from None


def run(arguments: argparse.Namespace) -> int:
    if arguments.command == "hash-key":
        given = sys.stdin.readline().strip()
        if not given:
            raise ConfigError("hash-key reads the key from standard input, and nothing came")
        print(describe_key(given))
        return 0
    overrides = list_overrides(arguments)
    if arguments.command == "serve":
        return launch(configure(arguments, overrides))
    config = load_config(arguments.config, overrides)
    if arguments.command == "config":
        print(dump_config(config), end="")
        return 0
    name = arguments.model or config.models[0].name
    if arguments.command == "graph":
        # In a process of its own, because this one stays free of torch.
        return run_module("server.processes.graph_process", [str(arguments.config), name, *overrides])
    if arguments.command == "export":
        words = [str(arguments.config), name, str(arguments.out), *overrides]
        return run_module("server.processes.export_process", words)
    return run_quantize(arguments, name, overrides)


def configure(arguments: argparse.Namespace, overrides: list[str]) -> ServerConfig:
    """Of the file, or of the one model. Raises ConfigError."""
    if arguments.config is None:
        return configure_model(arguments.model, arguments.name, overrides)
    if arguments.name is not None:
        raise ConfigError("--name is for padless serve MODEL; the models of a file have their names there")
    return load_config(arguments.config, overrides)


def describe_key(key: str) -> str:
    """Raises ConfigError."""
    check_key(key)
    if len(key) < MIN_KEY_CHARS:
        raise ConfigError(
            f"the API key has {len(key)} characters, and one under {MIN_KEY_CHARS} could be found from its hash. "
            "Make one with: openssl rand -hex 32"
        )
    return f"hash: {hash_key(key)}"


def run_quantize(arguments: argparse.Namespace, name: str, overrides: list[str]) -> int:
    """In a process of its own too."""
    if arguments.max_texts < 2:
        raise ConfigError(f"--max-texts {arguments.max_texts}: must be at least 2")
    out = arguments.out or arguments.config.parent / f"{name.replace('/', '_')}.int8.safetensors"
    activations = "static" if arguments.static else "dynamic"
    words = [arguments.config, name, arguments.data, out, activations, arguments.max_texts, *overrides]
    return run_module("server.processes.quantize_process", [str(word) for word in words])


def run_module(module: str, arguments: Sequence[str]) -> int:
    return subprocess.run(build_command(module, arguments), env=build_environment()).returncode


if __name__ == "__main__":
    main()
