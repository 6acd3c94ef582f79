"""Several heads on one trunk: a batch goes through the encoder once, and each head makes its own of the rows.

Some are in the model's own directory. Others come from directories of their own, which hold a head alone, or a whole
checkpoint whose encoder was frozen while the head was trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from models.info import ModelInfo, read_info
from models.keys import ModelDirectoryError, read_keys, require_number

TOKENS = "tokens"
ENCODER_TASKS = ("embed", "sparse", "classify", "token_classify", "question_answering", "fill_mask")


@dataclass(frozen=True, slots=True)
class FurtherHead:
    """One beside the model's own. `info.head` is its name."""

    directory: Path
    info: ModelInfo


def name_output(head: str, name: str) -> str:
    """Of an array among the outputs of the graph."""
    return f"{head}.{name}" if head else name


def list_own_heads(directory: Path, info: ModelInfo) -> tuple[FurtherHead, ...]:
    """Those that a directory has beside what it is made for: an embedder also gives the rows of its tokens."""
    if info.task != "embed":
        return ()
    folder = directory / info.transformer
    width = require_number(folder / "config.json", read_keys(folder), "hidden_size")
    tokens = replace(info, task="token_embed", head=TOKENS, output_dim=width, normalize=False, modules=())
    return (FurtherHead(directory, tokens),)


def read_further_head(directory: Path, name: str, task: str, trunk: ModelInfo) -> FurtherHead:
    """A head of another directory. Raises ModelDirectoryError where it does not fit the trunk's tokens."""
    info = read_info(directory, task=task)
    if info.task not in ENCODER_TASKS or trunk.task not in ENCODER_TASKS:
        raise ModelDirectoryError(f"{directory}: a head cannot be for {info.task} on a model for {trunk.task}")
    for what in ("vocab_size", "type_vocab_size", "do_lower_case"):
        if getattr(info, what) != getattr(trunk, what):
            raise ModelDirectoryError(
                f"{directory}: {what} is {getattr(info, what)}, and that of the trunk {getattr(trunk, what)}: the head "
                "was trained on other tokens. Serve it as a model of its own"
            )
    return FurtherHead(directory, replace(info, head=name))
