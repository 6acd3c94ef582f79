"""Encoder-decoders, block by block: sources are encoded once, read by all answers, and gone with their request."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Unservable
from server.wire.generation import GenerationParams
from tests.generation.continuous import VOCAB_SIZE, Continuous, expected_answer, make_job

SOURCE = list(range(40))
START = [7]


def start(run: Continuous, source: list[int], params: GenerationParams):  # type: ignore[no-untyped-def]
    return run.start_job(make_job([START], params, sources=[source]))


def greedy(max_tokens: int, **options: object) -> GenerationParams:
    return GenerationParams(max_tokens, temperature=0.0, **options)  # type: ignore[arg-type]


sources = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=64)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(sources, st.integers(1, 40), st.sampled_from([1, 1, 3])), min_size=1, max_size=12),
    st.integers(14, 40),
    st.integers(4, 64),
    st.sampled_from([0, 3]),
    st.booleans(),
    st.sampled_from([0.0, 0.005]),
)
def test_answers_are_those_of_each_alone(
    requests: list[tuple[list[int], int, int]], blocks: int, budget: int, drafts: int, has_cache: bool, step_s: float
) -> None:
    """Through preemptions, drafts and steps that go on by themselves; sources share the budget, or go alone where one
    is larger than it."""
    options = {"num_blocks": blocks, "max_batch_tokens": budget, "has_prefix_cache": has_cache}
    run = Continuous(**options, num_drafts=drafts, step_s=step_s)
    requests = [*requests, *requests[:2]]
    heard = [start(run, source, greedy(count, num_sequences=answers)) for source, count, answers in requests]
    run.run()
    for (source, count, answers), each in zip(requests, heard, strict=True):
        expected = expected_answer([*source, *START], count)
        assert each.answers == dict.fromkeys(range(answers), expected)


def test_a_source_is_encoded_once_for_all_of_its_answers() -> None:
    run = Continuous(has_prefix_cache=False)
    heard = start(run, SOURCE, greedy(9, num_sequences=4))
    run.run()
    assert run.source_sizes == [40] + [0] * 8
    assert len(heard.answers) == 4


def test_the_same_source_is_found_encoded() -> None:
    """With its last block, which is not full; beside who still reads it, and after all of them have gone."""
    run = Continuous()
    heard = [start(run, SOURCE, greedy(9))]
    run.step()
    assert run.allocator.num_used_blocks == 3 + 1
    heard.append(start(run, SOURCE, greedy(4)))
    run.step()
    assert run.allocator.num_used_blocks == 3 + 2 and run.source_sizes == [40, 0]
    run.run()
    heard.append(start(run, SOURCE, greedy(5)))
    run.run()
    assert sum(run.source_sizes) == 40
    for each, count in zip(heard, (9, 4, 5), strict=True):
        assert each.answers[0] == expected_answer([*SOURCE, *START], count)
    running = run.batcher.running
    assert (running.num_prompt_tokens, running.num_cached_tokens) == (3 * 41, 2 * 40)


def test_only_the_same_source_of_the_same_key_is_found() -> None:
    run = Continuous()
    for source, salt in ((SOURCE, ""), (SOURCE, "other"), ([*SOURCE[:-1], 0], ""), (SOURCE[:32], "")):
        run.start_job(make_job([START], greedy(2), sources=[source], salt=salt))
        run.run()
    assert sum(run.source_sizes) == 40 + 40 + 40 + 32


def test_a_source_of_which_a_block_was_taken_is_encoded_again() -> None:
    run = Continuous(num_blocks=9)
    start(run, SOURCE, greedy(2))
    run.run()
    start(run, list(range(20, 94)), greedy(2))  # five blocks, and one for the answer
    run.run()
    again = start(run, SOURCE, greedy(2))
    run.run()
    assert sum(run.source_sizes) == 40 + 74 + 40
    assert again.answers[0] == expected_answer([*SOURCE, *START], 2)


def test_what_is_left_of_a_source_gives_way_to_the_new_one() -> None:
    """Else the next one who asks would find neither."""
    run = Continuous(num_blocks=9)
    start(run, SOURCE, greedy(2))
    run.run()
    start(run, list(range(20, 94)), greedy(2))
    run.run()
    held = start(run, SOURCE, greedy(30))
    run.step()
    start(run, SOURCE, greedy(2))
    run.step()
    assert sum(run.source_sizes) == 40 + 74 + 40 and run.allocator.num_used_blocks == 3 + 2
    run.run()
    assert held.answers[0] == expected_answer([*SOURCE, *START], 30)


def test_who_gives_way_finds_its_source_again() -> None:
    run = Continuous(num_blocks=8)
    first = start(run, SOURCE[:16], greedy(60))
    second = start(run, SOURCE[:20], greedy(60))
    run.run()
    assert run.batcher.num_preemptions and sum(run.source_sizes) == 36
    assert first.answers[0] == expected_answer([*SOURCE[:16], *START], 60)
    assert second.answers[0] == expected_answer([*SOURCE[:20], *START], 60)


def test_beams_share_their_source() -> None:
    run = Continuous(has_prefix_cache=False, num_blocks=16)
    start(run, SOURCE, GenerationParams(5, beam_width=4))
    for _ in range(4):
        run.step()
        assert 3 < run.allocator.num_used_blocks <= 3 + 4
    assert sum(run.source_sizes) == 40
    run.run()


def test_who_ends_early_frees_its_source_at_once() -> None:
    run = Continuous(has_prefix_cache=False)
    start(run, SOURCE[:20], greedy(2))
    start(run, SOURCE[:30], greedy(6))
    run.step()
    assert run.allocator.num_used_blocks == 2 * (2 + 1)
    run.step()
    assert run.allocator.num_used_blocks == 2 + 1
    run.run()


def test_who_is_cancelled_frees_its_source_at_once() -> None:
    run = Continuous(has_prefix_cache=False)
    heard = start(run, SOURCE, greedy(50))
    run.step()
    heard.stream.cancel()
    assert run.allocator.num_used_blocks == 0


def test_sources_come_in_while_others_decode() -> None:
    run = Continuous(has_prefix_cache=False, max_batch_tokens=64)
    first = start(run, SOURCE, greedy(20))
    run.step()
    second = start(run, SOURCE[:30], greedy(3))
    run.step()
    assert run.source_sizes == [40, 30] and run.batch_sizes == [1, 2]
    assert len(first.answers[0]) == 2 and len(second.answers[0]) == 1
    run.run()


def test_no_source_waits_for_ever_for_those_who_decode() -> None:
    """As large as the budget, of which those have a part."""
    run = Continuous(has_prefix_cache=False, max_batch_tokens=40)
    start(run, SOURCE, greedy(60))
    run.step()
    start(run, SOURCE, greedy(2))
    run.step()
    assert run.source_sizes[1] == 40
    run.run()


def test_a_source_that_never_has_room_is_refused() -> None:
    run = Continuous(has_prefix_cache=False, num_blocks=4)
    with pytest.raises(Unservable, match="need room for 80 tokens"):
        start(run, SOURCE, greedy(20))


def test_a_failed_step_encodes_again() -> None:
    run = Continuous(has_prefix_cache=False)
    assert run.engine.__class__.__name__ == "NullDecoder"
    run.engine.fail_token_id = 5  # type: ignore[attr-defined]
    fine = start(run, SOURCE, greedy(3))
    bad = run.start_job(make_job([[5]], greedy(3), sources=[SOURCE[:20]]))
    run.run()
    assert bad.error is not None
    assert fine.answers[0] == expected_answer([*SOURCE, *START], 3)
    assert run.source_sizes[:2] == [60, 40]


@pytest.mark.parametrize("num_requests", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_thousands_of_requests_with_cancels_leak_nothing(num_requests: int) -> None:
    rng = random.Random(0)
    run = Continuous(num_blocks=14, max_batch_tokens=48)
    open_requests = []
    for number in range(num_requests):
        source = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 48))]
        if rng.random() < 0.3:
            source = SOURCE  # what many ask about
        width = rng.choice([0, 0, 0, 3])
        params = GenerationParams(
            rng.choice([1, 2, 5, 12, 40] if number % 10 == 0 else [1, 2, 5]),
            temperature=rng.choice([0.0, 1.0]),
            num_sequences=1 if width else rng.choice([1, 1, 3]),
            beam_width=width,
            seed=number,
        )
        open_requests.append(start(run, source, params))
        if number % 3 == 0:
            run.step()
        if rng.random() < 0.3:
            rng.choice(open_requests).stream.cancel()
        if number % 500 == 0:
            run.run()
            open_requests = open_requests[-1:]
    run.run()
    assert run.batcher.num_preemptions > 0
