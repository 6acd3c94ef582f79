"""Real models, through the batcher and the engine, against transformers: the same greedy tokens, the same logits."""

import random

import numpy as np
import pytest
import torch

from runtime.engine import Engine
from server.wire.generation import GenerationParams
from tests.generation.continuous import Continuous, Heard, count_vocab
from tests.generation.real_engines import build, load_reference, reference_logprobs
from tests.tolerances import check_close

NUM_PROMPTS, NUM_TOKENS = 24, 40
NUM_TOP = 5
MODELS = ["stories15m", "microformer-gpt2", "smollm2-135m-instruct"]

SCENARIOS = {
    "whole prompts": {},
    "chunked": {"max_batch_tokens": 40, "prefill_chunk_tokens": 7},
    "preempted": {"num_blocks": 30, "max_batch_tokens": 128},
    "guessed ahead": {"num_drafts": 4},
    "gone on with": {"step_s": 0.004},
}


def make_prompts(vocab_size: int, count: int, seed: int = 0) -> list[list[int]]:
    """Of 1 to 60 tokens; half of them begin alike. Rare tokens come from anywhere in the vocabulary."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, vocab_size) for _ in range(40)]
    prompts = []
    for number in range(count):
        begin = shared[: rng.choice([16, 32, 40])] if number % 2 else []
        prompts.append([*begin, *(rng.randrange(3, vocab_size) for _ in range(rng.randint(1, 20)))])
    return prompts


def generate(engine: Engine, prompts: list[list[int]], params: GenerationParams, **options: object) -> list[Heard]:
    torch.set_num_threads(2)
    settings = {"num_blocks": min(engine.info.num_blocks, 600), "max_batch_tokens": 256, "max_batch_logits": 128}
    run = Continuous(engine=engine, max_batch_requests=64, max_total_tokens=256, **(settings | options))  # type: ignore[arg-type]
    heard = [run.start(prompt, params) for prompt in prompts]
    run.run()
    if "num_blocks" in options:
        assert run.batcher.num_preemptions > 0
    return heard


def check_against_reference(name: str, prompts: list[list[int]], heard: list[Heard]) -> None:
    """Given what came before, transformers says the same token next: so, by induction, it says the same text."""
    sequences = [prompt + each.answers[0] for prompt, each in zip(prompts, heard, strict=True)]
    for prompt, each, expected in zip(prompts, heard, reference_logprobs(name, sequences), strict=True):
        steps = expected[len(prompt) - 1 : -1]
        answer = torch.tensor(each.answers[0])
        assert steps.argmax(-1).tolist() == answer.tolist()
        logprobs = [logprob for news in each.news for logprob in news.logprobs]
        top = np.array([[value for _, value in logprob.top] for logprob in logprobs])
        wanted = steps.topk(NUM_TOP).values
        check_close(torch.from_numpy(top).float(), wanted)
        assert [logprob.logprob for logprob in logprobs] == [logprob.top[0][1] for logprob in logprobs]


def list_scenarios() -> list[object]:
    """The plain one on the first model, on the second the one that goes through most; the rest in `make test-slow`."""
    quick = {(MODELS[0], "whole prompts"), (MODELS[1], "preempted"), (MODELS[1], "gone on with")}
    return [
        pytest.param(name, scenario, marks=() if (name, scenario) in quick else pytest.mark.slow)
        for name in MODELS
        for scenario in SCENARIOS
    ]


@pytest.mark.parametrize(("name", "scenario"), list_scenarios())
def test_greedy_tokens_and_logprobs_are_transformers(name: str, scenario: str) -> None:
    engine = build(name)
    prompts = make_prompts(count_vocab(engine), NUM_PROMPTS)
    params = GenerationParams(NUM_TOKENS, temperature=0.0, num_logprobs=NUM_TOP)
    check_against_reference(name, prompts, generate(engine, prompts, params, **SCENARIOS[scenario]))


@pytest.mark.parametrize(
    ("name", "draft"),
    [
        ("stories15m", "stories15m"),
        pytest.param("stories15m", "", marks=pytest.mark.slow),
        ("microformer-gpt2", ""),
    ],
)
def test_sampled_answer_is_the_same_alone_and_in_any_batch(name: str, draft: str) -> None:
    """Bit for bit: through other batch-mates, chunks, preemption, prefix hits and drafts."""
    engine = build(name)
    prompts = make_prompts(count_vocab(engine), 6, seed=1)
    params = GenerationParams(
        20, temperature=0.9, top_p=0.95, top_k=100, seed=7, num_sequences=2, num_logprobs=2, repetition_penalty=1.1
    )
    alone = [generate(engine, [prompt], params)[0] for prompt in prompts]
    other = build(name, draft=draft) if draft else engine
    for options in ({}, {"max_batch_tokens": 33, "prefill_chunk_tokens": 5}, {"num_blocks": 16}, {"num_drafts": 3}):
        for one, each in zip(alone, generate(other, prompts, params, **options), strict=True):
            assert one.answers == each.answers
            assert list_logprobs(one) == list_logprobs(each)


def list_logprobs(heard: Heard) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for news in heard.news:
        found.setdefault(news.row, []).extend(logprob.logprob for logprob in news.logprobs)
    return found


def test_draft_model_that_is_the_model_is_always_right() -> None:
    engine = build("stories15m", draft="stories15m")
    prompts = make_prompts(count_vocab(engine), 8, seed=2)
    params = GenerationParams(NUM_TOKENS, temperature=0.0, num_logprobs=NUM_TOP)
    run = Continuous(engine=engine, num_blocks=600, max_batch_tokens=256, max_total_tokens=256)
    heard = [run.start(prompt, params) for prompt in prompts]
    run.run()
    check_against_reference("stories15m", prompts, heard)
    assert run.batcher.settlement.num_accepted == run.batcher.settlement.num_drafted > 200


def test_prompt_logprobs_are_transformers() -> None:
    engine = build("stories15m")
    prompts = [prompt for prompt in make_prompts(count_vocab(engine), 6, seed=3) if len(prompt) > 1]
    params = GenerationParams(0, temperature=0.0, num_prompt_logprobs=3)
    heard = generate(engine, prompts, params, max_batch_tokens=40)
    for prompt, each, expected in zip(prompts, heard, reference_logprobs("stories15m", prompts), strict=True):
        found = each.news[0].prompt_logprobs
        wanted = expected[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        check_close(torch.tensor([logprob.logprob for logprob in found]), wanted)
        top = torch.tensor([[value for _, value in logprob.top] for logprob in found])
        check_close(top, expected[:-1].topk(3).values)


@pytest.mark.parametrize(
    ("name", "early_stopping", "length_penalty"),
    [
        ("stories15m", False, 1.0),
        pytest.param("stories15m", True, 0.6, marks=pytest.mark.slow),
        pytest.param("microformer-gpt2", False, 2.0, marks=pytest.mark.slow),
        ("microformer-gpt2", True, 1.0),
    ],
)
def test_beam_search_is_transformers(name: str, early_stopping: bool, length_penalty: float) -> None:
    engine, reference = build(name), load_reference(name)
    prompts = make_prompts(count_vocab(engine), 6, seed=4)
    stop = reference.generation_config.eos_token_id or reference.config.eos_token_id
    # Frequent tokens as ends too, so that beams do end.
    ends = (stop, *frequent_tokens(engine, prompts))
    params = GenerationParams(
        24,
        temperature=0.0,
        num_sequences=3,
        beam_width=4,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        stop_token_ids=ends,
    )
    heard = generate(engine, prompts, params)
    for prompt, each in zip(prompts, heard, strict=True):
        found = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=24,
            do_sample=False,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            eos_token_id=list(ends),
            pad_token_id=ends[0],
        )
        expected = [strip_padding(row[len(prompt) :].tolist(), ends) for row in found]
        assert [each.answers[index] for index in range(3)] == expected


def frequent_tokens(engine: Engine, prompts: list[list[int]]) -> list[int]:
    heard = generate(engine, prompts, GenerationParams(24, temperature=0.0))
    tokens = [token for each in heard for token in each.answers[0]]
    return sorted(set(tokens), key=tokens.count)[-2:]


def strip_padding(answer: list[int], ends: tuple[int, ...]) -> list[int]:
    place = next((index for index, token in enumerate(answer) if token in ends), len(answer) - 1)
    return answer[: place + 1]


@pytest.mark.parametrize(
    "kv_dtype", [*(pytest.param(each, marks=pytest.mark.slow) for each in ("bf16", "fp16")), "int8"]
)
def test_narrow_caches_stay_close(kv_dtype: str) -> None:
    """Teacher-forced, so that one other choice does not make all that follows incomparable."""
    engine = build("stories15m", kv_dtype=kv_dtype)
    sequences = [each[:100] for each in make_stories()]
    heard = generate(engine, sequences, GenerationParams(0, num_prompt_logprobs=0), max_batch_tokens=37)
    for sequence, each, expected in zip(sequences, heard, reference_logprobs("stories15m", sequences), strict=True):
        wanted = expected[:-1].gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]
        found = torch.tensor([logprob.logprob for logprob in each.news[0].prompt_logprobs])
        bound = {"bf16": 0.02, "fp16": 0.003, "int8": 0.03}[kv_dtype]
        assert (found - wanted).norm() / wanted.norm() < bound


def make_stories() -> list[list[int]]:
    """What the model itself would say."""
    engine = build("stories15m")
    heard = generate(engine, [[1], [1, 410], [1, 940]], GenerationParams(120, temperature=0.0))
    return [each.answers[0] for each in heard]
