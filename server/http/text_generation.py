"""The answers to one call's prompts as text, as they grow. Knows no protocol."""

from collections.abc import AsyncGenerator
from time import monotonic

from server.http.call import Call
from server.http.endpoint import OpenJob
from server.metrics import TokenMetrics
from server.text.text_stream import Delta, TextRules, TextStream
from server.wire.generation import AnswerNews, TokenLogprob, read_news


class TextGeneration:
    """`num_sequences` answers to each prompt, in the order of the prompts. To be read once, while the job is open.

    Mutable: the answers' texts, and what the engine has told of the prompts.
    """

    def __init__(self, call: Call, opened: OpenJob, rules: TextRules, metrics: TokenMetrics) -> None:
        self.prompts = [sequence.input_ids for sequence in opened.sequences]
        self.num_cached_tokens = self.num_generated_tokens = 0
        self.prompt_logprobs: list[tuple[TokenLogprob, ...]] = [() for _ in self.prompts]
        """Of each prompt's tokens from the second on, once its first news are there."""
        self.num_per_prompt: int = opened.params.num_sequences
        self._call, self._opened, self._metrics = call, opened, metrics
        texts = opened.model.tokenizer.texts
        self._texts = [
            TextStream(place * self.num_per_prompt + index, texts, prompt.tolist(), rules)
            for place, prompt in enumerate(self.prompts)
            for index in range(self.num_per_prompt)
        ]
        self._num_open = len(self._texts)
        self._last_s = [0.0] * len(self._texts)

    async def read(self) -> AsyncGenerator[list[Delta]]:
        """News as they come, until every answer has its finish_reason. Raises what the engine's streams raise."""
        results = self._opened.results
        assert results is not None
        async for result in results:
            news = read_news(result)
            deltas = [delta for item in news if (delta := self._read(item)) is not None]
            ended = {item.row for item in news if item.finish_reason}
            stopped = [delta.index for delta in deltas if delta.finish_reason and delta.index not in ended]
            if stopped and self._num_open:
                results.cancel(stopped)
            if deltas:
                yield deltas
            if not self._num_open:
                return

    def _read(self, news: AnswerNews) -> Delta | None:
        """None for an answer that has ended: what the engine had sent before it learned of that."""
        place = news.row // self.num_per_prompt
        self.num_cached_tokens += news.num_cached_tokens
        if news.prompt_logprobs:
            self.prompt_logprobs[place] = news.prompt_logprobs
        text = self._texts[news.row]
        if text.finish_reason:
            return None
        delta = text.push(news)
        self._observe(delta)
        self._num_open -= bool(delta.finish_reason)
        return delta

    def _observe(self, delta: Delta) -> None:
        """An answer's first tokens count from the call's start, later ones from those before."""
        num_tokens = len(delta.tokens)
        if not num_tokens:
            return
        self.num_generated_tokens += num_tokens
        now_s, last_s = monotonic(), self._last_s[delta.index]
        if last_s:
            self._metrics.observe_gap((now_s - last_s) / num_tokens, num_tokens)
        else:
            self._metrics.observe_first(now_s - self._call.start_s)
        self._last_s[delta.index] = now_s

    def finish(self) -> None:
        """Whatever became of it: what was computed is counted, and what answers are like is learned."""
        num_prompt_tokens = sum(len(prompt) for prompt in self.prompts)
        self._metrics.observe_tokens(
            num_prompt_tokens=num_prompt_tokens, num_generated_tokens=self.num_generated_tokens
        )
        self._opened.count_generated(self.num_generated_tokens)
        if not self._num_open and self._opened.params.max_tokens:
            estimator = self._opened.model.admission.estimator
            estimator.learn_generated(self.num_generated_tokens / len(self._texts))
