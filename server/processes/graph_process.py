"""`padless graph`: prints a model's graph before and after each pass, and its plan at the largest batch."""

import sys
import tempfile
from pathlib import Path

from torch.fx import GraphModule

from models.info import ModelDirectoryError
from models.load import load_model
from runtime.build import trace_passes
from runtime.limits import BatchLimits
from runtime.listing import format_graph, format_program
from server.config import ConfigError
from server.config_file import load_config
from server.processes.deployment import DeployedModel
from server.processes.resolution import resolve


def print_graph(model: DeployedModel) -> None:
    def on_pass(name: str, graph_module: GraphModule) -> None:
        print(f"== {name}\n{format_graph(graph_module)}\n")

    program = trace_passes(load_model(model.directory, model.info, model.heads), model.config.engine, on_pass)
    limits = model.config.limits
    largest = BatchLimits(limits.max_batch_tokens, limits.max_batch_requests, model.max_input_tokens).largest()
    print(f"== plan\n{format_program(program, largest)}")


def main() -> None:
    path, name, *overrides = sys.argv[1:]
    try:
        deployment = resolve(load_config(Path(path), overrides), Path(tempfile.gettempdir()))
        models = {model.config.name: model for model in deployment.models}
        if name not in models:
            raise ConfigError(f"--model {name}: no such model; there are {', '.join(models)}")
        print_graph(models[name])
    except (ConfigError, ModelDirectoryError) as error:
        print(f"padless: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
