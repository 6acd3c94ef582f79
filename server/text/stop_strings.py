"""Finds stop strings in a text that arrives in pieces, wherever it is cut. Pure."""

from collections.abc import Sequence


class StopStrings:
    """Lets through what cannot be part of a stop string any more, up to the first that is complete.

    Of several that are complete with the same character the longest counts. A piece costs a search through itself and
    what is held back, which is shorter than the longest string. Mutable: what is held back, and `is_hit`.
    """

    def __init__(self, texts: Sequence[str], *, is_included: bool = False) -> None:
        self._stops = tuple(texts)
        self._is_included = is_included
        self._held = ""
        self._num_begun = [0] * len(self._stops)
        """Of each string, how many of its first characters the text ends with."""
        self.is_hit = False

    def push(self, piece: str) -> str:
        """What is certain now. After a hit nothing is."""
        if not self._stops:
            return piece
        if self.is_hit:
            return ""
        text = self._held + piece
        # Nothing begins before what had begun when the text was shorter.
        begins = [len(text) - len(piece) - num_begun for num_begun in self._num_begun]
        hits = self._find_hits(text, begins)
        if hits:
            end, size = min(hits)
            self.is_hit, self._held = True, ""
            return text[: end if self._is_included else end + size]
        self._num_begun = [count_begun(text, *pair) for pair in zip(self._stops, begins, strict=True)]
        num_certain = len(text) - max(self._num_begun)
        self._held = text[num_certain:]
        return text[:num_certain]

    def _find_hits(self, text: str, begins: Sequence[int]) -> list[tuple[int, int]]:
        """Of each string that is there, where it ends and its negative length: the least is the one that counts."""
        places = [(stop, text.find(stop, begin)) for stop, begin in zip(self._stops, begins, strict=True)]
        return [(place + len(stop), -len(stop)) for stop, place in places if place >= 0]

    def finish(self) -> str:
        """The text has ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held


def count_begun(text: str, stop: str, begin: int) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with; none begins before `begin`.

    Over a growing text, `begin` moves on with every place that is no beginning: each is looked at once.
    """
    begin = max(begin, len(text) - len(stop) + 1)
    while (begin := text.find(stop[0], begin)) >= 0:
        if stop.startswith(text[begin:]):
            return len(text) - begin
        begin += 1
    return 0
