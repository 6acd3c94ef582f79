"""Continuous batching, block by block: whatever happens around it, a request is answered as if it were alone."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.batch import Batch, Output
from runtime.engine import EngineInfo, OutOfMemory
from runtime.engines.null_decoder import NullDecoder
from server.engine.batchers.decoding import copies_into
from server.engine.batchers.part import Part
from server.engine.batchers.sequences import Generation
from server.errors import DeadlineExceeded, EngineFailure, Unservable
from server.wire.generation import AnswerNews, GenerationParams
from server.wire.processors import BadWords, MinTokens
from tests.generation.continuous import LOGITS, VOCAB_SIZE, Continuous, Heard, expected_answer, make_job


def greedy(max_tokens: int, **options: object) -> GenerationParams:
    return GenerationParams(max_tokens, temperature=0.0, **options)  # type: ignore[arg-type]


def first_generation(run: Continuous, job: int) -> Generation:
    generation = list(run.batcher.decodings.values())[job].generations[0]
    assert generation is not None
    return generation


STOP = 11
prompts = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=90)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=12),
    st.integers(10, 40),
    st.integers(4, 64),
    st.sampled_from([0, 1, 5, 16]),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.sampled_from([0.0, 0.005]),
    st.sets(st.integers(1, 100), max_size=30),
)
def test_answers_are_those_of_each_alone(
    requests: list[tuple[list[int], int]],
    blocks: int,
    budget: int,
    chunk: int,
    has_cache: bool,
    drafts: int,
    step_s: float,
    visits: set[int],
) -> None:
    """Through chunks, prefix hits, preemptions, drafts and steps that go on by themselves."""
    run = Continuous(
        num_blocks=blocks,
        max_batch_tokens=budget,
        prefill_chunk_tokens=chunk,
        has_prefix_cache=has_cache,
        num_drafts=drafts,
        step_s=step_s,
        visits=visits,
    )
    heard = [run.start(prompt, greedy(count)) for prompt, count in requests]
    run.run()
    for (prompt, count), each in zip(requests, heard, strict=True):
        assert each.answers == {0: expected_answer(prompt, count)}
        assert each.reasons == {0: "length"}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(prompts, st.integers(1, 20), st.integers(1, 4)), min_size=1, max_size=6),
    st.integers(16, 60),
    st.integers(0, 1 << 40),
    st.sampled_from([0.0, 0.005]),
)
def test_forks_sample_the_same_whatever_is_around_them(
    requests: list[tuple[list[int], int, int]], blocks: int, seed: int, step_s: float
) -> None:
    def params(count: int, num: int) -> GenerationParams:
        return GenerationParams(count, temperature=1.0, num_sequences=num, seed=seed)

    alone = []
    for prompt, count, num in requests:
        single = Continuous(num_blocks=200)
        alone.append(single.start(prompt, params(count, num)))
        single.run()
    num_blocks = max(blocks, 8 * max(num for *_, num in requests))
    run = Continuous(num_blocks=num_blocks, max_batch_tokens=32, step_s=step_s)
    together = [run.start(prompt, params(count, num)) for prompt, count, num in requests]
    run.run()
    for one, other, (_, count, num) in zip(alone, together, requests, strict=True):
        assert one.answers == other.answers
        assert [len(one.answers[index]) for index in range(num)] == [count] * num


@pytest.mark.parametrize("step_s", [0.0, 0.005])
@pytest.mark.parametrize("num_requests", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_requests_with_cancels_leak_nothing(num_requests: int, step_s: float) -> None:
    rng = random.Random(0)
    run = Continuous(
        num_blocks=14, max_batch_tokens=48, prefill_chunk_tokens=16, step_s=step_s, visits=range(0, 10**9, 5)
    )
    shared = [rng.randrange(VOCAB_SIZE) for _ in range(64)]
    open_requests = []
    for number in range(num_requests):
        prompt = shared[: rng.choice([0, 16, 32, 64])] + [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 30))]
        params = GenerationParams(
            rng.choice([1, 2, 5, 5, 12, 40] if number % 10 == 0 else [1, 2, 5]),
            temperature=rng.choice([0.0, 1.0]),
            num_sequences=rng.choice([1, 1, 1, 3]),
            seed=number,
        )
        open_requests.append(run.start(prompt, params))
        if number % 3 == 0:
            run.step()
        if rng.random() < 0.3:
            rng.choice(open_requests).stream.cancel()
        if number % 500 == 0:
            run.run()
            assert run.batcher.num_queued_tokens == 0
            assert not run.batcher.decodings
            open_requests = open_requests[-1:]
    run.run()
    assert not run.batcher.decodings
    assert run.batcher.num_preemptions > 0


def test_shared_prompt_is_computed_once() -> None:
    run = Continuous(max_batch_tokens=200)
    prompt = list(range(70))
    run.start(prompt, greedy(4))
    run.run()
    again = run.start([*prompt, 5], greedy(4))
    run.run()
    assert again.news[0].num_cached_tokens == 64
    assert again.answers[0] == expected_answer([*prompt, 5], 4)
    assert run.batch_sizes[-4] == 7


def test_prompt_of_whole_blocks_computes_its_last_block_again() -> None:
    """Something has to be computed to go on from."""
    run = Continuous()
    for _ in range(2):
        heard = run.start(list(range(32)), greedy(3))
        run.run()
        assert heard.answers[0] == expected_answer(list(range(32)), 3)
    assert heard.news[0].num_cached_tokens == 16


def test_long_prompt_does_not_stall_running_answers() -> None:
    run = Continuous(num_blocks=100, max_batch_tokens=64, prefill_chunk_tokens=8)
    first = run.start([1, 2, 3], greedy(30))
    run.step()
    run.start(list(range(60)), greedy(2))
    for _ in range(5):
        before = len(first.answers[0])
        run.step()
        assert len(first.answers[0]) == before + 1
        assert run.batch_sizes[-1] == 9
    run.run()


def test_nobody_to_wait_for_gives_prompts_the_whole_budget() -> None:
    run = Continuous(num_blocks=100, max_batch_tokens=64, prefill_chunk_tokens=8)
    run.start(list(range(60)), greedy(2))
    run.step()
    assert run.batch_sizes == [60]


def test_lower_priority_number_is_earlier() -> None:
    run = Continuous(max_batch_requests=1)
    late = run.start([1], greedy(3), priority=5)
    soon = run.start([2], greedy(3), priority=-1)
    run.step()
    assert soon.answers and not late.answers
    run.run()
    assert late.answers[0] == expected_answer([1], 3)


def test_more_urgent_request_takes_the_place_of_a_running_one() -> None:
    run = Continuous(max_batch_requests=1)
    late = run.start([1], greedy(10), priority=5)
    run.step()
    soon = run.start([2], greedy(3), priority=-1)
    run.step()
    assert soon.answers and len(late.answers[0]) <= 2
    run.run()
    assert late.answers[0] == expected_answer([1], 10) and soon.answers[0] == expected_answer([2], 3)


def test_only_as_many_are_admitted_as_there_are_blocks_for() -> None:
    run = Continuous(num_blocks=101, max_batch_tokens=64, has_prefix_cache=False, max_total_tokens=1200)
    heard = [run.start([number] * 900, greedy(2)) for number in range(6)]
    run.step()
    assert len(run.batcher.running.generations) == 1
    run.run()
    assert run.batcher.num_preemptions == 0
    assert [each.answers[0] for each in heard] == [expected_answer([number] * 900, 2) for number in range(6)]


def test_guesses_never_push_others_out() -> None:
    """A cache just large enough: the answer is whole, with guesses ahead of it or without."""

    class Guessing(NullDecoder):
        def run(self, batch):  # type: ignore[no-untyped-def]
            output = super().run(batch)
            drafts = np.full((batch.num_logits, 4), 3, np.int64)
            return replace(output, tokens=replace(output.tokens, draft_ids=drafts))

    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=5, num_drafts=4)
    run = Continuous(num_blocks=5, engine=Guessing(info), max_total_tokens=64)
    heard = run.start(list(range(40)), greedy(24))
    run.run()
    assert heard.answers[0] == expected_answer(list(range(40)), 24)
    whole = run.start(list(range(63)), greedy(1))
    run.run()
    assert whole.answers[0] == expected_answer(list(range(63)), 1)


def test_beams_with_fewer_answers_than_were_asked_for_all_end() -> None:
    class OnlyOne(NullDecoder):
        """As under a grammar that allows one token and then the end."""

        def choose(self, batch, paging):  # type: ignore[no-untyped-def]
            tokens = super().choose(batch, paging)
            tokens.top_ids[:, 0] = STOP
            tokens.top_logprobs[:, 1:] = np.nan
            return tokens

    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)
    run = Continuous(engine=OnlyOne(info))
    heard = run.start([1, 2], greedy(9, num_sequences=4, beam_width=4, stop_token_ids=(STOP,)))
    run.run()
    assert heard.answers == {0: [STOP], 1: [], 2: [], 3: []} and set(heard.reasons.values()) == {"stop"}
    assert [news.score is None for news in heard.news] == [False, True, True, True]


def test_one_generation_that_breaks_fails_alone() -> None:
    run = Continuous()
    good, bad = run.start([1], greedy(8)), run.start([2], greedy(8))
    run.step()

    def fail(news: list[AnswerNews]) -> None:
        raise OverflowError("broken")

    first_generation(run, 1).emit = fail
    run.run()
    assert isinstance(bad.error, EngineFailure)
    assert good.answers[0] == expected_answer([1], 8)


def test_deadline_ends_a_running_answer_and_frees_its_blocks() -> None:
    run = Continuous()
    heard = run.start([1, 2], greedy(100), timeout_s=5.0)
    run.step()
    run.now_s = 6.0
    run.run()
    assert isinstance(heard.error, DeadlineExceeded)


def test_cancel_frees_blocks_at_the_next_step() -> None:
    run = Continuous()
    heard = run.start([1, 2], greedy(100))
    run.step()
    assert run.allocator.num_used_blocks == 1
    heard.stream.cancel()
    run.step()
    assert run.allocator.num_used_blocks == 0
    assert not run.batcher.decodings


def test_stopped_answer_frees_its_blocks_and_the_others_go_on() -> None:
    run = Continuous()
    heard = run.start([1, 2], GenerationParams(50, num_sequences=2, temperature=1.0))
    run.step()
    heard.stream.cancel([0])
    run.step()
    run.step()
    assert len(heard.answers[0]) <= 2 and len(heard.answers[1]) == 3
    run.run()
    assert len(heard.answers[1]) == 50


def test_stop_token_ends_an_answer() -> None:
    answer = expected_answer([3, 4], 20)
    stop = answer[5]
    first = answer.index(stop)
    run = Continuous()
    heard = run.start([3, 4], greedy(20, stop_token_ids=(stop,)))
    run.run()
    assert heard.answers[0] == answer[: first + 1] and heard.reasons == {0: "stop"}


def test_max_tokens_zero_only_looks_at_the_prompt() -> None:
    run = Continuous(max_batch_logits=5)
    heard = run.start([1, 2, 3, 4, 5, 6, 7, 8, 9], greedy(0, num_prompt_logprobs=1))
    run.run()
    assert heard.reasons == {0: "length"} and heard.answers == {0: []}
    assert len(heard.news[0].prompt_logprobs) == 8
    assert all(len(each.top) == 1 for each in heard.news[0].prompt_logprobs)


@pytest.mark.parametrize("chunk", [0, 3])
def test_a_probe_tells_of_one_token_alone(chunk: int) -> None:
    """In whatever step its place is computed; the answer is the same."""
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    run = Continuous(max_batch_logits=2, prefill_chunk_tokens=chunk)
    plain = run.start(prompt, greedy(5))
    run.step()
    probed = run.start(prompt, greedy(5, probe=(4, 6)))
    whole = run.start(prompt, greedy(5, num_prompt_logprobs=0))
    run.run()
    assert probed.answers == plain.answers
    (found,) = probed.news[0].prompt_logprobs
    assert whole.news[0].prompt_logprobs[4] == found  # 6 stands there


def test_out_of_blocks_alone_ends_with_length() -> None:
    run = Continuous(num_blocks=5)
    heard = run.start([1, 2], GenerationParams(60, temperature=1.0, num_sequences=2))
    run.run()
    assert heard.reasons == {0: "length", 1: "length"}
    assert 16 < len(heard.answers[0]) < 60


def test_what_can_never_run_is_refused_and_others_go_on() -> None:
    run = Continuous(num_blocks=5, max_batch_requests=4)
    running = run.start([1], greedy(30))
    run.step()
    with pytest.raises(Unservable, match="shorten the prompt"):
        run.start(list(range(70)), greedy(5))
    with pytest.raises(Unservable, match="4; ask for fewer"):
        run.start([1], GenerationParams(5, num_sequences=5))
    run.run()
    assert running.answers[0] == expected_answer([1], 30)


def test_failing_request_fails_alone() -> None:
    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)
    run = Continuous(engine=NullDecoder(info, fail_token_id=1000, nan_token_id=1001))
    good = [run.start([number, 7], greedy(10)) for number in range(4)]
    bad = run.start([1000], greedy(10))
    nan = run.start([1001], greedy(10))
    run.run()
    assert isinstance(bad.error, EngineFailure) and isinstance(nan.error, EngineFailure)
    assert [each.answers[0] for each in good] == [expected_answer([number, 7], 10) for number in range(4)]


class SmallDecoder(NullDecoder):
    """Has memory for steps of 20 tokens. Mutable: the sizes of those that had none."""

    failed: tuple[int, ...] = ()

    def run(self, batch: Batch) -> Output:
        if batch.num_tokens > 20:
            self.failed += (batch.num_tokens,)
            raise OutOfMemory("nothing left")
        return super().run(batch)


def test_steps_without_memory_are_halved_and_their_size_is_kept_in_mind() -> None:
    engine = SmallDecoder(EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64))
    run = Continuous(engine=engine)
    requests = [[number] * 15 for number in range(8)]
    answers = [run.start(prompt, greedy(5)) for prompt in requests]
    run.run()
    num_failed = len(engine.failed)
    assert num_failed > 1 and max(engine.failed) > 40
    answers += [run.start(prompt, greedy(5)) for prompt in requests]
    run.run()
    assert len(engine.failed) == num_failed
    for prompt, heard in zip(requests * 2, answers, strict=True):
        assert heard.answers == {0: expected_answer(prompt, 5)}


def test_each_half_of_a_failed_step_copies_the_blocks_it_reads() -> None:
    generations = [Generation([token_id], greedy(1), (0, 0.0, 0, 0), 1e9) for token_id in (1, 2)]
    first, second = (Part(generation, generation.live[0], 0, 1) for generation in generations)
    first.sequence.table.block_ids[:], second.sequence.table.block_ids[:] = [3, 4], [3, 6]
    copies = [(5, 4), (5, 6)]
    assert copies_into([first], copies) == [(5, 4)] and copies_into([second], copies) == [(5, 6)]


class Ending:
    """A matcher that allows anything, and nothing more after three tokens."""

    def __init__(self) -> None:
        self.num_accepted = 0

    def compute_mask(self) -> np.ndarray:
        return np.full(4, 0xFFFFFFFF, np.uint32)

    def accept(self, token_id: int) -> None:
        self.num_accepted += 1
        if self.num_accepted == 3:
            raise Unservable("it is too complex to follow; simplify it", "grammar")

    def fork(self) -> "Ending":
        return self


def test_what_a_client_makes_impossible_is_its_own_error(caplog: pytest.LogCaptureFixture) -> None:
    """And nobody else's; the log has no traceback of it."""
    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)
    run = Continuous(engine=NullDecoder(info, nan_token_id=1001), make_matcher=lambda *_: Ending())
    good = run.start([5, 7], greedy(10))
    banned = run.start([1001], greedy(10, processors=(MinTokens(2), BadWords(((3,),)))))
    generation = run.start([4], greedy(10))
    first_generation(run, 2).live[0].matcher = Ending()
    run.run()
    assert isinstance(banned.error, Unservable) and banned.error.param == "bad_words"
    assert "leaves no token to choose" in str(banned.error)
    assert isinstance(generation.error, Unservable) and generation.error.param == "grammar"
    assert good.answers[0] == expected_answer([5, 7], 10)
    assert not caplog.records


