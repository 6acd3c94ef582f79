"""Hugging Face's inference payloads for models that find words: for masked places, and as answers in texts."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Annotated

import orjson
from pydantic import BaseModel, Field, StrictBool, StrictInt

from server.errors import EmptyInput, InvalidField
from server.http.api.fields import MAX_LIST, Label
from server.http.api.hf_request import InferenceRequest, Labels, read_parameters
from server.http.call import Call, Reply
from server.http.endpoint import OpenJob, TextJob, check_places, run_located, take_places
from server.http.replies import INLINE_ITEMS, join_list, make_parts, write_reply
from server.http.state import ServedModel
from server.tasks import fill_mask, question_answering
from server.text.inputs import Input
from server.text.located import Window
from server.wire.job import Array, Ragged, TokenArray, TokenSequence

MAX_TOP_K = 1024
MAX_ANSWER_TOKENS = 256
MAX_WRITTEN_TOKENS = 1 << 22
"""Of all texts with their words filled in, which take a second or two to write."""
USUAL_SEQ_LEN, USUAL_STRIDE = 384, 128
"""transformers': longer windows are rare in what models were trained with."""
ITEMS_PER_TOKEN = 4
"""To find answers takes about as long by token."""

TopK = Annotated[StrictInt, Field(ge=1, le=MAX_TOP_K)]
Word = dict[str, str | int | float]
Count = Annotated[StrictInt, Field(ge=1, le=MAX_LIST)]


class FillMask(BaseModel):
    """Parameters for masked language models. `targets`: words, or one."""

    top_k: TopK = 5
    targets: Annotated[
        Label | Annotated[Labels, Field(min_length=1)] | None,
        Field(description="a word, or a list of up to 1024 words"),
    ] = None


class QuestionAnswering(BaseModel):
    """Parameters for models that answer questions. Lengths are in tokens."""

    top_k: TopK = 1
    doc_stride: Annotated[StrictInt, Field(ge=0, le=MAX_LIST)] | None = None
    max_answer_len: Annotated[StrictInt, Field(ge=1, le=MAX_ANSWER_TOKENS)] = 15
    max_question_len: Count = 64
    max_seq_len: Count | None = None
    handle_impossible_answer: StrictBool = False
    align_to_words: StrictBool = True


