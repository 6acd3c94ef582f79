"""Logits processors: what a job that generates wants of the tokens that come next, one small rule each.

They cross the wire as they are; `engine/batchers/logits_processors.py` says what they mean for a row of logits. All
hold at once, in whatever order they are listed, but a token that is forced overrides all others. Names and rules are
those of transformers' processors, so that a model's `generation_config.json` means the same here.
"""

import msgspec


class LogitBias(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Numbers added to the logits of single tokens: `values[i]` to that of `token_ids[i]`."""

    token_ids: tuple[int, ...]
    values: tuple[float, ...]


class BadWords(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Runs of tokens that must not be generated, none of them empty."""

    words: tuple[tuple[int, ...], ...]


class MinTokens(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """No stop token before `count` others."""

    count: int


class SuppressedTokens(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Tokens that never come."""

    token_ids: tuple[int, ...]


class AllowedTokens(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """No other tokens ever come. Ascending."""

    token_ids: tuple[int, ...]


class SuppressedAtBegin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Tokens that do not come first. `place`: behind so many generated ones; 1 where `ForcedBegin` is the first."""

    token_ids: tuple[int, ...]
    place: int = 0


class NoRepeatNgrams(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """No run of `size` tokens (at least 1) twice, those of the prompt included."""

    size: int


class NoSourceNgrams(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """No run of `size` tokens (at least 1) that the source of an encoder-decoder has
    (`encoder_no_repeat_ngram_size`)."""

    size: int


class ForcedBegin(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """The first generated token, such as the language of a translation (`forced_bos_token_id`)."""

    token_id: int


class ForcedEnd(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """One of these is the token that max_tokens ends the answer with (`forced_eos_token_id`)."""

    token_ids: tuple[int, ...]


class Timestamps(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Whisper's rules of timestamps, the tokens from `begin_id` on: they come in pairs and ascend, the first token is
    one, and so is the next where they are together more probable than every other token (Radford et al., 2022).

    `end_id`: the first token that is no text, which may stand behind a lone timestamp. `max_initial_index`: the last
    timestamp, counted from `begin_id`, that may be the first token; None: any.
    """

    begin_id: int
    no_timestamps_id: int
    end_id: int
    max_initial_index: int | None = None


Processor = (
    LogitBias
    | BadWords
    | MinTokens
    | SuppressedTokens
    | AllowedTokens
    | SuppressedAtBegin
    | NoRepeatNgrams
    | NoSourceNgrams
    | ForcedBegin
    | ForcedEnd
    | Timestamps
)
