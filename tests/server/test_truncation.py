"""Truncation that does not read everything keeps what reading everything keeps: of every kind of tokenizer."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer

from server.errors import EmptyInput, InputTooLong
from server.text.borders import BREAKS, Borders, find_borders, find_uncrossed
from server.text.detokenizer import CHARACTER_BYTES
from server.text.pairs import find_shared
from server.text.tokenizer import Tokenizer, Work
from server.text.truncation import UNBROKEN_CHARS, TruncationSide, cut_text, share_budget
from server.text.work import Truncation
from server.wire.job import fill_types

PROSE = [
    "Once upon a time, in a far-away land, there lived 3 dragons; the 42nd of them didn't sleep.",
    "the the then there here hear ear earth  and   tabs\tand\nlines\n\n  end.",
    "日本語の文章です。 中文 也是。 été naïve Zürich 😀 ok",
    "aaaa aaaaaaaa aaaaaaaaaaaaaaaa ab abab ababab 1111111 ....... ,,,,,,",
]
SIZE = 400


def build_word_piece() -> RawTokenizer:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(PROSE, trainers.WordPieceTrainer(vocab_size=SIZE, special_tokens=specials))
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return raw


def build_byte_level() -> RawTokenizer:
    """As GPT-2 and RoBERTa."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=specials)
    raw.train_from_iterator(PROSE, trainer)
    raw.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), add_prefix_space=False)
    return raw


def build_digits_by_three() -> RawTokenizer:
    """As Llama 3: what a run of digits is split into depends on where it begins."""
    raw = RawTokenizer(models.BPE())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<s>", "</s>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, special_tokens=specials)
    raw.train_from_iterator([*PROSE, "123 456 789 12 34 1,234,567"] * 3, trainer)
    raw.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B:1", [("<s>", 0)])
    return raw


def build_whole_bpe() -> RawTokenizer:
    """As Llama 2: the text is one word, with a blank put before it."""
    raw = RawTokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    raw.train_from_iterator(PROSE, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["<unk>", "<s>"]))
    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B:1", [("<s>", 1)])
    return raw


def build_unigram() -> RawTokenizer:
    """As XLM-RoBERTa and T5."""
    raw = RawTokenizer(models.Unigram())
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=specials, unk_token="<unk>")
    raw.train_from_iterator(PROSE * 5, trainer)
    raw.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", "<s> $A </s> </s> $B:1 </s>:1", [("<s>", 1), ("</s>", 2)]
    )
    return raw


def build_across_words() -> RawTokenizer:
    """Merges across blanks: no border is safe."""
    raw = RawTokenizer(models.BPE())
    raw.train_from_iterator(PROSE * 2, trainers.BpeTrainer(vocab_size=SIZE, special_tokens=["<s>"]))
    return raw


def build_word_level() -> RawTokenizer:
    """The whole text is a word that is known or not."""
    return RawTokenizer(models.WordLevel({"<unk>": 0, "the": 1}, unk_token="<unk>"))


BUILDERS: dict[str, Callable[[], RawTokenizer]] = {
    "WordPiece": build_word_piece,
    "byte-level BPE": build_byte_level,
    "digits by three": build_digits_by_three,
    "whole BPE": build_whole_bpe,
    "Unigram": build_unigram,
    "across words": build_across_words,
    "WordLevel": build_word_level,
}
WITHOUT_POST_PROCESSOR = {"across words", "WordLevel"}
POOL = ThreadPoolExecutor(1)


@cache
def build(kind: str) -> RawTokenizer:
    """As it is read: scores that were just trained lose their last digits in a file, and ties then fall otherwise."""
    return RawTokenizer.from_str(BUILDERS[kind]().to_str())


@cache
def build_ours(kind: str, limit: int) -> Tokenizer:
    return Tokenizer(build(kind), max_input_tokens=limit, vocab_size=SIZE, type_vocab_size=2, pool=POOL)


@cache
def build_cutting(kind: str) -> RawTokenizer:
    """One of its own, because it is told where to cut."""
    return RawTokenizer.from_str(build(kind).to_str())


def encode_and_cut(kind: str, limit: int, parts: list[str], side: str) -> tuple[list[int], list[int]]:
    """The plain way: the library reads everything and cuts."""
    raw = build_cutting(kind)
    raw.enable_truncation(limit, strategy="longest_first", direction=side)
    encoding = raw.encode(*parts)
    return encoding.ids, encoding.type_ids


