"""What a model directory says of itself, read without torch: task, pooling, limits, prompts, labels.

The HTTP side needs no more than this; `models.config` reads the architecture for the engine side.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

from models.adapters_config import read_adapters, read_instructions
from models.defaults import Keys
from models.generation_keys import read_tokens
from models.judges import find_logit_score, read_answers
from models.keys import (
    ModelDirectoryError,
    read_architecture,
    read_keys,
    read_object,
    read_optional,
    require_number,
)
from models.labels import read_labels, read_problem_type, read_score_activation
from models.late_interaction import LateInteraction, is_late_interaction, read_late_interaction
from models.module_chain import check_is_whole, check_scorer, find_module, find_transformer, read_modules
from models.seq2seq_info import Seq2SeqInfo, count_target_words, read_seq2seq_info
from models.settings import FILE_NAME, read_matryoshka_dimensions, read_prompts, read_settings, read_truncate_dim
from models.sparse_modules import check_sparse, is_sparse
from models.special_tokens import find_mask_token, find_special_token
from models.tokenization import Tokenization, count_positions, read_tokenization

__all__ = [
    "CLASSIFIER_SUFFIX",
    "QUESTION_ANSWERER_SUFFIX",
    "TOKEN_CLASSIFIER_SUFFIX",
    "ModelDirectoryError",
    "ModelInfo",
    "read_info",
    "read_object",
]

CLASSIFIER_SUFFIX = "ForSequenceClassification"
TOKEN_CLASSIFIER_SUFFIX = "ForTokenClassification"
QUESTION_ANSWERER_SUFFIX = "ForQuestionAnswering"
MASKED_SUFFIX = "ForMaskedLM"
GENERATOR_SUFFIXES = ("ForCausalLM", "LMHeadModel")
SEQ2SEQ_SUFFIXES = ("ForConditionalGeneration", "MTModel")
ON_DEMAND = ("sparse", "fill_mask")
"""What masked language models do if they are asked to: most of them are there to be embedded with."""
SEQ2SEQ_TASKS = ("text2text", "transcribe")
"""What encoder-decoders do; the second those that hear."""
NUM_BORDERS = 2
"""What a question answerer tells of each token: the logits of an answer that begins with it, and of one that ends."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The public face of a model directory."""

    architecture: str
    task: str
    """`embed`, `token_embed`, `multi_vector`, `sparse`, `token_weights`, `classify`, `token_classify`,
    `question_answering`, `fill_mask`, `generate`, `text2text` or `transcribe`."""
    vocab_size: int
    type_vocab_size: int
    """1 where the model has no token types, or its tokenizer gives it none: all types are 0."""
    max_input_tokens: int
    """Special tokens and prompt included. Generators: the context, what is generated included. Encoder-decoders: of a
    source, in rows of features where they hear."""
    output_dim: int
    id2label: dict[int, str] = field(default_factory=dict)
    transformer: str = ""
    """The folder, inside the directory, of config.json, weights and tokenizer; empty for the directory itself."""
    pooling: tuple[str, ...] = ("mean",)
    """Names in `models.pooling`; what several of them give is concatenated in this order."""
    modules: tuple[tuple[str, str], ...] = ()
    """sentence-transformers' modules behind the pooling, in order: (Dense, LayerNorm or Normalize, folder)."""
    normalize: bool = False
    """In the end vectors are scaled to length 1."""
    matryoshka_dimensions: tuple[int, ...] = ()
    """The numbers of leading dimensions that it was trained to do with; empty: nothing is said of it."""
    prompts: dict[str, str] = field(default_factory=dict)
    """Texts that SentenceTransformer.encode puts before every text, with nothing between them, by `prompt_name`.

    A cross-encoder puts them before the first text of each pair. sentence-transformers 5 and later always know `query`
    and `document` too, empty unless they are here.
    """
    default_prompt_name: str | None = None
    """The prompt of calls that choose none; None for no prompt. An empty prompt that is asked for is none as well."""
    adapters: tuple[str, ...] = ()
    """The tasks that there is a low-rank adapter for, in the order of `Batch.adapter_ids`. The prompt of that name
    belongs to it."""
    pools_prompt: bool = True
    """False: the first n tokens take part in attention, but not in pooling. `cls` is then the first token after them.

    n is the number of tokens of the prompt by itself with its special tokens, cut at the limit, less one where the last
    of those is a special token: BERT's [CLS] and the prompt. Weights of `weighted_mean` still count from the text's own
    first token. Where a text is no longer than n, sentence-transformers' mean is 0 and its cls the first token of all.
    """
    do_lower_case: bool = False
    """sentence-transformers lower-cases the text itself, whatever its tokenizer does."""
    problem_type: str = "single_label_classification"
    """Classifiers: scores are the softmax of the logits for `single_label_classification`, the sigmoid for
    `multi_label_classification`, the logits for `regression`."""
    activation: str | None = None
    """A cross-encoder's own word on that, which wins: `identity` or `sigmoid`."""
    has_tied_words: bool = True
    """Masked language models: their output table is that of the tokens."""
    mask_token_id: int | None = None
    """Masked language models: what stands in place of a word that is to be guessed."""
    mask_token: str = ""
    """How that is written."""
    eos_token_ids: tuple[int, ...] = ()
    """Generators and encoder-decoders: the tokens that end an answer."""
    seq2seq: Seq2SeqInfo | None = None
    """Of encoder-decoders."""
    answer_token_ids: tuple[int, ...] = ()
    """Language models that judge pairs: yes and no, whose logits' difference is the score, or yes alone."""
    question_format: str = ""
    """How a ranker is asked about a pair: empty, the pair as it is; `flat` or `structured`, by its chat template, of
    messages whose contents are texts or lists of parts; `qwen3`, by that if it can, else in Qwen3-Reranker's words."""
    opens_answer: bool = False
    """Of those: their chat template is to end where the answer begins."""
    late_interaction: LateInteraction | None = None
    """Models that give a vector of each token to compare them by: how queries and documents are read."""
    skipped_tokens: tuple[str, ...] = ()
    """As the vocabulary writes them: what they have is not among the answers of heads over tokens."""
    head: str = ""
    """Its name among the heads of one trunk; empty for that which the model's own directory is made for."""


