"""Grammars over a tokenizer of single bytes: what may come next, and what cannot be followed is said so, at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.engine.batchers.sequences import Matcher
from server.errors import Unservable
from server.text import grammar
from server.text.grammar import GrammarFactory, load_grammars

END = 256
TOO_COMPLEX = "(a{1000}){1000}"


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> GrammarFactory:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    directory = tmp_path_factory.mktemp("bytes")
    tokenizer.save(str(directory / "tokenizer.json"))
    return GrammarFactory(directory, END + 1, (END,))


def test_model_whose_tokens_cannot_be_read_has_no_grammars(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is served all the same; before, its engine was started again and again."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))  # and no decoder
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert load_grammars(tmp_path, 2, ()) is None
    assert "cannot be held to a grammar" in caplog.text


def allowed(matcher: Matcher) -> list[int]:
    bits = np.unpackbits(matcher.compute_mask().view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def write(factory: GrammarFactory, matcher: Matcher, text: str) -> None:
    for token_id in factory.tokenizer.tokenize_str(text):
        assert token_id in allowed(matcher)
        matcher.accept(token_id)


def test_only_what_conforms_is_allowed(factory: GrammarFactory) -> None:
    matcher = factory.make_matcher("regex", "yes|no")
    firsts = [factory.tokenizer.tokenize_str(letter)[0] for letter in "yn"]
    assert sorted(allowed(matcher)) == sorted(firsts)
    other = matcher.fork()
    write(factory, matcher, "yes")
    write(factory, other, "no")
    assert allowed(matcher) == allowed(other) == [END]


def test_json_schema_is_followed(factory: GrammarFactory) -> None:
    schema = '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": false}'
    matcher = factory.make_matcher("json_schema", schema)
    write(factory, matcher, '{"a":1}')
    assert allowed(matcher) == [END]


def test_forbidden_token_is_our_bug(factory: GrammarFactory) -> None:
    matcher = factory.make_matcher("regex", "yes")
    with pytest.raises((ValueError, Unservable)):
        matcher.accept(factory.tokenizer.tokenize_str("n")[0])


@pytest.mark.parametrize(
    ("kind", "text", "field"), [("regex", r"[^\s\S]", "regex"), ("json_schema", '{"$ref": "#"}', "response_format")]
)
def test_grammar_that_nothing_conforms_to_is_refused(factory: GrammarFactory, kind: str, text: str, field: str) -> None:
    """It would otherwise end at once, as if that were an answer."""
    with pytest.raises(Unservable, match="nothing conforms to it") as caught:
        factory.make_matcher(kind, text)
    assert caught.value.param == "grammar"


@pytest.mark.parametrize("text", [TOO_COMPLEX, r"(\p{L}{1,50}){200}", r"(\w{1,100}){100}"])
def test_costly_grammar_ends_with_an_error_and_not_with_half_an_answer(factory: GrammarFactory, text: str) -> None:
    rng = np.random.default_rng(0)
    letters = factory.tokenizer.tokenize_str("abcdefgh")
    with pytest.raises(Unservable, match="too complex to follow; simplify it") as caught:
        matcher = factory.make_matcher("regex", text)
        for _ in range(20_000):
            choices = [token_id for token_id in letters if token_id in allowed(matcher)]
            assert END not in allowed(matcher) and choices, "It ends without conforming."
            matcher.accept(int(rng.choice(choices)))
    assert caught.value.param == "grammar"


def test_broken_grammar_names_its_field(factory: GrammarFactory) -> None:
    with pytest.raises(Unservable, match=r"the regex is wrong or not supported: .*unclosed") as caught:
        factory.make_matcher("regex", "(a")
    assert caught.value.param == "grammar"


def test_grammars_are_compiled_once(factory: GrammarFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    make = grammar.LLMatcher

    class Counting:
        grammar_from_regex = make.grammar_from_regex

        def __new__(cls, *given: Any, **options: Any) -> Any:
            compiled.append(given)
            return make(*given, **options)

    monkeypatch.setattr(grammar, "LLMatcher", Counting)
    first, second = (factory.make_matcher("regex", "(once|one) more") for _ in range(2))
    assert len(compiled) == 1
    write(factory, first, "once more")
    third = factory.make_matcher("regex", "(once|one) more")
    write(factory, second, "one more")
    write(factory, third, "once")
    assert allowed(first) == allowed(second) == [END] != allowed(third)
    for number in range(grammar.MAX_COMPILED):
        factory.make_matcher("regex", f"{number}")
    factory.make_matcher("regex", "(once|one) more")
    assert len(compiled) == grammar.MAX_COMPILED + 2, "The oldest is forgotten."
    for _ in range(2):
        with pytest.raises(Unservable):
            factory.make_matcher("regex", "(a")