ODD = [
    "\u0301",
    "\u200b",
    "\u00a0",
    "\u3000",
    "ﬁ",
    "日本",
    "\x00",
    "\r\n",
    "'s",
    "\ufffd",
    " ",
    "  ",
    "\n",
    "\t",
    " \n ",
]
SPECIALS = ["<mask>", "[SEP]", "<s>", "</s>"]
WORDS = st.sampled_from([*" ".join(PROSE).split(), *ODD, *SPECIALS, "x" * 150, "a" * 33])
SPACED = st.lists(WORDS, min_size=25, max_size=50).map(" ".join)
TIGHT = st.lists(WORDS, min_size=20, max_size=40).map("".join)
FEW = st.lists(st.sampled_from(["a", "aa", " ", "ab", ". ", "the "]), min_size=40, max_size=100).map("".join)
MARKS = st.lists(st.sampled_from([*"[]{},:;.'\"_-!a1 2é日本。、\n", "<mask>", "[SEP]"]), min_size=40, max_size=100)
TEXTS = st.one_of(SPACED, SPACED, TIGHT, FEW, MARKS.map("".join), st.text(max_size=200))


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=25, deadline=None)
@given(
    parts=st.one_of(st.tuples(TEXTS), st.tuples(TEXTS, TEXTS)).filter(any),
    truncation=st.sampled_from(["right", "left"]),
    limit=st.integers(4, 10),
    is_inline=st.booleans(),
)
def test_as_if_everything_were_read(
    kind: str, parts: tuple[str, ...], truncation: Truncation, limit: int, is_inline: bool
) -> None:
    work = Work(truncation, "input", True, is_inline, limit)
    ids, types = encode_and_cut(kind, limit, list(parts), truncation)
    encode = partial(build_ours(kind, limit)._encode_text, parts if len(parts) == 2 else parts[0], work)  # type: ignore[arg-type]
    if not ids:
        with pytest.raises(EmptyInput):
            encode()
        return
    sequence = encode()
    assert sequence.input_ids.tolist() == ids
    found = [0] * len(ids) if sequence.token_type_ids is None else sequence.token_type_ids.tolist()
    assert found == types


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=20, deadline=None)
@given(
    query=TEXTS.filter(bool),
    documents=st.lists(TEXTS, min_size=2, max_size=4),
    truncation=st.sampled_from(["right", "left"]),
    limit=st.integers(4, 60),
    is_inline=st.booleans(),
)
def test_a_shared_query_changes_no_token(
    kind: str, query: str, documents: list[str], truncation: Truncation, limit: int, is_inline: bool
) -> None:
    ours = build_ours(kind, limit)
    pairs = [(query, document) for document in documents]
    shared = find_shared(pairs) if ours._can_join else {}
    assert (not shared) is (kind in WITHOUT_POST_PROCESSOR)
    work = Work(truncation, "input", True, is_inline, limit, shared=shared)
    encode = partial(ours._map_chunk, ours._encode_input, pairs, 0, work)
    expected = [encode_and_cut(kind, limit, list(pair), truncation) for pair in pairs]
    if not all(ids for ids, _ in expected):
        with pytest.raises(EmptyInput):
            encode()
        return
    for sequence, (ids, types) in zip(encode(), expected, strict=True):
        assert sequence.input_ids.tolist() == ids
        assert fill_types(sequence).tolist() == types


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=20, deadline=None)
@given(text=TEXTS, limit=st.integers(1, 20))
def test_a_text_is_shortened_to_so_many_tokens(kind: str, text: str, limit: int) -> None:
    short = build_ours(kind, 40)._shorten_text(text, Work("right", "input", False, False, limit))
    assert text.startswith(short)
    encoding = build(kind).encode(text, add_special_tokens=False)
    if len(encoding) <= limit:
        assert short == text
    else:
        assert len(short) == encoding.offsets[limit - 1][1]


def test_only_pairs_share_their_query() -> None:
    assert [*find_shared([("a", "b"), ("a", "c"), ("b", "c"), "c", ("d", "c"), ("d", "e")])] == ["a", "d"]
    for inputs in ([("a", "b")], ["a", "a"], [("a", "b"), ("b", "c")], [("a", "b"), "a"], [[1], [1]]):
        assert not find_shared(inputs)


def test_a_shared_query_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, read = build_ours("WordPiece", 40), []
    monkeypatch.setattr(ours, "_read", lambda heads, work, f=ours._read: read.append(heads[0].text) or f(heads, work))
    pairs = [("dragons", "land"), ("dragons", "time"), ("dragons", "sleep")]
    work = Work("right", "input", True, True, 40, shared=find_shared(pairs))
    ours._map_chunk(ours._encode_input, pairs, 0, work)
    assert read == ["dragons", "land", "time", "sleep"]


@pytest.mark.parametrize("kind", sorted(set(BUILDERS) - WITHOUT_POST_PROCESSOR))
def test_pairs_with_a_shared_query_are_refused_alike(kind: str) -> None:
    pairs = [("the dragons", "there lived three dragons in a land " * count) for count in (1, 5)]
    num_tokens = len(build(kind).encode(*pairs[1]).ids)
    for shared in (find_shared(pairs), {}):
        ours, work = (
            build_ours(kind, num_tokens - 1),
            Work("error", "input", True, False, num_tokens - 1, shared=shared),
        )
        with pytest.raises(InputTooLong, match=rf"input\[1\] has {num_tokens} tokens; the limit is {num_tokens - 1}"):
            ours._map_chunk(ours._encode_input, pairs, 0, work)