def test_beams_that_a_grammar_ends_give_all_blocks_back() -> None:
    run = Continuous(make_matcher=lambda *_: Ending())
    heard = run.start(list(range(40)), greedy(10, num_sequences=2, beam_width=3))
    first_generation(run, 0).live[0].matcher = Ending()
    run.run()
    assert isinstance(heard.error, Unservable)


def test_drafts_are_found_and_only_right_ones_count() -> None:
    """A decoder that counts up in a circle repeats itself, and so is guessed well."""

    class Circle(NullDecoder):
        def choose(self, batch, paging):  # type: ignore[no-untyped-def]
            tokens = super().choose(batch, paging)
            tokens.token_ids[:] = (batch.arrays["input_ids"][paging.logit_rows] + 1) % 10
            return tokens

    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)
    run = Continuous(engine=Circle(info), num_drafts=4)
    heard = run.start([0], greedy(60))
    run.run()
    assert heard.answers[0] == [(number + 1) % 10 for number in range(60)]
    assert run.batcher.settlement.num_accepted > 30
    assert len(run.batch_sizes) < 35


def test_same_seed_same_answer_another_seed_another() -> None:
    def answer(seed: int) -> list[int]:
        run = Continuous()
        heard = run.start([1, 2], GenerationParams(20, temperature=1.0, seed=seed))
        run.run()
        return heard.answers[0]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)
    assert np.unique([len(answer(seed)) for seed in range(3)]).tolist() == [20]


