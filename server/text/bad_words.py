"""Words that must not be generated, as the runs of tokens they are: at the beginning of a text and after a blank."""

from collections.abc import Sequence

from server.errors import InvalidField
from server.text.tokenizer import Tokenizer
from server.wire.job import TokenSequence

MAX_WORD_TOKENS = 64
MAX_TOTAL_TOKENS = 4096
"""Of all spellings together. In every step, each answer's last tokens are compared with each of them."""


async def encode_bad_words(words: Sequence[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Each word with and without a blank before it, which for most vocabularies are different tokens.

    Raises InvalidField and its kinds, naming bad_words.
    """
    sequences: list[TokenSequence] = []
    for blank in ("", " "):
        spellings = [blank + word.lstrip() for word in words]
        encoded = await tokenizer.encode(spellings, truncation="error", field="bad_words", add_special_tokens=False)
        check_lengths(encoded)
        sequences += encoded
    runs = [tuple(sequence.input_ids.tolist()) for sequence in sequences]
    # Where the blank is a token of its own, the word after it is the word that is forbidden already.
    unique = dict.fromkeys(run for run in runs if run and tokenizer.texts.find_bytes(run[0]).strip())
    num_tokens = sum(map(len, unique))
    if num_tokens > MAX_TOTAL_TOKENS:
        raise InvalidField(
            f"bad_words have {num_tokens} tokens together, each with and without a blank before it; the limit is "
            f"{MAX_TOTAL_TOKENS}, leave some out",
            param="bad_words",
        )
    return tuple(unique)


def check_lengths(sequences: Sequence[TokenSequence]) -> None:
    """Raises InvalidField."""
    for index, sequence in enumerate(sequences):
        if sequence.num_tokens > MAX_WORD_TOKENS:
            raise InvalidField(
                f"bad_words[{index}] has {sequence.num_tokens} tokens; the limit is {MAX_WORD_TOKENS}, shorten it",
                param="bad_words",
            )
