"""Steps that go on by themselves: the same answers in fewer steps, nothing computed in vain, nobody kept waiting."""

from dataclasses import replace

import pytest

from runtime.batch import Batch, Output
from runtime.engine import EngineError, EngineInfo
from runtime.engines.null_decoder import NullDecoder
from server.engine.batchers.continuation import MAX_FOLLOWING, MAX_RUN_S
from server.engine.batchers.sequences import Generation
from server.wire.generation import GenerationParams
from server.wire.processors import MinTokens
from tests.generation.continuous import LOGITS, Continuous, Heard, expected_answer
from tests.generation.test_continuous import greedy, run_alone

STEP_S = MAX_RUN_S / (MAX_FOLLOWING + 1)
INFO = EngineInfo("null", "none", "", "cpu", 1, LOGITS, num_blocks=64)


def start_step(run: Continuous, count: int = 40) -> Heard:
    """Its prompt is computed."""
    heard = run.start([1, 2, 3], greedy(count))
    run.step()
    return heard


def test_a_step_goes_on_until_its_time_is_over() -> None:
    run = Continuous(step_s=STEP_S)
    heard = start_step(run)
    assert len(heard.answers[0]) == 1 and not run.following_sizes, "A prompt's step ends with it."
    run.step()
    assert len(heard.answers[0]) == 1 + 1 + MAX_FOLLOWING
    assert run.following_sizes == [1] * MAX_FOLLOWING
    run.run()
    assert heard.answers[0] == expected_answer([1, 2, 3], 40)


@pytest.mark.parametrize(("step_s", "num_following"), [(0.0, 0), (MAX_RUN_S / 3.5, 2), (MAX_RUN_S, 0)])
def test_long_steps_are_followed_by_fewer(step_s: float, num_following: int) -> None:
    """And where nobody knows what they take, by none."""
    run = Continuous(step_s=step_s)
    start_step(run)
    run.step()
    assert len(run.following_sizes) == num_following


def test_who_ends_leaves_the_run_and_nothing_is_computed_in_vain() -> None:
    answer = expected_answer([5, 6], 30)
    stop = answer[12]
    ends = answer.index(stop) + 1
    run = Continuous(step_s=STEP_S)
    stopped = run.start([5, 6], greedy(30, stop_token_ids=(stop,)))
    short, long = run.start([7], greedy(5)), run.start([8], greedy(30))
    run.run()
    assert stopped.answers[0] == answer[:ends] and stopped.reasons == {0: "stop"}
    assert short.answers[0] == expected_answer([7], 5) and short.reasons == {0: "length"}
    assert long.answers[0] == expected_answer([8], 30)
    num_computed = sum(run.batch_sizes) + sum(run.following_sizes)
    assert num_computed == (2 + 1 + 1) + (ends - 1) + 4 + 29, "Each token but the last ones, once."
    assert set(run.following_sizes) == {1, 2, 3}


def test_random_tokens_and_their_logprobs_are_those_of_single_steps() -> None:
    params = GenerationParams(30, temperature=1.0, seed=7, num_sequences=3, num_logprobs=2)
    shorter = replace(params, seed=8, max_tokens=11)
    run = Continuous(step_s=STEP_S)
    heard, other = run.start([1, 2, 3], params), run.start([4], shorter)
    run.run()
    assert run.following_sizes
    for each, alone in ((heard, run_alone([1, 2, 3], params)), (other, run_alone([4], shorter))):
        assert each.answers == alone.answers and each.reasons == alone.reasons
        for row in range(3):
            told = [[one for news in of.news if news.row == row for one in news.logprobs] for of in (each, alone)]
            assert told[0] == told[1] and len(told[0]) == len(each.answers[row])


def test_a_newcomer_ends_the_run() -> None:
    run = Continuous(step_s=STEP_S, visits=[4])
    heard = start_step(run)
    run.step()
    assert len(run.following_sizes) == 2
    step = run.batcher.form(0.0)
    assert step is not None
    run.device.interrupt()
    run.device.submit(run.batcher.form_canary())
    assert run.device.is_interrupted
    run.device.submit(step)
    assert not run.device.is_interrupted, "The next step is what was waited for."
    run.compute(step)
    run.run()
    assert heard.answers[0] == expected_answer([1, 2, 3], 40)


def test_steps_that_take_longer_than_predicted_end_the_run() -> None:
    class Slow(NullDecoder):
        def run(self, batch: Batch) -> Output:
            run.now_s += MAX_RUN_S / 3.5
            return super().run(batch)

    run = Continuous(engine=Slow(INFO), step_s=STEP_S)
    start_step(run)
    run.step()
    assert len(run.following_sizes) == 2


def test_what_a_run_has_not_reached_keeps_nobody_out() -> None:
    """Each of the two has a block ahead: as many as are promised to them anyway."""

    def count_batches(step_s: float) -> int:
        run = Continuous(num_blocks=7, step_s=step_s, visits=range(1000))
        others = [run.start([number] * 9, greedy(40)) for number in range(2)]
        run.step()
        run.step()
        newcomer = run.start([5] * 5, greedy(1))
        while not newcomer.answers:
            run.step()
        num_batches = len(run.batch_sizes)
        run.run()
        assert [each.answers[0] for each in others] == [expected_answer([number] * 9, 40) for number in range(2)]
        return num_batches

    assert count_batches(STEP_S) == count_batches(0.0)