def run_alone(prompt: list[int], params: GenerationParams) -> Heard:
    """With blocks for everything."""
    run = Continuous(num_blocks=400)
    heard = run.start(prompt, params)
    run.run()
    assert run.batcher.num_preemptions == 0
    return heard


@pytest.mark.parametrize("has_prefix_cache", [True, False])
@pytest.mark.parametrize("width", [0, 3], ids=["answers", "beams"])
def test_preempted_answers_come_back_whole_and_their_prompt_is_computed_once(
    has_prefix_cache: bool, width: int
) -> None:
    """Not once for each of them: together their copies of the prompt would not fit."""
    prompt = list(range(60))
    params = GenerationParams(
        40, temperature=0.0 if width else 1.0, seed=3, num_sequences=3, beam_width=width, num_logprobs=0
    )
    run = Continuous(num_blocks=17, max_batch_tokens=64, has_prefix_cache=has_prefix_cache)
    urgent = run.start([96] * 20, greedy(120))
    heard = run.start(prompt, params)
    generation = first_generation(run, 1)
    num_computed = 0
    while step := run.batcher.form(0.0):
        num_computed += sum(
            max(0, min(part.num_past_tokens + part.num_tokens, 60) - part.num_past_tokens)
            for part in step.parts
            if part.generation is generation
        )
        run.compute(step)
    run.run()
    assert run.batcher.num_preemptions == generation.num_preemptions == 1
    assert num_computed <= 2 * 60, "Once, and once more after it was lost."
    alone = run_alone(prompt, params)
    assert heard.answers == alone.answers and heard.reasons == alone.reasons == {0: "length", 1: "length", 2: "length"}
    assert [len(answer) for answer in heard.answers.values()] == [40] * 3
    assert urgent.answers[0] == expected_answer([96] * 20, 120)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(prompts, st.integers(1, 30), st.sampled_from([1, 2, 4])), min_size=2, max_size=6),
    st.integers(24, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0.0, 0.005]),
)
def test_answers_and_beams_are_the_same_through_preemptions(
    requests: list[tuple[list[int], int, int]], blocks: int, has_cache: bool, is_beam_search: bool, step_s: float
) -> None:
    def params(count: int, num: int) -> GenerationParams:
        if is_beam_search:
            return greedy(count, num_sequences=num, beam_width=num, stop_token_ids=(STOP,))
        return GenerationParams(count, temperature=1.0, num_sequences=num, seed=5)

    run = Continuous(num_blocks=blocks, max_batch_tokens=32, has_prefix_cache=has_cache, step_s=step_s)
    heard = [run.start(prompt, params(count, num)) for prompt, count, num in requests]
    run.run()
    for each, (prompt, count, num) in zip(heard, requests, strict=True):
        alone = run_alone(prompt, params(count, num))
        assert each.answers == alone.answers and each.reasons == alone.reasons


