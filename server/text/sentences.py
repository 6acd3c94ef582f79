"""Texts as sentences, and the answers to them as texts again. Translators were trained on sentences; sentencex knows
where those of some 240 languages end."""

from collections.abc import Sequence
from dataclasses import dataclass

import sentencex


@dataclass(frozen=True, slots=True)
class SplitText:
    """`gaps[i]`, nothing but white space, stands before `sentences[i]`, and the last one behind all."""

    sentences: tuple[str, ...]
    gaps: tuple[str, ...]

    def join(self, answers: Sequence[str]) -> str:
        """The answers to the sentences, with the gaps that those had."""
        return "".join(gap + answer for gap, answer in zip(self.gaps, (*answers, ""), strict=True))


def split_text(text: str, language: str = "en") -> SplitText:
    """`language`: as ISO 639 writes it; one that is not known is split like English."""
    sentences, gaps, gap = [], [], ""
    for piece in sentencex.segment(language, text):
        sentence = piece.strip()
        if not sentence:
            gap += piece
            continue
        start = piece.index(sentence)
        sentences.append(sentence)
        gaps.append(gap + piece[:start])
        gap = piece[start + len(sentence) :]
    return SplitText(tuple(sentences), (*gaps, gap))


def keep_whole(text: str) -> SplitText:
    """As one sentence."""
    return SplitText((text,), ("", ""))
