"""Finds stop strings in a text that arrives in pieces, wherever it is cut. Pure."""

from collections.abc import Sequence


class Pattern:
    """One stop string, looked for by Knuth, Morris and Pratt. Mutable: how much of it the text ends with."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._borders = find_borders(text)
        self.num_matched = 0

    def step(self, character: str) -> bool:
        """Whether the string ends with this character."""
        matched = self.num_matched
        if matched == len(self._text):
            matched = self._borders[matched - 1]
        while matched and self._text[matched] != character:
            matched = self._borders[matched - 1]
        self.num_matched = matched + (self._text[matched] == character)
        return self.num_matched == len(self._text)


def find_borders(text: str) -> list[int]:
    """For each beginning of the text, the length of its longest proper beginning that is also its end."""
    borders = [0] * len(text)
    matched = 0
    for index in range(1, len(text)):
        while matched and text[matched] != text[index]:
            matched = borders[matched - 1]
        matched += text[matched] == text[index]
        borders[index] = matched
    return borders


class StopStrings:
    """Lets through what cannot be part of a stop string any more, up to the first that is complete.

    Of several that are complete with the same character the longest counts. Mutable: what is held back, and `is_hit`.
    """

    def __init__(self, texts: Sequence[str], *, is_included: bool = False) -> None:
        self._patterns = [Pattern(text) for text in texts]
        self._is_included = is_included
        self._held = ""
        self.is_hit = False

    def push(self, piece: str) -> str:
        """What is certain now. After a hit nothing is."""
        if not self._patterns:
            return piece
        if self.is_hit:
            return ""
        held = self._held + piece
        for end, character in enumerate(piece, len(self._held) + 1):
            hits = [pattern.num_matched for pattern in self._patterns if pattern.step(character)]
            if hits:
                self.is_hit, self._held = True, ""
                return held[: end if self._is_included else end - max(hits)]
        begin = len(held) - max(pattern.num_matched for pattern in self._patterns)
        self._held = held[begin:]
        return held[:begin]

    def finish(self) -> str:
        """The text has ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held
