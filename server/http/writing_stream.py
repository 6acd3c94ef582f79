"""Texts that are written for others as they grow, a sentence at a time. Knows no protocol."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from server.http.answers import Answer
from server.http.state import ServedModel
from server.http.text_generation import TextGeneration
from server.http.writing import read_texts
from server.text.sentences import SplitText


@dataclass(frozen=True, slots=True)
class Piece:
    """What comes next of the answer to text number `index`: a sentence with the white space around it. `is_cut`: it, or
    one before it, is as long as it may be."""

    index: int
    text: str
    is_last: bool
    is_cut: bool


@dataclass(slots=True)
class GrowingText:
    """The answer to one text. Mutable: sentences that are there and wait for those before them; how many have gone."""

    index: int
    split: SplitText
    waiting: dict[int, tuple[str, bool]] = field(default_factory=dict)
    num_told: int = 0
    is_cut: bool = False

    def add(self, place: int, text: str, is_cut: bool) -> list[Piece]:
        """The sentence number `place` is there; what can be told now."""
        self.waiting[place] = text, is_cut
        pieces = []
        while self.num_told in self.waiting:
            text, is_cut = self.waiting.pop(self.num_told)
            self.is_cut = self.is_cut or is_cut
            gaps, last = self.split.gaps, len(self.split.sentences) - 1
            is_last = self.num_told == last
            whole = gaps[self.num_told] + text + (gaps[-1] if is_last else "")
            pieces.append(Piece(self.index, whole, is_last, self.is_cut))
            self.num_told += 1
        return pieces


async def read_pieces(
    model: ServedModel, splits: Sequence[SplitText], generation: TextGeneration
) -> AsyncGenerator[list[Piece]]:
    """Of texts with one answer each: pieces in the order of their sentences, texts beside one another. Raises what the
    engine's streams raise."""
    owners = [(GrowingText(index, split), len(split.sentences)) for index, split in enumerate(splits)]
    places = [(growing, place) for growing, count in owners for place in range(count)]
    answers = [Answer() for _ in places]
    async with aclosing(generation.read()) as news:
        async for deltas in news:
            ended = []
            for delta in deltas:
                if delta.is_first:
                    answers[delta.index] = Answer()
                answers[delta.index].add(delta)
                if delta.finish_reason:
                    # Before anything is waited for: meanwhile a sibling could take over and begin anew.
                    generation.note_told(delta.index)
                    ended.append(delta.index)
            if not ended:
                continue
            found = [answers[row] for row in ended]
            texts = await model.tokenizer.run(partial(read_texts, model.tokenizer.texts, found))
            pieces: list[Piece] = []
            for row, answer, text in zip(ended, found, texts, strict=True):
                growing, place = places[row]
                pieces += growing.add(place, text, answer.finish_reason == "length")
            if pieces:
                yield pieces