def test_more_urgent_generation_evicts_nobody_where_that_would_not_suffice() -> None:
    """Their cache would be lost for nothing."""
    run = Continuous(num_blocks=23, max_batch_tokens=256, max_total_tokens=400)
    urgent = run.start([1] * 150, greedy(40), priority=-2)
    lazy = run.start([2] * 100, greedy(40), priority=5)
    run.step()
    run.step()
    assert len(run.batcher.running.generations) == 2
    large = run.start([3] * 200, greedy(3), priority=-1)
    run.step()
    assert len(run.batcher.running.generations) == 2 and run.batcher.num_preemptions == 0
    run.run()
    for heard, prompt, count in ((urgent, [1] * 150, 40), (lazy, [2] * 100, 40), (large, [3] * 200, 3)):
        assert heard.answers[0] == expected_answer(prompt, count)


def test_more_urgent_generation_evicts_only_as_many_as_it_needs() -> None:
    run = Continuous(num_blocks=21, max_total_tokens=400)
    lazy = [run.start([number] * 60, greedy(10), priority=5) for number in range(3)]
    run.step()
    run.step()
    run.step()
    assert len(run.batcher.running.generations) == 3
    urgent = run.start([9] * 90, greedy(3), priority=-1)
    run.step()
    assert run.batcher.num_preemptions == 1
    assert len(run.batcher.running.generations) == 3
    run.run()
    assert urgent.answers[0] == expected_answer([9] * 90, 3)
    assert [each.answers[0] for each in lazy] == [expected_answer([number] * 60, 10) for number in range(3)]


