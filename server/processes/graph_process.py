"""`padless graph`: prints a model's graphs before and after each pass, and their plans at the largest batch."""

import sys
from pathlib import Path

from torch.fx import GraphModule

from models.info import ModelDirectoryError
from models.load import load_model
from runtime.build import trace_passes
from runtime.config import EngineConfig
from runtime.lazy_module import LazyModule
from runtime.limits import BatchLimits
from runtime.listing import format_graph, format_program
from server.config import ConfigError
from server.processes.deployment import DeployedModel
from server.processes.opening import find_limits
from server.processes.resolution import resolve_one


def print_graph(model: DeployedModel) -> None:
    """Of an encoder-decoder both: what writes sources into the cache, then what answers."""
    lazy, limits = load_model(model.directory, model.info, model.heads), find_limits(model)
    if lazy.encoder is not None:
        print("=== encoder")
        print_program(lazy.encoder, model.config.engine, limits.of_sources())
        print("\n=== decoder")
    print_program(lazy, model.config.engine, limits)


def print_program(module: LazyModule, config: EngineConfig, limits: BatchLimits) -> None:
    def on_pass(name: str, graph_module: GraphModule) -> None:
        print(f"== {name}\n{format_graph(graph_module)}\n")

    program = trace_passes(module, config, on_pass)
    print(f"== plan\n{format_program(program, limits.largest())}")


def main() -> None:
    path, name, *overrides = sys.argv[1:]
    try:
        print_graph(resolve_one(Path(path), name, overrides))
    except (ConfigError, ModelDirectoryError) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
