"""Words that must not be generated, as the runs of tokens they are: at the beginning of a text and after a blank."""

from collections.abc import Sequence

from server.text.tokenizer import Tokenizer


async def encode_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word with and without a blank before it, which for most vocabularies are different tokens.

    Raises InvalidField and its kinds, naming bad_words.
    """
    spellings: list[str] = []
    for word in words:
        spellings += [word.lstrip(), f" {word.lstrip()}"]
    sequences = await tokenizer.encode(spellings, truncation="error", field="bad_words", add_special_tokens=False)
    runs = [tuple(sequence.input_ids.tolist()) for sequence in sequences]
    # Where the blank is a token of its own, the word after it is the word that is forbidden already.
    return tuple(dict.fromkeys(run for run in runs if run and tokenizer.texts.find_bytes(run[0]).strip()))
