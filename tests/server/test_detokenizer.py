"""Tokens to text one by one: whatever the pieces, together they are what the library decodes at once."""

import pytest
from fake_generator import build_byte_fallback, build_byte_level, build_word_ends, build_word_piece
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.detokenizer import Detokenizer, TokenTexts, decode, detokenize

RAW = {
    "byte-level": build_byte_level(),
    "byte fallback": build_byte_fallback(),
    "byte fallback, metaspace": build_byte_fallback(by_metaspace=True),
    "word pieces": build_word_piece(),
    "word ends": build_word_ends(),
    "word ends, step by step": build_word_ends(by_steps=True),
}
TEXTS = {name: TokenTexts(raw) for name, raw in RAW.items()}
SOME_TEXT = st.text(st.sampled_from("abthe éü你好😀\n."), max_size=30)


def draw_ids(data: st.DataObject, name: str, max_size: int = 12) -> list[int]:
    """Any tokens, or those of a text."""
    size = RAW[name].get_vocab_size()
    if data.draw(st.booleans()):
        return data.draw(st.lists(st.integers(0, size + 3), max_size=max_size))
    return list(RAW[name].encode(data.draw(SOME_TEXT), add_special_tokens=False).ids)


@pytest.mark.parametrize("name", RAW)
@settings(max_examples=100, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_as_decoded_at_once(name: str, data: st.DataObject, skip: bool) -> None:
    ids = draw_ids(data, name)
    whole = decode(RAW[name], ids, skip_special_tokens=skip)
    if "\ufffd" not in whole or name == "byte-level":
        assert detokenize(TEXTS[name], ids, skip_special_tokens=skip) == whole


@pytest.mark.parametrize("name", RAW)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_stream_goes_on_where_the_prompt_ends(name: str, data: st.DataObject) -> None:
    prompt, ids = draw_ids(data, name, 30), draw_ids(data, name)
    whole = decode(RAW[name], prompt + ids, skip_special_tokens=True)
    said = Detokenizer(TEXTS[name])
    complete = "".join(said.push(token_id) for token_id in prompt)
    stream = Detokenizer(TEXTS[name])
    stream.prime(prompt)
    text = "".join(stream.push(token_id) for token_id in ids) + stream.finish()
    if "\ufffd" not in whole:
        # A character that the prompt begins and the answer ends is the answer's.
        assert text == whole[len(complete) :]


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=12))
def test_bytes_are_read_as_utf_8_whatever_they_are(raw: bytes) -> None:
    """The library gives up a whole run of byte tokens for one that is wrong; the rest is text all the same."""
    ids = [RAW["byte fallback"].token_to_id(f"<0x{byte:02X}>") for byte in raw]
    first_blank = raw[1:] if raw.startswith(b" ") else raw
    assert detokenize(TEXTS["byte fallback"], ids) == first_blank.decode("utf-8", "replace")


def test_no_character_is_split() -> None:
    ids = RAW["byte-level"].encode("😀é", add_special_tokens=False).ids
    assert len(ids) > 2, "or there is nothing to see here"
    stream = Detokenizer(TEXTS["byte-level"])
    pieces = [stream.push(token_id) for token_id in ids]
    assert [piece for piece in pieces if piece] == ["😀", "é"]
    assert stream.finish() == ""
    assert [stream.push(ids[0]), stream.finish()] == ["", "\ufffd"]


def test_copies_go_on_by_themselves() -> None:
    """All answers to a prompt may begin with the rest of its last character."""
    *begin, last = RAW["byte-level"].encode("😀", add_special_tokens=False).ids
    prompt = Detokenizer(TEXTS["byte-level"])
    prompt.prime(begin)
    copies = [prompt.copy() for _ in range(2)]
    assert [copy.push(last) for copy in copies] == ["😀", "😀"]
    assert copies[0].copy().finish() == "" and prompt.finish() == "\ufffd"
    the = RAW["byte fallback"].token_to_id("▁the")
    first = Detokenizer(TEXTS["byte fallback"])
    assert [first.copy().push(the), first.copy().push(the)] == ["the", "the"]


def test_only_the_first_word_loses_its_blank() -> None:
    texts = TEXTS["byte fallback"]
    the = RAW["byte fallback"].token_to_id("▁the")
    assert detokenize(texts, [the, the]) == "the the"
    for prompt, expected in (([], "the"), ([1], "the"), ([the], " the"), ([the, 1], " the")):
        stream = Detokenizer(texts)
        stream.prime(prompt)
        assert stream.push(the) == expected


@pytest.mark.parametrize("name", ["word ends", "word ends, step by step"])
def test_a_blank_behind_a_word_comes_with_the_next_one(name: str) -> None:
    the, th, e = (RAW[name].token_to_id(piece) for piece in ("the</w>", "th", "e</w>"))
    stream = Detokenizer(TEXTS[name])
    assert [stream.push(token_id) for token_id in (the, th, e, 2, the)] == ["the", " th", "e", "", " the"]
    assert stream.finish() == "", "nothing comes behind the last one"
    assert [TEXTS[name].name(the), TEXTS[name].name(th)] == ["the ", "th"]


@pytest.mark.parametrize("name", RAW)
def test_whole_texts_may_have_nothing_to_show(name: str) -> None:
    """As an answer that is nothing but its end."""
    ids = [4, 5] if name == "word pieces" else [30, 31]
    written = TEXTS[name].write([[0], [], ids], skip_special_tokens=True)
    assert written == ["", "", RAW[name].decode(ids)]


@pytest.mark.parametrize("by_steps", [False, True])
def test_a_token_may_be_nothing_but_a_blank(by_steps: bool) -> None:
    """As a real translator's is, where the library panics at this token alone."""
    raw = build_word_ends(by_steps=by_steps, has_lone_end=True)
    texts, end, the = TokenTexts(raw), raw.token_to_id("</w>"), raw.token_to_id("the</w>")
    assert texts.write([[end], [the, end, the]], skip_special_tokens=True) == ["", raw.decode([the, end, the])]
    assert (detokenize(texts, [end]), detokenize(texts, [the, end, the])) == ("", raw.decode([the, end, the]))


def test_names_and_bytes() -> None:
    texts = TEXTS["byte-level"]
    partial = RAW["byte-level"].token_to_id("ð")
    assert texts.name(2) == "</s>" and texts.find_bytes(2) == b"</s>"
    assert texts.name(partial) == "bytes:\\xf0" and texts.find_bytes(partial) == b"\xf0"
    assert TEXTS["byte fallback"].name(RAW["byte fallback"].token_to_id("▁the")) == " the"
    assert TEXTS["byte fallback"].name(RAW["byte fallback"].token_to_id("<0xF0>")) == "bytes:\\xf0"


def test_without_a_tokenizer_there_is_no_text() -> None:
    texts = TokenTexts(None)
    assert detokenize(texts, [1, 2, 3]) == "" and texts.name(5) == "token_id:5" and texts.find_bytes(5) == b""