def read_info(
    directory: Path, *, task: str = "auto", pooling: str = "auto", normalize: bool | None = None
) -> ModelInfo:
    """Read config.json and the sentence-transformers files; arguments other than `auto` and None win over them.

    Raises ModelDirectoryError where the files contradict each other or the arguments, or cannot be followed.
    """
    transformer = find_transformer(directory)
    folder = directory / transformer
    path = folder / "config.json"
    keys = read_keys(folder)
    architecture = read_architecture(keys)
    task = choose_task(path, architecture, find_module_task(directory, keys) if task == "auto" else task)
    tokenization = read_tokenization(folder, keys)
    check_plain_texts(folder, task, tokenization)
    info = ModelInfo(
        architecture=architecture,
        task=task,
        transformer=transformer,
        vocab_size=require_number(path, keys, "vocab_size"),
        type_vocab_size=count_types(path, keys) if tokenization.has_token_types else 1,
        max_input_tokens=tokenization.max_input_tokens,
        do_lower_case=tokenization.do_lower_case,
        question_format=tokenization.message_format,
        opens_answer=tokenization.opens_answer,
        output_dim=require_number(path, keys, "hidden_size"),
    )
    if task == "generate":
        return complete_generator(info, folder, keys)
    if task in SEQ2SEQ_TASKS:
        return complete_seq2seq(info, folder, keys)
    if task == "token_classify":
        labels = read_labels(path, keys)
        return replace(info, output_dim=len(labels), id2label=labels)
    if task == "question_answering":
        return replace(info, output_dim=NUM_BORDERS)
    if task == "fill_mask":
        mask_token, mask_token_id = find_mask_token(folder)
        return complete_words(replace(info, mask_token=mask_token, mask_token_id=mask_token_id), keys)
    if task == "multi_vector":
        return complete_multi_vector(info, directory, keys)
    return complete_pooled(info, directory, keys, pooling, normalize)


