"""A sound's windows one after the other through the engine, between those of everybody else. Knows no protocol."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from server.audio.alignment import Weights
from server.audio.fallback import Attempt, list_temperatures
from server.audio.hearing import Heard, Hearing
from server.audio.segments import FRAMES_PER_TIMESTAMP, Segment, Window
from server.audio.speech import ENGLISH
from server.audio.transcriber import Transcriber, TranscriptWish
from server.audio.words import time_words
from server.errors import EngineFailure
from server.http.call import Call
from server.http.endpoint import OpenJob, TextJob
from server.http.state import ServedModel
from server.metrics import TokenMetrics
from server.tasks.transcribe import TASK, ask_alignment, ask_language, settle_params
from server.wire.generation import GenerationParams, read_news

FIELD = "file"
"""What came in it is to blame for what windows are refused for."""


@dataclass(slots=True)
class Said:
    """Of one window, at one temperature. Mutable: grows. `no_speech`: that logprob. `cross_weights`: where asked for,
    see `AnswerNews`."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    no_speech: float = float("-inf")
    cross_weights: Weights | None = None

    def clear(self) -> None:
        """It is computed anew."""
        self.token_ids.clear()
        self.logprobs.clear()


@dataclass(frozen=True, slots=True)
class Transcription:
    """One call's sound and the model that hears it. Its methods raise ServiceError's kinds."""

    call: Call
    model: ServedModel
    hearing: Hearing
    heard: Heard
    metrics: TokenMetrics

    async def find_language(self) -> str:
        """Of what is said in the first window."""
        if not self.hearing.speech.languages:
            return ENGLISH
        said = await self._run([self.hearing.speech.start_id], ask_language(self.hearing.speech), 0)
        return self.hearing.speech.name_language(said.token_ids[0])

    async def read(self, wish: TranscriptWish) -> AsyncGenerator[list[Segment]]:
        """What each window says, as soon as that is certain."""
        window_frames = self.hearing.log_mel.window_frames
        transcriber = Transcriber(
            self.hearing.speech, wish, num_frames=self.heard.num_frames, window_frames=window_frames
        )
        while transcriber.window is not None:
            window, prompt, attempt = transcriber.window, transcriber.prompt, await self._try(transcriber)
            segments = transcriber.take(attempt)
            if wish.has_words and segments:
                segments = await self._find_words(segments, window, [*prompt, *attempt.token_ids], len(prompt), wish)
            yield segments

    async def _find_words(
        self, segments: list[Segment], window: Window, token_ids: list[int], num_before: int, wish: TranscriptWish
    ) -> list[Segment]:
        """When each word of a window is said. Its tokens are computed once more, all at once: few calls ask for words,
        and no step of the others is to tell what its tokens look at."""
        said = await self._run(token_ids, ask_alignment(token_ids[:num_before]), window.begin)
        assert said.cross_weights is not None, "They were asked for. This is a bug."
        heard = said.cross_weights[:, :, : max(window.num_frames // FRAMES_PER_TIMESTAMP, 1)]
        ends = await self.hearing.align(heard)
        tokens, language = self.hearing.speech.tokens, wish.written_language
        return [replace(segment, words=time_words(segment, ends, tokens, language)) for segment in segments]

    async def _try(self, transcriber: Transcriber) -> Attempt:
        """The next window, until an attempt is good."""
        assert transcriber.window is not None
        begin, prompt = transcriber.window.begin, transcriber.prompt
        attempt: Attempt | None = None
        for temperature in list_temperatures(transcriber.wish.temperature):
            params = settle_params(self.hearing.speech, prompt, temperature, seed=begin)
            said = await self._run(prompt, params, begin)
            attempt = self.hearing.speech.read_attempt(said.token_ids, said.logprobs, said.no_speech, temperature)
            if attempt.is_good:
                break
        assert attempt is not None
        return attempt

    async def _run(self, prompt: list[int], params: GenerationParams, begin: int) -> Said:
        """The window from this frame on. Encoded once: the engine knows it again at the next attempt."""
        job = TextJob(
            TASK,
            [prompt],
            FIELD,
            params,
            features=[self.hearing.cut_rows(self.heard, begin)],
            num_answer_tokens=params.max_tokens,
            has_place=True,
        )
        async with OpenJob(self.call, self.model, job) as opened:
            said = Said()
            try:
                await read_answer(opened, said)
            finally:
                opened.count_generated(len(said.token_ids))
                self.metrics.observe_tokens(
                    num_prompt_tokens=opened.num_tokens, num_generated_tokens=len(said.token_ids)
                )
        if params.max_tokens and not said.token_ids:
            raise EngineFailure("the engine has had no room for a single token; try again, or send less at a time")
        if params.max_tokens > 1:
            self.model.admission.estimator.learn_generated(len(said.token_ids))
        return said


async def read_answer(opened: OpenJob, said: Said) -> None:
    """The only answer of a job, to its end."""
    assert opened.results is not None
    async for result in opened.results:
        if result.is_restart:
            said.clear()
            continue
        for news in read_news(result):
            said.token_ids += news.token_ids
            said.logprobs += [each.logprob for each in news.logprobs]
            if news.prompt_logprobs:
                said.no_speech = news.prompt_logprobs[0].logprob
            if news.cross_weights is not None:
                said.cross_weights = news.cross_weights
