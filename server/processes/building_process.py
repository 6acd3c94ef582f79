"""An engine's own process that builds it from the model's weights. Takes the words that `engine_process` takes."""

from server.processes.building import build_model
from server.processes.engine_process import run_engine

if __name__ == "__main__":
    run_engine(build_model)