def test_who_waits_for_a_place_gets_it_as_soon_as_there_is_one() -> None:
    run = Continuous(step_s=STEP_S, max_batch_requests=2)
    first, second = run.start([1], greedy(4)), run.start([2], greedy(30))
    waiting = run.start([3], greedy(2))
    run.step()
    run.step()
    assert first.reasons == {0: "length"} and len(second.answers[0]) == 4, "The others do not go on without the first."
    run.step()
    assert len(waiting.answers[0]) == 1
    run.run()
    assert second.answers[0] == expected_answer([2], 30)


@pytest.mark.parametrize("num_blocks", [3, 4, 5, 6])
def test_nobody_gives_way_to_a_run(num_blocks: int) -> None:
    """Who runs out of blocks does so as it would step by step."""

    def count_preemptions(step_s: float) -> int:
        run = Continuous(step_s=step_s, num_blocks=num_blocks)
        heard = [run.start([number] * 14, greedy(18)) for number in range(2)]
        run.run()
        assert [each.answers[0] for each in heard] == [expected_answer([number] * 14, 18) for number in range(2)]
        return run.batcher.num_preemptions

    assert count_preemptions(STEP_S) == count_preemptions(0.0) == (num_blocks == 4)


@pytest.mark.parametrize(
    "params",
    [
        greedy(20, beam_width=2, num_sequences=2),
        greedy(20, presence_penalty=0.5),
        greedy(20, frequency_penalty=0.5),
        greedy(20, repetition_penalty=1.5),
        greedy(20, processors=(MinTokens(3),)),
    ],
    ids=["beams", "presence", "frequency", "repetition", "processors"],
)
def test_what_is_asked_anew_for_each_token_is_not_gone_on_with(params: GenerationParams) -> None:
    """Nor is anything that shares a step with it."""
    run = Continuous(step_s=STEP_S)
    run.start([1, 2, 3], params)
    run.start([4], greedy(20))
    for _ in range(10):
        run.step()
    assert not run.following_sizes


def test_grammars_and_alignments_are_asked_anew() -> None:
    def is_plain(params: GenerationParams) -> bool:
        return Generation([1], params, (0, 0.0, 0, 0), 1e9).is_plain

    assert is_plain(greedy(5)) and is_plain(GenerationParams(5, num_sequences=3, num_logprobs=4, top_p=0.5, seed=1))
    assert not is_plain(greedy(5, grammar=("regex", "a+"))) and not is_plain(greedy(5, align_from=0))


@pytest.mark.parametrize(("error", "is_told"), [(EngineError("no"), False), (ZeroDivisionError("of course"), True)])
def test_what_fails_behind_a_step_is_met_by_the_next(
    error: Exception, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What nobody foresaw is in the log."""

    class Failing(NullDecoder):
        """Its fourth step."""

        def run(self, batch: Batch) -> Output:
            if self.num_steps == 3:
                self.num_steps += 1
                raise error
            return super().run(batch)

    run = Continuous(engine=Failing(INFO), step_s=STEP_S)
    heard = start_step(run)
    run.step()
    assert len(run.following_sizes) == 1 and len(heard.answers[0]) == 3
    assert ("of course" in caplog.text) == is_told
    run.run()
    assert heard.answers[0] == expected_answer([1, 2, 3], 40) and heard.error is None


def test_an_answer_that_grows_again_is_not_gone_on_with(caplog: pytest.LogCaptureFixture) -> None:
    """Though a single token of it may be in the step."""
    run = Continuous(num_blocks=8, prefill_chunk_tokens=1, step_s=STEP_S, has_prefix_cache=False)
    heard = [run.start([number] * 10, greedy(30 + 7 * number)) for number in range(3)]
    run.run()
    assert run.batcher.num_preemptions == 1 and not caplog.text
    answers = [expected_answer([number] * 10, 30 + 7 * number) for number in range(3)]
    assert [each.answers[0] for each in heard] == answers


def test_a_row_without_a_token_fails_alone() -> None:
    answer, other = expected_answer([1, 2, 3], 8), expected_answer([9], 20)
    assert answer[4] not in [*answer[:4], *other]
    run = Continuous(engine=NullDecoder(INFO, nan_token_id=answer[4]), step_s=STEP_S)
    broken, fine = run.start([1, 2, 3], greedy(20)), run.start([9], greedy(20))
    run.run()
    assert broken.error is not None and broken.answers[0] == answer[:5]
    assert fine.answers[0] == other


def test_all_that_was_computed_is_counted() -> None:
    run = Continuous(step_s=STEP_S)
    start_step(run)
    step = run.batcher.form(0.0)
    assert step is not None
    result = replace(run.run_engine(step), started_s=0.0, ended_s=8.0)
    assert len(result.batches) == 1 + MAX_FOLLOWING
    before = run.batcher.cost_model.correction
    run.batcher.observe(result)
    assert run.batcher.rate.num_tokens == 1 + MAX_FOLLOWING
    assert run.batcher.cost_model.correction > before, "A second for each took longer than predicted."
