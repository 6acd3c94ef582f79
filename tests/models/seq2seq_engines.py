"""Answers of encoder-decoders: through the batcher and a real engine, and as transformers' `generate` finds them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tiny_models import Ids, TinyModel

from models.load import load_model
from runtime.build import build_engine
from runtime.config import EngineConfig
from runtime.engines.decoder import DecoderEngine
from runtime.limits import BatchLimits
from server.tasks.text2text import DecodingWish, begin_answer, settle_params
from server.wire.generation import GenerationParams
from tests.generation.continuous import Continuous, Heard, make_job

Found = tuple[tuple[int, ...], float | None]
"""An answer's tokens, and the score that a beam search gives it."""


def build_seq2seq(model: TinyModel, precision: str = "fp32", kind: str = "planned") -> DecoderEngine:
    """Of one thread, by the best kernels, warm."""
    assert model.info.seq2seq is not None
    limits = BatchLimits(1024, 32, model.info.seq2seq.max_target_tokens, 1024, model.info.max_input_tokens)
    config = EngineConfig.model_validate({"kind": kind, "precision": precision, "threads": 1})
    engine = build_engine(load_model(model.directory, model.info), config, limits, lambda *_: None)
    assert isinstance(engine, DecoderEngine)
    engine.warmup(lambda *_: None)
    return engine


def settle(model: TinyModel, stops: Sequence[int], wish: DecodingWish) -> GenerationParams:
    """As the routes do, but for what ends an answer."""
    return replace(settle_params(model.info, wish), stop_token_ids=tuple(stops))


class Answering:
    """One run of an engine. `start` requests, then `run` or `step`."""

    def __init__(self, model: TinyModel, engine: DecoderEngine, **options: Any) -> None:
        self.opening = begin_answer(model.info).tolist()
        settings: dict[str, Any] = {"num_blocks": 400, "max_batch_tokens": 256, "max_batch_requests": 32}
        settings["max_batch_logits"] = 256
        self.run = Continuous(engine=engine, has_prefix_cache=False, **(settings | options))

    def start(self, source: Ids, params: GenerationParams) -> Heard:
        return self.run.start_job(make_job([self.opening], params, sources=[source.tolist()]))


def answer(
    model: TinyModel, engine: DecoderEngine, sources: Sequence[Ids], params: GenerationParams, **options: Any
) -> list[list[Found]]:
    """Of each source, the best answer first, all of them under way at once. `options`: of `Continuous`."""
    answering = Answering(model, engine, **options)
    heard = [answering.start(source, params) for source in sources]
    answering.run.run()
    if "num_blocks" in options:
        assert answering.run.batcher.num_preemptions > 0
    return [read_answers(each) for each in heard]


def read_answers(heard: Heard) -> list[Found]:
    """By row; a search tells scores with its last news."""
    assert heard.error is None
    scores = {news.row: news.score for news in heard.news}
    return [(tuple(heard.answers[row]), scores[row]) for row in sorted(heard.answers)]


@torch.inference_mode()
def answer_by_transformers(
    model: TinyModel, sources: Sequence[Ids], stops: Sequence[int], **wishes: Any
) -> list[list[Found]]:
    """Each source alone, so that nothing is padded; without its cache, which fails where stacks differ in layers."""
    return [answer_one(model.theirs, source, stops, wishes) for source in sources]


def answer_one(theirs: Any, source: Ids, stops: Sequence[int], wishes: dict[str, Any]) -> list[Found]:
    given = torch.from_numpy(source)[None]
    found = theirs.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        use_cache=False,
        eos_token_id=list(stops),
        return_dict_in_generate=True,
        output_scores=True,
        **wishes,
    )
    answers = [cut_behind(row[1:].tolist(), stops) for row in found.sequences]
    scores = found.sequences_scores.tolist() if "sequences_scores" in found else [None] * len(answers)
    return list(zip(answers, scores, strict=True))


def cut_behind(answer: list[int], stops: Sequence[int]) -> tuple[int, ...]:
    place = next((index for index, token in enumerate(answer) if token in stops), len(answer) - 1)
    return tuple(answer[: place + 1])
