"""Scores of documents for queries, whatever protocol asks. A cross-encoder reads pairs, which are one job; an embedder
or a ColBERT reads both sides by themselves, with the prompts it has for them, as two jobs that run at the same time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from server.errors import EmptyInput, InvalidField
from server.http import token_vectors
from server.http.call import Call
from server.http.endpoint import OpenJob, TextJob, check_places, run_job
from server.http.state import ServedModel, ServerState
from server.tasks import multi_vector, rerank
from server.text.inputs import Input
from server.text.judgement import Judge
from server.text.prompts import NO_PROMPT, Prompt, find_by_type, find_default
from server.text.work import Truncation
from server.wire.job import Ragged

INLINE_PRODUCTS = 2_000_000
"""So many multiplications are done on the event loop's thread, in 1 to 2 ms."""


class SideTexts(NamedTuple):
    """Texts, and the request's field they came in. A text by itself has no index in messages."""

    texts: Sequence[str]
    field: str


@dataclass(frozen=True, slots=True)
class Question:
    """`queries`: one for all documents, or one for each. `truncation` None: nobody has said. `prompts`: before queries
    and before documents; None: those that the model has for them. `max_document_tokens`: what is behind so many is not
    read; None: all is. `max_input_tokens`: longer pairs are cut to so many, or queries and documents where they are
    read by themselves; None: to as many as the model takes."""

    queries: SideTexts
    documents: SideTexts
    truncation: Truncation | None
    scale: rerank.Scale = "sigmoid"
    prompts: tuple[Prompt, Prompt] | None = None
    max_document_tokens: int | None = None
    max_input_tokens: int | None = None
    priority: int = 0


def pick_ranker(state: ServerState, name: str | None) -> ServedModel:
    """The named model; else the only cross-encoder, for nothing ranks better, or the only embedder.

    Raises UnknownModel, InvalidField, WrongTask.
    """
    if name is None:
        rankers = {each: found for each, model in state.models.items() if (found := find_cross_encoder(model))}
        if rankers:
            state = replace(state, models=rankers)
    return state.pick_model(name, rerank.TASK)


def find_cross_encoder(model: ServedModel) -> ServedModel | None:
    """The first of its heads that is one and ranks."""
    heads = (head for head in model.heads if rerank.TASK.can_use(head.info))
    return next((head for head in heads if rerank.is_cross_encoder(head.info)), None)


async def score(call: Call, model: ServedModel, question: Question) -> rerank.Scores:
    """float32 `[num_documents]`. Raises ServiceError's kinds."""
    for side in (question.queries, question.documents):
        check_side(side, model)
    question = await shorten_documents(call, model, question)
    if rerank.is_cross_encoder(model.info):
        return await score_pairs(call, model, question)
    if model.info.late_interaction is not None:
        return await compare_tokens(call, model, question)
    return await compare_vectors(call, model, question)


async def shorten_documents(call: Call, model: ServedModel, question: Question) -> Question:
    """It takes places like any other call: it costs as much as tokenising does."""
    most, documents = question.max_document_tokens, question.documents
    if most is None or most >= model.tokenizer.max_input_tokens:
        return question
    with model.admission.admit(len(documents.texts), 0, deadline_s=call.deadline_s, tokens_per_s=0.0):
        texts = await model.tokenizer.shorten(documents.texts, most, field=documents.field)
    return replace(question, documents=SideTexts(texts, documents.field))


async def score_pairs(call: Call, model: ServedModel, question: Question) -> rerank.Scores:
    queries, documents = question.queries.texts, question.documents.texts
    each = queries if len(queries) == len(documents) else [queries[0]] * len(documents)
    pairs = list(zip(each, documents, strict=True))
    job = build_job(model, question, pairs, question.documents.field, find_default(model.info))
    if model.judge is not None:
        job = ask_judge(model.judge, job, pairs)
    logits = (await run_job(call, model, job))["logits"].values
    return rerank.score_logits(logits, model.info, question.scale)


