"""The answers to one call's prompts as text, as they grow. Knows no protocol."""

from collections.abc import AsyncGenerator
from time import monotonic

from server.http.call import Call
from server.http.endpoint import OpenJob
from server.metrics import TokenMetrics
from server.text.detokenizer import Detokenizer
from server.text.text_stream import Delta, TextRules, TextStream
from server.wire.generation import AnswerNews, TokenLogprob, read_news
from server.wire.job import TokenArray


class TextGeneration:
    """`num_sequences` answers to each prompt, in the order of the prompts. To be read once, while the job is open.

    Mutable: the answers' texts, and what the engine has told of the prompts. Answers may begin anew, where a sibling
    takes over from an engine, but only those of which the client has not been told.
    """

    def __init__(self, call: Call, opened: OpenJob, rules: TextRules, metrics: TokenMetrics) -> None:
        self.prompts = opened.prompts
        self.num_prompt_tokens = opened.num_tokens
        """That were read: of the prompts, or of an encoder-decoder's sources."""
        self.num_generated_tokens = 0
        self._num_cached = [0] * len(self.prompts)
        self.prompt_logprobs: list[tuple[TokenLogprob, ...]] = [() for _ in self.prompts]
        """Of each prompt's tokens from the second on, once its first news are there."""
        self.num_per_prompt: int = opened.params.num_sequences
        self._call, self._opened, self._metrics = call, opened, metrics
        self._rules = rules
        self._primed = [self._prime(prompt) for prompt in self.prompts]
        self._texts = [self._begin(row) for row in range(len(self.prompts) * self.num_per_prompt)]
        self._num_open = len(self._texts)
        self._last_s = [0.0] * len(self._texts)

    async def read(self) -> AsyncGenerator[list[Delta]]:
        """News as they come, until every answer has its finish_reason. Raises what the engine's streams raise."""
        results = self._opened.results
        assert results is not None
        async for result in results:
            if result.is_restart:
                self._restart(result.rows.tolist())
                continue
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

    def note_told(self, row: int) -> None:
        """The client hears of this answer, which can begin anew no more."""
        assert self._opened.results is not None
        self._opened.results.told.add(row)

    @property
    def num_cached_tokens(self) -> int:
        return sum(self._num_cached)

    def _begin(self, row: int) -> TextStream:
        return TextStream(row, self._primed[row // self.num_per_prompt], self._rules)

    def _prime(self, prompt: TokenArray) -> Detokenizer:
        """Behind which all answers to it begin."""
        texts, skip = self._opened.model.tokenizer.texts, self._rules.skip_special_tokens
        detokenizer = Detokenizer(texts, skip_special_tokens=skip)
        detokenizer.prime(prompt.tolist())
        return detokenizer

    def _restart(self, rows: list[int]) -> None:
        """All answers to their prompts, as the engine that computed them is gone."""
        for row in rows:
            place = row // self.num_per_prompt
            self.num_generated_tokens -= self._texts[row].num_tokens
            self._num_open += bool(self._texts[row].finish_reason)
            self._texts[row], self._last_s[row] = self._begin(row), 0.0
            self._num_cached[place], self.prompt_logprobs[place] = 0, ()

    def _read(self, news: AnswerNews) -> Delta | None:
        """None for an answer that has ended: what the engine had sent before it learned of that."""
        place = news.row // self.num_per_prompt
        self._num_cached[place] += news.num_cached_tokens
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
        self._metrics.observe_tokens(
            num_prompt_tokens=self.num_prompt_tokens, num_generated_tokens=self.num_generated_tokens
        )
        self._opened.count_generated(self.num_generated_tokens)
        if not self._num_open and self._opened.params.max_tokens:
            estimator = self._opened.model.admission.estimator
            estimator.learn_generated(self.num_generated_tokens / len(self._texts))
