"""One answer's tokens to its text: characters completed, stop strings found, stop tokens left out. Knows no engine."""

from dataclasses import dataclass

from server.text.detokenizer import Detokenizer
from server.text.stop_strings import StopStrings
from server.wire.generation import AnswerNews, FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class TextRules:
    """How tokens become the text a client sees."""

    stop: tuple[str, ...] = ()
    include_stop: bool = False
    """Stop strings and stop tokens are part of the text."""
    skip_special_tokens: bool = True
    min_tokens: int = 0
    """Stop strings do not count in so many first tokens."""
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenNews:
    """A token, where its text begins in the answer (in characters), and its logprob if that was asked for."""

    token_id: int
    offset: int
    logprob: TokenLogprob | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """News of one answer. `index` counts over all answers of the call; `text` may be empty while some is held back."""

    index: int
    text: str
    tokens: tuple[TokenNews, ...]
    finish_reason: FinishReason
    is_first: bool = False
    """The answer begins with it; or begins anew, and what was said of it before counts no more."""
    score: float | None = None
    """See `AnswerNews`."""


class TextStream:
    """One answer, behind what `prompt` has read. Mutable: its text so far, as far as it is not certain yet, how many
    tokens it has, and `finish_reason` once it has ended."""

    def __init__(self, index: int, prompt: Detokenizer, rules: TextRules) -> None:
        self.index = index
        self.finish_reason: FinishReason = ""
        self._is_new = True
        self._rules = rules
        self.num_tokens = 0
        self._num_chars = 0
        self._detokenizer = prompt.copy()
        self._stops = StopStrings(rules.stop, is_included=rules.include_stop)

    def push(self, news: AnswerNews) -> Delta:
        """What news of the engine mean for the client. A stop string ends the answer: later tokens are dropped."""
        parts: list[str] = []
        tokens: list[TokenNews] = []
        last = len(news.token_ids) - 1
        for place, token_id in enumerate(news.token_ids):
            ends_here = place == last and news.finish_reason == "stop"
            tokens.append(TokenNews(token_id, self._num_chars, news.logprobs[place] if news.logprobs else None))
            parts.append(self._read(token_id, is_end=ends_here and token_id in self._rules.stop_token_ids))
            if self._stops.is_hit:
                self.finish_reason = "stop"
                break
        if news.finish_reason and not self.finish_reason:
            self.finish_reason = news.finish_reason
            parts += [self._stops.push(self._detokenizer.finish()), self._stops.finish()]
        is_first, self._is_new = self._is_new, False
        return Delta(self.index, "".join(parts), tuple(tokens), self.finish_reason, is_first, news.score)

    def _read(self, token_id: int, *, is_end: bool) -> str:
        """The text that is certain with this token. `is_end`: it is the stop token."""
        self.num_tokens += 1
        if is_end and not self._rules.include_stop:
            return ""
        piece = self._detokenizer.push(token_id)
        self._num_chars += len(piece)
        return piece if self.num_tokens <= self._rules.min_tokens else self._stops.push(piece)