@pytest.mark.parametrize("step_s", [0.0, 0.005])
@pytest.mark.parametrize("rows", [(), (0, 1)], ids=["all of it", "each row"])
def test_generation_cancelled_while_its_step_is_under_way(rows: tuple[int, ...], step_s: float) -> None:
    """What comes out of the step is nobody's; its blocks may be somebody else's by then."""
    run = Continuous(step_s=step_s)
    gone = run.start([1, 2], GenerationParams(50, temperature=1.0, num_sequences=2))
    here = run.start([3, 4], greedy(20))
    run.step()
    before = {row: list(answer) for row, answer in gone.answers.items()}
    step = run.batcher.form(0.0)
    assert step is not None and step.batch.num_seqs == 3
    gone.stream.cancel(rows)
    late = run.start(list(range(40)), greedy(5))
    run.compute(step)
    assert gone.answers == before and not gone.reasons
    run.run()
    assert here.answers[0] == expected_answer([3, 4], 20)
    assert late.answers[0] == expected_answer(list(range(40)), 5)


def test_cancelled_while_it_waits_it_never_runs() -> None:
    run = Continuous(max_batch_requests=1)
    first, gone = run.start([1], greedy(5)), run.start([2], greedy(5))
    run.step()
    gone.stream.cancel()
    run.run()
    assert first.answers[0] == expected_answer([1], 5) and gone.answers == {}