@pytest.mark.parametrize("kind", BUILDERS)
@settings(max_examples=20, deadline=None)
@given(text=TEXTS.filter(bool), limit=st.integers(5, 40))
def test_the_refusal_tells_the_truth(kind: str, text: str, limit: int) -> None:
    num_tokens = len(build(kind).encode(text).ids)
    work = Work("error", "input", True, False, limit)
    if num_tokens == 0:
        with pytest.raises(EmptyInput):
            build_ours(kind, limit)._encode_text(text, work)
        return
    if num_tokens <= limit:
        assert build_ours(kind, limit)._encode_text(text, work).num_tokens == num_tokens
        return
    with pytest.raises(InputTooLong) as caught:
        build_ours(kind, limit)._encode_text(text, work)
    said = caught.value.message.partition(" tokens;")[0]
    assert said in (f"has {num_tokens}", f"has more than {limit}")


BORDERS = {
    "WordPiece": ["one| two", "one|, two|,|two", "[|[|[", "a|日|本|語", "don't", "é| é"],
    "byte-level BPE": ["one| two", "one|, two", "[[[", "日本語", "don't", "end|\n\n"],
    "digits by three": ["one| two", "one|, two", "[[[", "日本語", "don't", "end|\n\n"],
    "whole BPE": ["one| two", "[[[", "日本語", "don't"],
    "Unigram": ["one| two", "[[[", "日本語", "don't"],
    "across words": ["one two, three"],
    "WordLevel": ["one two, three"],
}


@pytest.mark.parametrize(("kind", "marked"), [(kind, text) for kind, texts in BORDERS.items() for text in texts])
def test_where_borders_are(kind: str, marked: str) -> None:
    text = marked.replace("|", "")
    borders = find_borders(build(kind))
    places = {0, *(found.end() for found in borders.pattern.finditer(text)), len(text)}
    pieces = [text[first:last] for first, last in pairwise(sorted(places))]
    assert "|".join(pieces) == marked


@pytest.mark.parametrize(
    ("token", "crossed"),
    [
        ("Ġword", ""),
        ("aĠb", " "),
        ("ĊĠĠ", ""),
        ("▁▁", ""),
        ("▁a▁", " "),
        ("a b", " "),
        ("a,", ","),
        ("'", ""),
        ("日、", "、"),
    ],
)
def test_tokens_that_cross_words(token: str, crossed: str) -> None:
    raw = RawTokenizer(models.BPE({token: 0}, []))
    assert set(BREAKS) - set(find_uncrossed(raw)) == set(crossed)


def test_tokens_that_end_within_a_character() -> None:
    """Byte-level vocabularies have them: here the last bytes of one, and the first two of the ideographic comma."""
    written = {byte: char for char, byte in CHARACTER_BYTES.items()}
    token = "".join(written[byte] for byte in b"\xac\xe3\x80")
    assert set(BREAKS) - set(find_uncrossed(RawTokenizer(models.BPE({token: 0}, [])))) == set("、。")


@pytest.mark.parametrize("side", ["right", "left"])
def test_what_has_no_breaks_is_refused_unread(side: TruncationSide) -> None:
    with pytest.raises(InputTooLong, match="300,000 characters, and 131,072 in a row without a break between words"):
        build_ours("byte-level BPE", 8)._encode_text("x" * 300_000, Work(side, "input", True, False, 8))
    assert cut_text("x" * UNBROKEN_CHARS, 12, side, find_borders(build("byte-level BPE"))).is_whole


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "whole BPE", "Unigram"])
@pytest.mark.parametrize("truncation", ["right", "left", "error"])
def test_little_is_read_of_a_long_text(kind: str, truncation: Truncation, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, sizes = build_ours(kind, 12), []
    read = ours._read
    monkeypatch.setattr(ours, "_read", lambda heads, work: sizes.append(len(heads[0].text)) or read(heads, work))
    text = "there lived three dragons in a land " * 10_000
    try:
        ours._encode_text(text, Work(truncation, "input", True, False, 12))
    except InputTooLong as error:
        assert truncation == "error" and "has more than 12 tokens; the limit is 12" in error.message
    assert sum(sizes) <= 12 * 8 * 5


@pytest.mark.parametrize("side", ["right", "left"])
def test_cut_between_words(side: TruncationSide) -> None:
    text, borders = "one two three four five six", Borders(re.compile("\\w(?= )"), 0)
    head = cut_text(text, 22, side, borders)
    assert (head.text, head.is_whole) == ("one two three four" if side == "right" else " three four five six", False)
    assert head.text[head.first : head.last] == ("one two three" if side == "right" else " four five six")
    assert cut_text("x" * 50, 12, side, borders).is_whole
    assert cut_text(text, 100, side, borders) == (text, True, 0, len(text))
    with pytest.raises(AssertionError, match="Nothing could be read"):
        cut_text(text, 0, side, borders)  # once it never ended


@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=2), budget=st.integers(1, 20))
def test_shares_are_the_librarys(counts: list[int], budget: int) -> None:
    raw = RawTokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.enable_truncation(budget, strategy="longest_first")
    encoding = raw.encode(*("a " * count for count in counts))
    assert share_budget(counts, budget) == [encoding.sequence_ids.count(owner) for owner in range(len(counts))]