def complete_pooled(info: ModelInfo, directory: Path, keys: Keys, pooling: str, normalize: bool | None) -> ModelInfo:
    """What sentence-transformers' files are read for: sparse vectors, classifiers and embedders."""
    settings = read_settings(directory, info.task)
    prompts = read_prompts(directory / FILE_NAME, settings)
    info = replace(info, prompts=prompts.texts, default_prompt_name=prompts.default_name)
    adapters = read_adapters(directory / info.transformer, keys)
    if adapters is not None:
        instructions = read_instructions(directory / info.transformer / "config.json", keys)
        texts = {name: instructions.get(name, "") for name in adapters.names} | info.prompts
        info = replace(info, adapters=adapters.names, prompts=texts)
    if info.task == "sparse":
        return complete_sparse(info, directory, keys)
    if info.task == "classify":
        return complete_classifier(info, directory, keys, settings)
    dimensions = read_matryoshka_dimensions(directory / info.transformer / "config.json", keys)
    info = replace(info, matryoshka_dimensions=dimensions)
    return complete_embedder(info, directory, settings, pooling, normalize)


def find_module_task(directory: Path, keys: Keys) -> str:
    """What modules.json makes of a checkpoint that by itself is for something else; `auto` where it does not."""
    if is_sparse(directory):
        return "sparse"
    if is_late_interaction(directory, keys):
        return "multi_vector"
    if find_logit_score(directory) is not None:
        return "classify"
    is_generator = read_architecture(keys).endswith((*GENERATOR_SUFFIXES, *SEQ2SEQ_SUFFIXES))
    return "embed" if is_generator and find_module(directory, "Pooling") is not None else "auto"


def check_plain_texts(folder: Path, task: str, tokenization: Tokenization) -> None:
    """Raises ModelDirectoryError for texts that sentence-transformers would make messages of, if they are no pairs."""
    if tokenization.message_format and task not in ("classify", "generate"):
        raise ModelDirectoryError(
            f"{folder}: modality_config has message, so that texts are read by the chat template; that is supported "
            "for rerankers only. Take message out where the model was trained on plain texts"
        )


def count_types(path: Path, keys: Keys) -> int:
    return require_number(path, keys, "type_vocab_size", least=0) or 1


def complete_generator(info: ModelInfo, folder: Path, keys: Keys) -> ModelInfo:
    """A tokenizer's limit is for inputs, and does not bound the context. Raises ModelDirectoryError."""
    check_generates(folder / "config.json", keys)
    return replace(
        info,
        max_input_tokens=count_positions(folder / "config.json", keys),
        output_dim=info.vocab_size,
        eos_token_ids=read_eos_token_ids(folder, keys),
    )


def complete_seq2seq(info: ModelInfo, folder: Path, keys: Keys) -> ModelInfo:
    """A tokenizer's limit is for texts, and does not bound what is heard. Raises ModelDirectoryError."""
    path = folder / "config.json"
    return replace(
        info,
        max_input_tokens=count_positions(path, keys) if info.task == "transcribe" else info.max_input_tokens,
        output_dim=count_target_words(path, keys),
        eos_token_ids=read_eos_token_ids(folder, keys),
        seq2seq=read_seq2seq_info(folder, keys),
    )


def check_generates(path: Path, keys: Keys) -> None:
    """Raises ModelDirectoryError where tokens see those behind them, which are not there yet."""
    for name, value in (("is_causal", False), ("use_bidirectional_attention", True)):
        if keys.get(name) is value:
            raise ModelDirectoryError(
                f"{path}: {name} is {value}: each token sees all of its text, so this model cannot generate. "
                "Set task: embed"
            )


def complete_classifier(info: ModelInfo, directory: Path, keys: Keys, settings: Keys) -> ModelInfo:
    """`settings` are empty unless a cross-encoder wrote them: another's modules do not count here."""
    folder = directory / info.transformer
    path = folder / "config.json"
    if info.architecture.endswith(GENERATOR_SUFFIXES):
        activation = read_score_activation(path, keys, directory / FILE_NAME, settings)
        judge = replace(info, answer_token_ids=read_answers(directory, folder), activation=activation)
        question_format = info.question_format if find_logit_score(directory) is not None else "qwen3"
        return replace(judge, output_dim=1, id2label={0: "LABEL_0"}, question_format=question_format)
    if settings:
        check_scorer(directory)
    labels = read_labels(path, keys)
    if info.question_format and len(labels) > 1:
        raise ModelDirectoryError(
            f"{folder}: modality_config has message, so that pairs are read by the chat template; that is supported "
            f"for one label, not {len(labels)}"
        )
    return replace(
        info,
        output_dim=len(labels),
        id2label=labels,
        problem_type=read_problem_type(path, keys),
        activation=read_score_activation(path, keys, directory / FILE_NAME, settings),
    )


