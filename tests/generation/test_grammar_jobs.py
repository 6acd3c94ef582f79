"""Jobs that are held to a grammar: compiled beside the loop, while everybody else's answers go on."""

import asyncio
import threading
from typing import Any

import numpy as np

from server.engine.batchers.matcher import Matcher
from server.errors import EngineFailure, Unservable
from server.wire.generation import GenerationParams
from tests.generation.continuous import Continuous, Heard, expected_answer, make_job

PATIENCE_S = 20.0


class Anything:
    """A matcher that allows every token, and notes what it was given. Mutable."""

    def __init__(self, accepted: tuple[int, ...] = ()) -> None:
        self.accepted = list(accepted)

    def compute_mask(self) -> np.ndarray[Any, np.dtype[np.uint32]]:
        return np.full(4, 0xFFFFFFFF, np.uint32)

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def fork(self) -> "Anything":
        return Anything(tuple(self.accepted))


class Compiler:
    """Makes a matcher once a test lets it. Mutable: what was asked."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.gate = threading.Event()
        self.asked: list[tuple[str, str]] = []

    def __call__(self, kind: str, text: str) -> Matcher:
        self.asked.append((kind, text))
        assert self.gate.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return Anything()


def held_to(text: str, **options: Any) -> GenerationParams:
    return GenerationParams(6, temperature=0.0, grammar=("regex", text), **options)


async def finish_compiling(run: Continuous) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while run.batcher.compiling:
            await asyncio.sleep(0.001)


async def compile_and_run(run: Continuous, compiler: Compiler, params: GenerationParams) -> tuple[Heard, Heard]:
    """A job that is held to a grammar, and one that is not and does not wait for that."""
    held = run.start_job(make_job([[1, 2], [3]], params))
    free = run.start([5, 7], GenerationParams(6, temperature=0.0))
    run.step()
    assert free.answers and not held.answers
    compiler.gate.set()
    await finish_compiling(run)
    run.run()
    assert free.answers[0] == expected_answer([5, 7], 6)
    return held, free


def test_answers_wait_for_their_grammar_and_others_do_not() -> None:
    compiler = Compiler()
    run = Continuous(make_matcher=compiler)
    held, _ = asyncio.run(compile_and_run(run, compiler, held_to("a+", num_sequences=2)))
    assert held.answers == {row: expected_answer([[1, 2], [3]][row // 2], 6) for row in range(4)}
    assert compiler.asked == [("regex", "a+")], "Once for all prompts."


class Panic(BaseException):
    """As of a library in Rust, which is no Exception."""


def test_panic_of_the_grammar_library_fails_the_job() -> None:
    compiler = Compiler(Panic("index out of bounds"))
    held, _ = asyncio.run(compile_and_run(Continuous(make_matcher=compiler), compiler, held_to("a+")))
    assert isinstance(held.error, EngineFailure) and "index out of bounds" in str(held.error)


def test_grammar_that_cannot_be_followed_is_the_clients_error() -> None:
    compiler = Compiler(Unservable("it is too complex; simplify it", "grammar"))
    held, _ = asyncio.run(compile_and_run(Continuous(make_matcher=compiler), compiler, held_to("a+")))
    assert isinstance(held.error, Unservable) and held.error.param == "grammar"


def test_compiler_that_breaks_fails_its_job_alone() -> None:
    compiler = Compiler(ZeroDivisionError("of course"))
    held, _ = asyncio.run(compile_and_run(Continuous(make_matcher=compiler), compiler, held_to("a+")))
    assert isinstance(held.error, EngineFailure) and "of course" in str(held.error)


def test_job_cancelled_while_its_grammar_is_compiled_is_forgotten() -> None:
    async def body() -> None:
        compiler = Compiler()
        run = Continuous(make_matcher=compiler)
        held = run.start([1], held_to("a+"))
        held.stream.cancel()
        assert not run.batcher.decodings
        compiler.gate.set()
        await finish_compiling(run)
        run.run()
        assert held.answers == {} and held.error is None

    asyncio.run(body())


def test_row_stopped_while_its_grammar_is_compiled_never_runs() -> None:
    async def body() -> None:
        compiler = Compiler()
        run = Continuous(make_matcher=compiler)
        held = run.start_job(make_job([[1], [2]], held_to("a+")))
        held.stream.cancel([0])
        compiler.gate.set()
        await finish_compiling(run)
        run.run()
        assert held.answers == {1: expected_answer([2], 6)} and held.has_ended

    asyncio.run(body())


def test_model_without_a_tokenizer_says_so() -> None:
    async def body() -> None:
        run = Continuous()
        held = run.start([1], held_to("a+"))
        await finish_compiling(run)
        assert isinstance(held.error, Unservable) and "has no tokenizer" in str(held.error)
        run.run()

    asyncio.run(body())