async def fill_masks(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """Words for the masked place of each text, or lists of them where a text has several places."""
    wanted = read_parameters(FillMask, asked.parameters)
    targets = [wanted.targets] if isinstance(wanted.targets, str) else wanted.targets
    target_ids = None if targets is None else await find_targets(call, targets, model)
    params = fill_mask.FillMaskParams(wanted.top_k, target_ids)
    masks: list[TokenArray] = []

    async def settle(sequences: Sequence[TokenSequence]) -> fill_mask.FillMaskParams:
        masks.extend(fill_mask.find_masks(each, model.info) for each in sequences)
        check_work(sequences, masks, model, wanted.top_k)
        return params

    job = TextJob(
        *(fill_mask.TASK, asked.list_texts(), "inputs"),
        settle=settle,
        truncation=model.config.limits.truncation,
        list_rows=partial(fill_mask.find_masks, info=model.info),
    )
    async with OpenJob(call, model, job) as opened:
        arrays, sequences = await opened.collect(), opened.sequences
    size = wanted.top_k * count_filled(sequences, masks)
    words = write_words(sequences, masks, model, arrays["token_ids"], arrays["scores"])
    answers = await make_parts(words, size, INLINE_ITEMS, model)
    return await write_reply(lambda: asked.join(answers), size, INLINE_ITEMS, model)


async def find_targets(call: Call, targets: Sequence[str], model: ServedModel) -> tuple[int, ...]:
    """A word that is no token stands for its first one. Raises InvalidField where one has none."""
    known = [model.tokenizer.texts.find_id(target) for target in targets]
    inputs: list[Input] = [
        target if token_id is None else [token_id] for target, token_id in zip(targets, known, strict=True)
    ]
    with take_places(call, model, 1):
        sequences = await model.tokenizer.encode(
            inputs, truncation="right", field="targets", add_special_tokens=False, max_tokens=1
        )
    found = [int(sequence.input_ids[0]) for sequence in sequences]
    for index, token_id in enumerate(found):
        if token_id >= model.info.vocab_size:
            raise InvalidField(f"targets[{index}] is a token that this model does not have", param="targets")
    return tuple(dict.fromkeys(found))


def check_work(sequences: Sequence[TokenSequence], masks: Sequence[TokenArray], model: ServedModel, top_k: int) -> None:
    """`masks`: the masked places of each. Raises InvalidField where a text has none, or there are too many."""
    max_masks = min(fill_mask.MAX_MASKS, model.config.limits.max_batch_requests)
    fill_mask.check_masks(masks, model.info, max_masks, "inputs")
    num_written = top_k * count_filled(sequences, masks)
    if num_written > MAX_WRITTEN_TOKENS:
        raise InvalidField(
            f"top_k is {top_k}, which makes texts of {num_written:,} tokens with all {model.info.mask_token} filled "
            f"in; the limit is {MAX_WRITTEN_TOKENS:,} per request: lower top_k, or send several",
            param="top_k",
        )


def count_filled(sequences: Sequence[TokenSequence], masks: Sequence[TokenArray]) -> int:
    """Tokens of all texts, each written once for each of its masked places."""
    return sum(each.num_tokens * len(places) for each, places in zip(sequences, masks, strict=True))


def write_words(
    sequences: Sequence[TokenSequence], masks: Sequence[TokenArray], model: ServedModel, ids: Ragged, scores: Ragged
) -> Iterator[bytes | None]:
    """JSON of one text after the other, and None on the way to it: the words of its masked place, or of each place."""
    for index, sequence in enumerate(sequences):
        lists = []
        for place, row, numbers in zip(masks[index].tolist(), ids.row(index), scores.row(index), strict=True):
            bits = []
            # Of several places the others stay masked, which is a special token.
            for words in read_words(sequence, place, row, numbers, model, skip_special_tokens=len(masks[index]) == 1):
                bits.append(orjson.dumps(words)[1:-1])
                yield None
            lists.append(join_list(bits))
        yield join_list(lists) if len(lists) > 1 else lists[0]


def read_words(
    sequence: TokenSequence, place: int, ids: Array, scores: Array, model: ServedModel, *, skip_special_tokens: bool
) -> Iterator[list[Word]]:
    """For one masked place, some at a time: each with the whole text, which may be long."""
    texts = model.tokenizer.texts
    step = max(1, INLINE_ITEMS // sequence.num_tokens)
    for begin in range(0, len(ids), step):
        some = ids[begin : begin + step].tolist()
        names = texts.write([[token_id] for token_id in some], skip_special_tokens=False)
        filled = texts.write(fill_mask.fill_in(sequence, place, some), skip_special_tokens=skip_special_tokens)
        numbers = scores[begin : begin + step].tolist()
        yield [
            {"score": score, "token": token_id, "token_str": name, "sequence": text}
            for score, token_id, name, text in zip(numbers, some, names, filled, strict=True)
        ]


async def answer_questions(call: Call, model: ServedModel, asked: InferenceRequest) -> Reply:
    """The best answer to each question, or a list of them where more than one is wanted."""
    wanted = read_parameters(QuestionAnswering, asked.parameters)
    questions = await shorten_questions(call, asked.list_questions(), model, wanted.max_question_len)
    most = model.tokenizer.limit_tokens(wanted.max_seq_len or USUAL_SEQ_LEN)
    job = TextJob(
        *(question_answering.TASK, questions, "inputs", question_answering.QuestionAnsweringParams()),
        stride=min(most // 2, USUAL_STRIDE) if wanted.doc_stride is None else wanted.doc_stride,
        wants_places=True,
        max_input_tokens=most,
    )
    try:
        arrays, windows = await run_located(call, model, job)
    except InvalidField as error:
        if error.param != "stride":
            raise
        raise InvalidField(
            f"doc_{error.message} beside the question: lower doc_stride or raise max_seq_len", param="doc_stride"
        ) from None
    reader = question_answering.AnswerReader(
        wanted.top_k, wanted.max_answer_len, wanted.handle_impossible_answer, wanted.align_to_words
    )
    size = call.times.num_tokens * ITEMS_PER_TOKEN
    answers = await make_parts(write_answers(reader, windows, arrays["token_logits"]), size, INLINE_ITEMS, model)
    return await write_reply(lambda: asked.join(answers), size, INLINE_ITEMS, model)


async def shorten_questions(
    call: Call, pairs: Sequence[tuple[str, str]], model: ServedModel, max_tokens: int
) -> list[tuple[str, str]]:
    """Raises InvalidField where there are too many; EmptyInput where one, or its context, is empty."""
    check_places(len(pairs), model, "inputs")
    for index, pair in enumerate(pairs):
        if not all(pair):
            place = f"inputs[{index}]" if len(pairs) > 1 else "inputs"
            raise EmptyInput(f"{place} must have a question and a context, and neither may be empty", param="inputs")
    with take_places(call, model, len(pairs)):
        questions = await model.tokenizer.shorten([question for question, _ in pairs], max_tokens, field="inputs")
    return [(question, context) for question, (_, context) in zip(questions, pairs, strict=True)]


def write_answers(
    reader: question_answering.AnswerReader, windows: list[list[Window]], logits: Ragged
) -> Iterator[bytes | None]:
    """JSON of what answers one question after the other, and None on the way to it. Raises EmptyInput where there is
    nothing to choose an answer from."""
    rows = (logits.row(index) for index in range(len(logits)))
    for index, each in enumerate(windows):
        found = yield from reader.read(each, list(islice(rows, len(each))))
        if not found:
            place = f"inputs[{index}]" if len(windows) > 1 else "inputs"
            raise EmptyInput(f"{place} has a context without a token to answer with", param="inputs")
        yield orjson.dumps(found[0] if reader.top_k == 1 else found)
