"""What processors leave of a row of logits, against transformers' processors on the same tokens."""

from collections.abc import Sequence as Seq
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from runtime.batch import SparseBias
from runtime.sampling import adjust_logits
from server.engine.batchers.part import Part
from server.engine.batchers.sampling_rows import build_bias, build_sampling, collect_row_rules, list_rows
from server.engine.batchers.sequences import Generation
from server.engine.batchers.sources import Source
from server.wire.generation import GenerationParams
from server.wire.processors import (
    AllowedTokens,
    BadWords,
    ForcedBegin,
    ForcedEnd,
    LogitBias,
    MinTokens,
    NoRepeatNgrams,
    NoSourceNgrams,
    Processor,
    SuppressedAtBegin,
    SuppressedTokens,
    Timestamps,
)

VOCAB_SIZE, MAX_TOKENS = 40, 6
STOP, NO_TIMESTAMPS = 20, 22
"""Text is before the stop token, and timestamps behind the other one."""
SOURCE = [0, 1, 2, 3, 1, 0, 0, 2]


def make_part(prompt: Seq[int], answer: Seq[int], drafts: Seq[int], params: GenerationParams) -> Part:
    """The newest token, and drafts behind it."""
    source = Source({"input_ids": np.array(SOURCE, np.int32)})
    generation = Generation(list(prompt), params, (0, 0.0, 0, 0), 1e9, source=source)
    sequence = generation.live[0]
    sequence.token_ids.extend(answer)
    generation.has_forked = bool(answer)
    return Part(generation, sequence, len(sequence.token_ids) - 1, 1 + len(drafts), tuple(drafts))


def process(logits: Tensor, parts: Seq[Part]) -> Tensor:
    processed = logits.clone()
    adjust_logits(processed, build_sampling(list_rows(parts), VOCAB_SIZE))
    return processed


def make_reference(processor: Processor, num_prompt_tokens: int) -> LogitsProcessor:
    match processor:
        case LogitBias(ids, values):
            return SequenceBiasLogitsProcessor({(token,): value for token, value in zip(ids, values, strict=True)})
        case BadWords(words):
            return NoBadWordsLogitsProcessor([list(word) for word in words])
        case MinTokens(count):
            return MinNewTokensLengthLogitsProcessor(num_prompt_tokens, count, [STOP])
        case SuppressedTokens(ids):
            return SuppressTokensLogitsProcessor(ids)
        case AllowedTokens(ids):
            return SuppressTokensLogitsProcessor([each for each in range(VOCAB_SIZE) if each not in ids])
        case SuppressedAtBegin(ids, place):
            return SuppressTokensAtBeginLogitsProcessor(ids, num_prompt_tokens + place)
        case NoRepeatNgrams(size):
            return NoRepeatNGramLogitsProcessor(size)
        case NoSourceNgrams(size):
            return EncoderNoRepeatNGramLogitsProcessor(size, torch.tensor([SOURCE]))
        case ForcedBegin(token):
            return ForcedBOSTokenLogitsProcessor(token)
        case ForcedEnd(ids):
            return ForcedEOSTokenLogitsProcessor(num_prompt_tokens + MAX_TOKENS, list(ids))
        case Timestamps():
            return make_whisper_reference(processor, num_prompt_tokens)


def make_whisper_reference(processor: Timestamps, num_prompt_tokens: int) -> LogitsProcessor:
    config = GenerationConfig(eos_token_id=processor.end_id)
    config.no_timestamps_token_id = processor.no_timestamps_id
    config.max_initial_timestamp_index = processor.max_initial_index
    return WhisperTimeStampLogitsProcessor(config, begin_index=num_prompt_tokens)


def process_by_transformers(logits: Tensor, part: Part) -> Tensor:
    """Of the row behind each token from the newest on: [1 + num_drafts, vocab_size]."""
    generation, rows = part.generation, []
    num_prompt_tokens = generation.num_prompt_tokens
    processors = LogitsProcessorList([make_reference(each, num_prompt_tokens) for each in generation.params.processors])
    for count in range(len(part.drafts) + 1):
        ids = torch.tensor([[*part.sequence.token_ids, *part.drafts[:count]]])
        rows.append(processors(ids, logits[count : count + 1]))
    return torch.cat(rows)


text = st.integers(0, 3)
ids = st.lists(st.integers(0, STOP), min_size=1, max_size=4, unique=True).map(tuple)
# More than the others can forbid together.
allowed_ids = st.sets(st.integers(0, VOCAB_SIZE - 1), min_size=VOCAB_SIZE - 2).map(lambda found: tuple(sorted(found)))
words = st.lists(st.lists(text, min_size=1, max_size=4).map(tuple), min_size=1, max_size=6, unique=True).map(tuple)
counts = st.integers(0, 3)
biases = st.dictionaries(st.integers(0, VOCAB_SIZE - 1), st.floats(-4, 4), min_size=1, max_size=4)
plain_processors: list[st.SearchStrategy[Processor]] = [
    biases.map(lambda found: LogitBias(tuple(found), tuple(found.values()))),
    st.builds(BadWords, words),
    st.builds(MinTokens, counts),
    st.builds(NoRepeatNgrams, st.integers(1, 4)),
    st.builds(NoSourceNgrams, st.integers(1, 4)),
    st.builds(SuppressedTokens, ids),
    st.builds(AllowedTokens, allowed_ids),
    st.builds(SuppressedAtBegin, ids, st.integers(0, 1)),
]
# Nothing that the others forbid, which transformers would forbid as well: no token at all would be left.
forced_ids = st.integers(STOP + 1, VOCAB_SIZE - 1)
forced_processors: list[st.SearchStrategy[Processor]] = [
    st.builds(ForcedBegin, forced_ids),
    st.builds(ForcedEnd, st.lists(forced_ids, min_size=1, max_size=2, unique=True).map(tuple)),
]
timestamps = st.builds(
    Timestamps,
    st.just(NO_TIMESTAMPS + 1),
    st.just(NO_TIMESTAMPS),
    st.just(STOP),
    st.sampled_from([None, 0, 3]),
)


