"""Fast tokenizers of every kind, trained on a few sentences."""

from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

KINDS = ["wordpiece", "bytes", "unigram"]
"""As BERT, RoBERTa and XLM-R have them."""
MAX_TOKENS = 80
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
CORPUS = [
    "Clara Schumann lived in Leipzig and in Frankfurt, where she taught the piano for fourteen years.",
    "Ihr Vater, Friedrich Wieck, war Klavierlehrer; Robert wohnte in Zwickau und in Düsseldorf.",
    "The U.N. met in New York City on the 3rd of May; nobody from Micro-soft's office came.",
] * 4


def build_tokenizer(kind: str) -> Tokenizer:
    raw, trainer = {"wordpiece": build_wordpiece, "bytes": build_bytes, "unigram": build_unigram}[kind]()
    raw.train_from_iterator(CORPUS, trainer)
    ids = {token: raw.token_to_id(token) for token in ("<s>", "</s>")}
    if kind == "bytes":
        raw.post_processor = processors.RobertaProcessing(
            ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=False
        )
    else:
        raw.post_processor = processors.TemplateProcessing(
            "<s> $A </s>", "<s> $A </s> $B:1 </s>:1", special_tokens=list(ids.items())
        )
    return raw


def build_wordpiece() -> tuple[Tokenizer, trainers.Trainer]:
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return raw, trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)


def build_bytes() -> tuple[Tokenizer, trainers.Trainer]:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return raw, trainer


def build_unigram() -> tuple[Tokenizer, trainers.Trainer]:
    raw = Tokenizer(models.Unigram())
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=140, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return raw, trainer


def save_tokenizer(kind: str, directory: Path) -> transformers.PreTrainedTokenizerFast:
    """The directory then has tokenizer.json; what comes back is transformers' own over it."""
    build_tokenizer(kind).save(str(directory / "tokenizer.json"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"),
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
    )