def complete_sparse(info: ModelInfo, directory: Path, keys: Keys) -> ModelInfo:
    """A directory without sentence-transformers' files is pooled as theirs are."""
    if is_sparse(directory):
        check_sparse(directory)
    return complete_words(info, keys)


def complete_words(info: ModelInfo, keys: Keys) -> ModelInfo:
    """Of a masked language model."""
    return replace(info, output_dim=info.vocab_size, has_tied_words=bool(keys.get("tie_word_embeddings", True)))


def complete_multi_vector(info: ModelInfo, directory: Path, keys: Keys) -> ModelInfo:
    """Its own limits win over the tokenizer's."""
    num_positions = count_positions(directory / info.transformer / "config.json", keys)
    found = read_late_interaction(directory, keys, info.max_input_tokens, num_positions)
    return replace(
        info,
        max_input_tokens=max(found.settings.max_query_tokens, found.settings.max_document_tokens),
        output_dim=found.output_dim,
        modules=found.modules,
        normalize=found.normalize,
        prompts=found.prompts,
        late_interaction=found.settings,
        skipped_tokens=found.skipped_tokens,
    )


def complete_embedder(
    info: ModelInfo, directory: Path, settings: Keys, pooling: str, normalize: bool | None
) -> ModelInfo:
    if pooling == "auto":
        check_is_whole(directory)
    chain = read_modules(directory)
    if not chain.has_pooling and pooling == "auto":
        raise ModelDirectoryError(f"{directory / 'modules.json'}: there is no Pooling; set pooling")
    modes = chain.pooling if pooling == "auto" else (pooling,)
    width = chain.dense_dim or info.output_dim * len(modes)
    truncate_dim = read_truncate_dim(directory / FILE_NAME, settings)
    return replace(
        info,
        output_dim=width if truncate_dim is None else min(width, truncate_dim),
        pooling=modes,
        pools_prompt=chain.pools_prompt,
        modules=chain.modules,
        normalize=chain.normalize if normalize is None else normalize,
    )


def choose_task(path: Path, architecture: str, task: str) -> str:
    """What the checkpoint's head is for, where `task` is `auto`. Raises ModelDirectoryError where it lacks the head.

    A language model classifies too, as a judge of pairs.
    """
    if task == "classify" and architecture.endswith(GENERATOR_SUFFIXES):
        return task
    is_seq2seq, hears = architecture.endswith(SEQ2SEQ_SUFFIXES), architecture.startswith("Whisper")
    heads = {
        "classify": architecture.endswith(CLASSIFIER_SUFFIX),
        "token_classify": architecture.endswith(TOKEN_CLASSIFIER_SUFFIX),
        "question_answering": architecture.endswith(QUESTION_ANSWERER_SUFFIX),
        "sparse": architecture.endswith(MASKED_SUFFIX),
        "fill_mask": architecture.endswith(MASKED_SUFFIX),
        "generate": architecture.endswith(GENERATOR_SUFFIXES),
        "text2text": is_seq2seq and not hears,
        "transcribe": is_seq2seq and hears,
    }
    if task == "auto":
        return next((name for name, is_there in heads.items() if is_there and name not in ON_DEMAND), "embed")
    if not heads.get(task, True):
        kinds = {
            "classify": "classification",
            "token_classify": "token classification",
            "question_answering": "question answering",
            "sparse": "masked language model",
            "fill_mask": "masked language model",
            "text2text": "sequence-to-sequence",
            "transcribe": "speech-to-text",
        }
        kind = kinds.get(task, "language model")
        raise ModelDirectoryError(
            f"{path}: task {task} needs a {kind} head, but the architecture is {architecture}. Leave task out"
        )
    return task


def read_eos_token_ids(directory: Path, keys: Keys) -> tuple[int, ...]:
    """Of generation_config.json, or of config.json where it has none; and the tokenizer's `eos_token` beside them.

    Chat models often end their turns with another token, and name it in one of these places only. Empty where none
    has any. Raises ModelDirectoryError.
    """
    path = directory / "generation_config.json"
    given = read_optional(path)
    if given.get("eos_token_id") is None:
        path, given = directory / "config.json", keys
    ids = read_tokens(path, given, "eos_token_id")
    eos_token_id = find_special_token(directory, "eos_token")
    return tuple(dict.fromkeys(ids if eos_token_id is None else [*ids, eos_token_id]))