def ask_judge(judge: Judge, job: TextJob, pairs: Sequence[tuple[str, str]]) -> TextJob:
    """The job with each pair as a question, whose prompt is in the judge's wording. Raises InvalidField."""
    if job.truncation == "left":
        raise InvalidField(
            "truncation_direction left would cut the question off, which stands before the document; leave it out",
            param="truncation_direction",
        )
    if job.max_input_tokens is not None and job.max_input_tokens <= len(judge.ending_ids):
        raise InvalidField(
            f"truncate_prompt_tokens is {job.max_input_tokens}, and what ends this model's questions takes "
            f"{len(judge.ending_ids)} of them already; raise it",
            param="truncate_prompt_tokens",
        )
    frames = {query: judge.frame(query) for query in dict(pairs)}
    texts = [f"{frames[query].before}{document}{frames[query].between}" for query, document in pairs]
    return replace(job, inputs=texts, prompt=NO_PROMPT, around=(judge.ending_ids[:0], judge.ending_ids))


async def compare_vectors(call: Call, model: ServedModel, question: Question) -> rerank.Scores:
    queries, documents = question.queries, question.documents
    check_places_of_both(queries, documents, model)
    prompts = question.prompts or (find_by_type(model.info, "query"), find_by_type(model.info, "document"))
    jobs = (
        build_job(model, question, queries.texts, queries.field, prompts[0]),
        build_job(model, question, documents.texts, documents.field, prompts[1]),
    )
    query_rows, document_rows = await run_both(call, model, jobs)
    return rerank.compute_cosines(query_rows["embeddings"].values, document_rows["embeddings"].values)


async def compare_tokens(call: Call, model: ServedModel, question: Question) -> rerank.Scores:
    """Both sides are cut as the model has it, where nobody has said."""
    queries, documents = question.queries, question.documents
    check_places_of_both(queries, documents, model)
    build = partial(
        token_vectors.build_job,
        truncation=question.truncation,
        max_input_tokens=question.max_input_tokens,
        priority=question.priority,
    )
    jobs = (
        build(model, queries.texts, queries.field, side="query"),
        build(model, documents.texts, documents.field),
    )
    rows = [arrays["token_embeddings"] for arrays in await run_both(call, model, jobs)]
    score_rows = partial(multi_vector.score_rows, *rows, is_mean=token_vectors.is_mean(model))
    if multi_vector.count_products(*rows) <= INLINE_PRODUCTS:
        return score_rows()
    return await model.tokenizer.run(score_rows)


async def run_both(
    call: Call, model: ServedModel, jobs: tuple[TextJob, TextJob]
) -> tuple[dict[str, Ragged], dict[str, Ragged]]:
    async with OpenJob(call, model, jobs[0]) as first, OpenJob(call, model, jobs[1]) as second:
        return await first.collect(), await second.collect()


def build_job(model: ServedModel, question: Question, inputs: Sequence[Input], field: str, prompt: Prompt) -> TextJob:
    return TextJob(
        rerank.TASK,
        inputs,
        field,
        rerank.RerankParams(),
        prompt=prompt,
        truncation=question.truncation or model.config.limits.truncation,
        max_input_tokens=question.max_input_tokens,
        priority=question.priority,
    )


def check_side(side: SideTexts, model: ServedModel) -> None:
    """A document without text is a mistake: a pair with it would get some score. Raises EmptyInput, InvalidField."""
    check_places(len(side.texts), model, side.field)
    for index, text in enumerate(side.texts):
        if not text:
            place = f"{side.field}[{index}]" if len(side.texts) > 1 else side.field
            raise EmptyInput(f"{place} must not be empty", param=side.field)


def check_places_of_both(queries: SideTexts, documents: SideTexts, model: ServedModel) -> None:
    """Each vector takes a place. Raises InvalidField."""
    limit = model.config.limits.max_client_batch_size
    num_inputs = len(queries.texts) + len(documents.texts)
    if num_inputs > limit:
        raise InvalidField(
            f"{queries.field} and {documents.field} have {num_inputs} items; the limit is {limit} per request, send "
            "several",
            param=documents.field,
        )