def test_several_prompts_of_one_job() -> None:
    """Rows of the first prompt come first; the job ends with the last of them, and the others do not wait for it."""
    run = Continuous(max_batch_requests=4)
    asked = [[1, 2], [3], [4, 5, 6], list(range(30))]
    heard = run.start_job(make_job(asked, greedy(8, num_sequences=2)))
    other = run.start([7], greedy(8))
    run.run()
    assert heard.answers == {row: expected_answer(asked[row // 2], 8) for row in range(8)}
    assert heard.has_ended and set(heard.reasons) == set(range(8))
    assert other.answers[0] == expected_answer([7], 8)


def test_one_of_several_prompts_that_fails_fails_the_job() -> None:
    info = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)
    run = Continuous(engine=NullDecoder(info, fail_token_id=1000))
    heard = run.start_job(make_job([[1], [1000], [2]], greedy(8)))
    good = run.start([7], greedy(8))
    run.run()
    assert isinstance(heard.error, EngineFailure)
    assert good.answers[0] == expected_answer([7], 8)


def test_prompts_of_a_job_leave_room_for_others() -> None:
    """One of each job in turn."""
    run = Continuous(max_batch_requests=2)
    run.start_job(make_job([[number] for number in range(10)], greedy(3)))
    single = run.start([50], greedy(3))
    run.step()
    assert single.answers


def test_answers_are_stopped_row_by_row() -> None:
    run = Continuous()
    heard = run.start_job(make_job([[1], [2], [3]], greedy(30, num_sequences=2)))
    run.step()
    heard.stream.cancel([0, 1, 4])
    run.step()
    run.step()
    assert len(run.batcher.running.generations) == 2
    assert run.batcher.running.num_sequences == 4
    assert sum(len(each.live) for each in run.batcher.running.generations) == 3
    run.run()
    assert {row: len(answer) for row, answer in heard.answers.items()} == {0: 1, 1: 1, 2: 30, 3: 30, 4: 1, 5: 30}
    assert heard.has_ended and set(heard.reasons) == {2, 3, 5}


def test_stopping_the_last_open_row_ends_the_job() -> None:
    run = Continuous()
    heard = run.start_job(make_job([[1], [2]], greedy(30)))
    run.step()
    heard.stream.cancel([1])
    run.step()
    heard.stream.cancel([0])
    assert not run.batcher.decodings
    run.run()


def test_jobs_of_different_salts_share_no_blocks() -> None:
    """What one finds in the prefix cache, and how soon it is answered, would tell it of another's prompt."""
    run = Continuous()
    prompt = list(range(40))

    def count_cached(salt: str) -> int:
        heard = run.start(prompt, greedy(3), salt=salt)
        run.run()
        assert heard.answers[0] == expected_answer(prompt, 3)
        return heard.news[0].num_cached_tokens

    assert [count_cached(salt) for salt in ("", "a", "b", "a", "b", "")] == [0, 0, 0, 32, 32, 32]


def test_salts_are_kept_apart_while_both_run() -> None:
    run = Continuous()
    prompt = list(range(40))
    for salt in ("a", "b"):
        run.start(prompt, greedy(20), salt=salt)
        run.step()
    tables = [generation.live[0].table.block_ids for generation in run.batcher.running.generations]
    assert not set(tables[0]) & set(tables[1])
    run.start(prompt, greedy(20), salt="a")
    run.step()
    assert run.batcher.running.generations[2].live[0].table.block_ids[:2] == tables[0][:2]
    run.run()


def test_books_add_up_whatever_the_prefix_cache_holds() -> None:
    """What counts as queued is the same on the way in and out, though most of it has been found meanwhile."""
    run = Continuous()
    for _ in range(2):
        run.start(list(range(40)), greedy(3))
        assert run.batcher.num_queued_tokens == 40
        run.run()
        assert run.batcher.num_queued_tokens == 0


def test_canary_disturbs_nobody_and_is_not_counted() -> None:
    run = Continuous()
    heard = run.start([1, 2], greedy(5))
    run.step()
    canary = run.batcher.form_canary()
    assert canary.is_canary
    result = run.run_engine(canary)
    assert result.output is not None
    run.batcher.observe(result)
    assert run.batcher.rate.num_tokens == 0
    run.run()
    assert heard.answers[0] == expected_answer([1, 2], 5)
