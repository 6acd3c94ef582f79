"""A model's engine built from its weights in this process: the reference, and what could not be compiled ahead."""

from dataclasses import replace

from models.info import ModelDirectoryError, read_info
from models.load import load_model
from runtime.build import build_engine
from runtime.engine import Engine, Progress
from runtime.lazy_module import DraftModel
from server.processes.deployment import DeployedModel
from server.processes.opening import find_limits, open_model, settle_engine


def build_model(model: DeployedModel, replica: int, progress: Progress) -> Engine:
    """Raises ModelDirectoryError, UnusableConfig."""
    config = settle_engine(model, replica)
    if model.is_openable:
        return open_model(model, replica, progress)
    progress("reading weights", 0, 1)
    module, draft = load_model(model.directory, model.info, model.heads), load_draft(model)
    progress("reading weights", 1, 1)
    return build_engine(module, config, find_limits(model), progress, draft, model.chosen)


def load_draft(model: DeployedModel) -> DraftModel | None:
    """The small model that guesses, if there is to be one. Raises ModelDirectoryError where it speaks otherwise."""
    speculative = model.config.speculative
    if speculative is None or model.draft_directory is None:
        return None
    info = read_info(model.draft_directory, task=model.head.name)
    if info.vocab_size != model.info.vocab_size:
        raise ModelDirectoryError(
            f"speculative.draft {model.draft_directory}: its vocabulary has {info.vocab_size} tokens and that of "
            f"{model.config.name} {model.info.vocab_size}; a draft model needs the same tokenizer"
        )
    if info.max_input_tokens < model.max_input_tokens:
        raise ModelDirectoryError(
            f"speculative.draft {model.draft_directory}: it takes {info.max_input_tokens} tokens and "
            f"{model.config.name} up to {model.max_input_tokens}; set limits.max_input_tokens to at most "
            f"{info.max_input_tokens}"
        )
    served = replace(info, max_input_tokens=model.max_input_tokens)
    return DraftModel(load_model(model.draft_directory, served), speculative.num_tokens)
