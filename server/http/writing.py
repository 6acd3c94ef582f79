"""Texts that an encoder-decoder writes for others: sentence by sentence, or several for one. Knows no protocol."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from server.http.answers import Answer, collect_answers
from server.http.call import Call
from server.http.endpoint import OpenJob, TextJob
from server.http.state import ServedModel, ServerState
from server.http.text_generation import TextGeneration
from server.tasks.text2text import TASK, DecodingWish, begin_answer, settle_params
from server.text.detokenizer import TokenTexts
from server.text.inputs import Input
from server.text.languages import Instruction, as_tokens
from server.text.prompts import Prompt
from server.text.sentences import SplitText
from server.text.text_stream import TextRules
from server.text.work import Truncation
from server.wire.generation import GenerationParams


@dataclass(frozen=True, slots=True)
class Writing:
    """What is to be written, for which sentences of which texts. `field`: the request's field they came in."""

    splits: Sequence[SplitText]
    wish: DecodingWish
    instruction: Instruction
    field: str
    truncation: Truncation = "error"
    priority: int = 0

    def build_job(self, model: ServedModel) -> TextJob:
        """Raises InvalidField, also naming fields of the wish."""
        sentences = [sentence for split in self.splits for sentence in split.sentences]
        params = settle_params(model.info, replace(self.wish, forced_begin=self.instruction.forced_begin))
        job = build_source_job(model, sentences, self.field, self.instruction, params)
        return replace(job, truncation=self.truncation, priority=self.priority)


def build_source_job(
    model: ServedModel, sources: Sequence[Input], field: str, given: Instruction, params: GenerationParams
) -> TextJob:
    """Answers to sources, each of which begins as the instruction or the model has it."""
    opening = begin_answer(model.info) if given.opening is None else as_tokens(given.opening)
    return TextJob(
        TASK,
        sources,
        field,
        params,
        prompt=Prompt(given.prefix),
        around=given.around,
        openings=[opening] * len(sources),
        num_answers=params.num_sequences,
        num_sequences=params.num_rows,
        num_answer_tokens=params.max_tokens,
    )


@dataclass(frozen=True, slots=True)
class Written:
    """`is_cut`: it, or one of its sentences, is as long as it may be. `score`: of a beam search, of several sentences
    their mean."""

    text: str
    is_cut: bool
    score: float | None


@dataclass(frozen=True, slots=True)
class WrittenTexts:
    """Of each text, the best one first."""

    answers: list[list[Written]]
    num_source_tokens: int
    num_written_tokens: int


@asynccontextmanager
async def open_writing(
    call: Call, state: ServerState, model: ServedModel, writing: Writing
) -> AsyncIterator[TextGeneration]:
    """What is written, sentence by sentence, as long as this is entered. Raises ServiceError's kinds."""
    metrics = state.metrics.bind_tokens(route=call.path, model=model.name)
    async with OpenJob(call, model, writing.build_job(model)) as opened:
        generation = TextGeneration(call, opened, TextRules(stop_token_ids=model.info.eos_token_ids), metrics)
        try:
            yield generation
        finally:
            generation.finish()


async def write_texts(call: Call, state: ServerState, model: ServedModel, writing: Writing) -> WrittenTexts:
    """Raises ServiceError's kinds."""
    async with open_writing(call, state, model, writing) as generation:
        answers = await collect_answers(generation)
        texts = await model.tokenizer.run(partial(read_texts, model.tokenizer.texts, answers))
    joined = join_answers(writing, answers, texts)
    return WrittenTexts(joined, generation.num_prompt_tokens, generation.num_generated_tokens)


def read_texts(tokens: TokenTexts, answers: Sequence[Answer]) -> list[str]:
    """As the tokenizer's own decoder has whole texts, which streams can only come near to."""
    ids = [[token.token_id for token in answer.tokens] for answer in answers]
    return tokens.write(ids, skip_special_tokens=True)


def join_answers(writing: Writing, answers: Sequence[Answer], texts: Sequence[str]) -> list[list[Written]]:
    """Sentences become texts again. Of several answers to a text each is one sentence."""
    num_answers, first = writing.wish.num_answers, 0
    joined: list[list[Written]] = []
    for split in writing.splits:
        last = first + len(split.sentences) * num_answers
        places = range(first, last)
        groups = [[place] for place in places] if num_answers > 1 else [places]
        joined.append(
            [
                join_sentences([answers[place] for place in group], split.join([texts[place] for place in group]))
                for group in groups
            ]
        )
        first = last
    return joined


def join_sentences(answers: Sequence[Answer], text: str) -> Written:
    scores = [answer.score for answer in answers if answer.score is not None]
    is_scored = bool(scores) and len(scores) == len(answers)
    is_cut = any(answer.finish_reason == "length" for answer in answers)
    return Written(text, is_cut, sum(scores) / len(scores) if is_scored else None)
