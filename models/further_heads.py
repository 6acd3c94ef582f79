"""Several heads on one trunk: a batch goes through the encoder once, and each head makes its own of the rows.

Some are in the model's own directory. Others come from directories of their own, which hold a head alone, or a whole
checkpoint whose encoder was frozen while the head was trained.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from models.info import ModelInfo, read_info
from models.keys import ModelDirectoryError, read_keys, require_number
from models.late_interaction import LINEAR, SIDES, LateInteraction

TOKENS = "tokens"
ENCODER_TASKS = ("embed", "sparse", "classify", "token_classify", "question_answering", "fill_mask")
MULTI_VECTOR, SPARSE = "multi_vector", "sparse"
M3_FILES = {MULTI_VECTOR: "colbert_linear.pt", SPARSE: "sparse_linear.pt"}
"""BGE-M3's (Chen et al., 2024), of linear layers over the rows of its tokens."""
M3_SPECIAL_TOKENS = ("<s>", "</s>", "<pad>", "<unk>")


@dataclass(frozen=True, slots=True)
class FurtherHead:
    """One beside the model's own. `info.head` is its name."""

    directory: Path
    info: ModelInfo


def name_output(head: str, name: str) -> str:
    """Of an array among the outputs of the graph."""
    return f"{head}.{name}" if head else name


def list_own_heads(directory: Path, info: ModelInfo) -> tuple[FurtherHead, ...]:
    """Those that a directory has beside what it is made for: an embedder also gives the rows of its tokens, and BGE-M3
    vectors to compare them by, and weights.
    """
    if info.task != "embed":
        return ()
    folder = directory / info.transformer
    width = require_number(folder / "config.json", read_keys(folder), "hidden_size")
    tokens = replace(info, task="token_embed", head=TOKENS, output_dim=width, normalize=False, modules=())
    heads = [tokens]
    if (directory / M3_FILES[MULTI_VECTOR]).exists():
        heads.append(describe_vectors(tokens))
    if (directory / M3_FILES[SPARSE]).exists():
        modules = ((LINEAR, M3_FILES[SPARSE]),)
        weights = replace(tokens, task="token_weights", head=SPARSE, output_dim=1, modules=modules)
        heads.append(replace(weights, skipped_tokens=M3_SPECIAL_TOKENS))
    return tuple(FurtherHead(directory, head) for head in heads)


def describe_vectors(tokens: ModelInfo) -> ModelInfo:
    """BGE-M3's, of all tokens but the first: a score is the mean over those of the query."""
    limit = tokens.max_input_tokens
    return replace(
        tokens,
        task="multi_vector",
        head=MULTI_VECTOR,
        normalize=True,
        modules=((LINEAR, M3_FILES[MULTI_VECTOR]),),
        late_interaction=LateInteraction(limit, limit, skipping_sides=SIDES, is_mean=True),
        skipped_tokens=M3_SPECIAL_TOKENS[:1],
    )


def read_further_head(directory: Path, name: str, task: str, trunk: ModelInfo) -> FurtherHead:
    """A head of another directory. Raises ModelDirectoryError where it does not fit the trunk's tokens."""
    info = read_info(directory, task=task)
    if info.task not in ENCODER_TASKS or trunk.task not in ENCODER_TASKS:
        raise ModelDirectoryError(f"{directory}: a head cannot be for {info.task} on a model for {trunk.task}")
    if info.question_format:
        raise ModelDirectoryError(f"{directory}: a head that is asked about pairs by a chat template is not supported")
    for what in ("vocab_size", "type_vocab_size", "do_lower_case"):
        if getattr(info, what) != getattr(trunk, what):
            raise ModelDirectoryError(
                f"{directory}: {what} is {getattr(info, what)}, and that of the trunk {getattr(trunk, what)}: the head "
                "was trained on other tokens. Serve it as a model of its own"
            )
    return FurtherHead(directory, replace(info, head=name))