def draw_logits(num_rows: int, seed: int) -> Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3


@st.composite
def parts(draw: st.DrawFn, tokens: st.SearchStrategy[int], processors: list[st.SearchStrategy[Processor]]) -> Part:
    """Each processor at most once, in their order."""
    chosen = tuple(draw(each) for each in processors if draw(st.booleans()))
    drafts = draw(st.lists(tokens, max_size=2))
    answer = draw(st.lists(tokens, max_size=MAX_TOKENS - 1 - len(drafts)))
    # transformers forces the first token behind a prompt of one only.
    prompt = draw(
        st.lists(tokens, min_size=1, max_size=1 if any(isinstance(each, ForcedBegin) for each in chosen) else 5)
    )
    return make_part(prompt, answer, drafts, GenerationParams(MAX_TOKENS, stop_token_ids=(STOP,), processors=chosen))


@settings(deadline=None, max_examples=30)
@given(st.lists(parts(text, plain_processors + forced_processors), min_size=1, max_size=3), st.integers(0, 99))
def test_processors_are_those_of_transformers(asked: list[Part], seed: int) -> None:
    check_against_transformers(asked, seed)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        parts(st.one_of(text, st.integers(STOP, VOCAB_SIZE - 1)), [*plain_processors[5:], timestamps]),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 99),
)
def test_timestamps_are_those_of_transformers(asked: list[Part], seed: int) -> None:
    check_against_transformers(asked, seed)


def check_against_transformers(asked: list[Part], seed: int) -> None:
    logits = draw_logits(sum(1 + len(part.drafts) for part in asked), seed)
    processed, first = process(logits, asked), 0
    for part in asked:
        end = first + 1 + len(part.drafts)
        expected = process_by_transformers(logits[first:end], part)
        torch.testing.assert_close(processed[first:end], expected, rtol=1e-6, atol=1e-6)
        first = end


@pytest.mark.parametrize("scale", [0.0, 20.0])
def test_timestamps_win_together_over_every_text(scale: float) -> None:
    """Of a flat row, though none of them does alone; not where a text is most of the mass."""
    logits = draw_logits(1, seed=1)
    logits[:, 1] = logits.amax() + 0.1 + scale
    params = GenerationParams(9, processors=(Timestamps(NO_TIMESTAMPS + 1, NO_TIMESTAMPS, STOP),))
    part = make_part([0], [NO_TIMESTAMPS + 1, 5], [], params)
    is_text_left = process(logits, [part])[0, :NO_TIMESTAMPS].isfinite().any()
    assert bool(is_text_left) == (scale > 0)


def test_what_is_forced_overrides_what_is_forbidden_in_whatever_order() -> None:
    processors: tuple[Processor, ...] = (MinTokens(9), ForcedEnd((STOP,)), BadWords(((STOP,),)), NoRepeatNgrams(1))
    for order in (processors, processors[::-1]):
        part = make_part([STOP], [1] * (MAX_TOKENS - 1), [], GenerationParams(MAX_TOKENS, processors=order))
        processed = process(draw_logits(1, seed=0), [part])
        assert processed.argmax() == STOP and processed.isfinite().sum() == 1


def test_words_are_looked_for_in_prompt_answer_and_drafts() -> None:
    """Only as much of the drafts as a row stands behind."""
    params = GenerationParams(9, processors=(BadWords(((1, 2, 3, 4), (5,))),))
    assert list_banned(make_part([0, 1], [2], (3, 8), params)) == [[5], [4, 5], [5]]
    params = GenerationParams(9, processors=(BadWords(((1, 2, 6), (0, 1, 2, 7), (0, 2, 8))),))
    assert list_banned(make_part([0, 1], [2], (), params)) == [[6, 7]]


def list_banned(part: Part) -> list[list[int]]:
    rows = list_rows([part])
    bias = build_bias(collect_row_rules(rows))
    assert isinstance(bias, SparseBias)
    banned = np.isneginf(bias.values)
    return [sorted(bias.ids[banned & (bias.rows == place)].tolist()) for place in range(len(rows))]


def test_rows_without_rules_have_no_arrays() -> None:
    """As nearly all steps."""
    params: list[dict[str, Any]] = [{}, {"processors": (MinTokens(1), SuppressedAtBegin((4,)), NoRepeatNgrams(4))}]
    asked = [make_part([3], [5], [], GenerationParams(9, stop_token_ids=(7,), **each)) for each in params]
    sampling = build_sampling(list_rows(asked), VOCAB_SIZE)
    assert (sampling.bias, sampling.ranges, sampling.only, sampling.timestamps) == (None, None, None, None)
