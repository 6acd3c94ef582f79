"""The command line: `padless --config FILE`, `padless config FILE`, `padless graph --config FILE`."""

import argparse
import subprocess
import sys
from pathlib import Path

from models.info import ModelDirectoryError
from server.config import ConfigError, dump_config, load_config
from server.launch import launch


def main() -> None:
    """Entry point of the console script. User errors are one line on standard error and exit status 2."""
    arguments = build_parser().parse_args(with_default_command(sys.argv[1:]))
    try:
        sys.exit(run(arguments))
    except (ConfigError, ModelDirectoryError) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


def with_default_command(words: list[str]) -> list[str]:
    """`padless --config FILE` means `padless serve --config FILE`."""
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help"):
        return ["serve", *words]
    return words


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("padless", description="A Transformer inference server without padding.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = commands.add_parser("serve", help="start the server (the default: padless --config FILE)")
    serve.add_argument("--config", type=Path, required=True, metavar="FILE")
    config = commands.add_parser("config", help="print the effective configuration, every default spelt out")
    config.add_argument("config", type=Path, metavar="FILE")
    graph = commands.add_parser("graph", help="print a model's graph after each pass, and its execution plan")
    graph.add_argument("--config", type=Path, required=True, metavar="FILE")
    graph.add_argument("--model", default=None, metavar="NAME", help="which model of the file; the first if left out")
    for command in (serve, config, graph):
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override one value of the file"
        )
    return parser


def run(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.set)
    if arguments.command == "config":
        print(dump_config(config), end="")
        return 0
    if arguments.command == "graph":
        # In a process of its own, because this one stays free of torch.
        words = [str(arguments.config), arguments.model or config.models[0].name, *arguments.set]
        return subprocess.run([sys.executable, "-m", "server.graph_process", *words]).returncode
    return launch(config)


if __name__ == "__main__":
    main()
