"""Arrays by name: several outputs of one graph, prompts that pooling leaves out, and inputs that are not there."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.bert import Bert
from models.heads import EmbeddingHead, TextModel
from runtime.batch import ArraySpec, Batch, FloatArray
from runtime.build import build_engine
from runtime.capture import capture, describe_outputs, list_inputs
from runtime.config import EngineConfig
from runtime.engine import Engine, EngineError
from runtime.engines.transfer import make_batch
from runtime.limits import BatchLimits
from runtime.open import build_null
from runtime.ops import pool
from runtime.passes.fuse_pool import fuse_pool
from runtime.quantization.calibrate import Options, calibrate
from runtime.quantization.observe import trace_linears
from tests.kernels.kernel_cases import CONFIGURABLE
from tests.kernels.tiny_graphs import (
    BERT_CONFIG,
    CPU,
    HIDDEN_SIZE,
    Tiny,
    capture_body,
    captured_once,
    count_calls,
    random_batch,
    rewrite,
    run_graph,
    tiny_bert,
)
from tests.tolerances import SAME_ENGINE, Tolerance, check_close

LIMITS = BatchLimits(max_batch_tokens=256, max_batch_requests=16, max_input_tokens=128)
BATCH = random_batch([5, 1, 30, 30, 2])
PROMPTS = np.array([2, 0, 29, 7, 1], np.int32)
EMBEDDINGS = ArraySpec("embeddings", "float32", ("num_seqs", HIDDEN_SIZE))
HIDDEN_STATES = ArraySpec("hidden_states", "float32", ("num_tokens", HIDDEN_SIZE))

ENGINES: dict[str, dict[str, object]] = {
    "reference": {"kind": "reference"},
    **{
        f"{name}-{kernels}": {"precision": name, "cpu_kernels": kernels}
        for name in ("fp32", "bf16", "int8")
        for kernels in CONFIGURABLE
    },
}
TOLERANCES = {
    "bf16": Tolerance(norm=2e-2, bound=1.5e-1),
    "int8": Tolerance(norm=6e-2, bound=4e-1),
}


class RowsAndTokens(nn.Module):
    """Rows pooled without their prompts, scaled to length 1, and the token rows they are pooled from."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, hidden_states: Tensor, cu_seqlens: Tensor, num_prompt_tokens: Tensor) -> dict[str, Tensor]:
        rows = pool.OP(hidden_states, cu_seqlens, self.mode, False, num_prompt_tokens)
        return {"embeddings": functional.normalize(rows, dim=-1), "hidden_states": hidden_states}


class Early(Tiny):
    """What the body makes of the rows, and what four layers more make of that."""

    def forward(self, input_ids: Any, position_ids: Any, token_type_ids: Any, cu_seqlens: Any, max_seqlen: Any) -> Any:
        early = self.body(self, self.word(input_ids), cu_seqlens)
        return {"late": self.b(self.norm(self.b(self.c(early)))), "early": early}


def make_module(mode: str = "mean") -> TextModel:
    """`tiny_bert` with the other head."""
    encoder = tiny_bert().encoder
    assert isinstance(encoder, Bert)
    return TextModel(encoder, RowsAndTokens(mode)).eval().requires_grad_(False)


@cache
def build(name: str) -> Engine:
    config = EngineConfig(threads=1, **ENGINES[name])  # type: ignore[arg-type]
    with captured_once(make_module):
        return build_engine(make_module(), config, LIMITS, lambda *_: None)


def with_arrays(batch: Batch, **arrays: Any) -> Batch:
    return replace(batch, arrays=batch.arrays | arrays)


def cut(batch: Batch, index: int) -> Batch:
    """One sequence alone, with only what the model reads."""
    span = slice(batch.cu_seqlens[index], batch.cu_seqlens[index + 1])
    arrays = {name: batch.arrays[name][span] for name in ("input_ids", "position_ids", "token_type_ids")}
    arrays["num_prompt_tokens"] = batch.arrays["num_prompt_tokens"][[index]]
    length = span.stop - span.start
    return Batch(arrays, np.array([0, length], np.int32), int(length))


def pool_by_mask(rows: Tensor, num_prompt_tokens: int, mode: str) -> Tensor:
    """Of one sequence, as sentence-transformers does it: the mask's zeros weigh nothing."""
    mask = (torch.arange(len(rows)) >= num_prompt_tokens).float()
    if mode == "cls":
        return rows[int(mask.argmax())]
    if mode == "last":
        return rows[-1]
    if mode == "max":
        return rows.masked_fill(mask[:, None] == 0, -torch.inf).amax(0) if mask.any() else torch.zeros_like(rows[0])
    return (rows * mask[:, None]).sum(0) / mask.sum().clamp(min=1e-9)


def pool_all(hidden_states: FloatArray, cu_seqlens: Sequence[int], prompts: Sequence[int], mode: str) -> Tensor:
    spans = [torch.from_numpy(hidden_states[start:end]) for start, end in pairwise(cu_seqlens)]
    return torch.stack([pool_by_mask(span, count, mode) for span, count in zip(spans, prompts, strict=True)])


class TestOutputs:
    def test_specs_come_from_the_graph(self) -> None:
        assert describe_outputs(capture(tiny_bert(), CPU)) == (EMBEDDINGS,)
        for name in ENGINES:
            assert build(name).info.outputs == (EMBEDDINGS, HIDDEN_STATES), name

    @pytest.mark.parametrize("name", ENGINES)
    def test_two_outputs_are_the_references(self, name: str) -> None:
        batch = with_arrays(BATCH, num_prompt_tokens=PROMPTS)
        found, expected = build(name).run(batch).arrays, build("reference").run(batch).arrays
        assert list(found) == ["embeddings", "hidden_states"]
        for key, array in found.items():
            assert array.dtype == np.float32
            check_close(array, expected[key], tolerance=TOLERANCES.get(name.split("-")[0]), what=key)

    @pytest.mark.parametrize("name", ENGINES)
    def test_alone_is_the_same_as_in_a_batch(self, name: str) -> None:
        engine, batch = build(name), with_arrays(BATCH, num_prompt_tokens=PROMPTS)
        together = engine.run(batch).arrays
        tokens = np.split(together["hidden_states"], batch.cu_seqlens[1:-1])
        for index in range(batch.num_seqs):
            alone = engine.run(cut(batch, index)).arrays
            check_close(alone["embeddings"][0], together["embeddings"][index], tolerance=SAME_ENGINE)
            check_close(alone["hidden_states"], tokens[index], tolerance=SAME_ENGINE)

    @pytest.mark.parametrize("name", ["reference", "fp32-torch", f"int8-{CONFIGURABLE[-1]}"])
    def test_outputs_are_copies(self, name: str) -> None:
        """The next step writes to the memory they were computed in."""
        engine = build(name)
        first = engine.run(BATCH).arrays
        kept = {key: array.copy() for key, array in first.items()}
        engine.run(random_batch([9, 3, 3], seed=1))
        for key, array in first.items():
            np.testing.assert_array_equal(array, kept[key])

    @pytest.mark.parametrize("kernels", CONFIGURABLE)
    def test_early_output_outlives_later_steps(self, kernels: str) -> None:
        """Its memory is given to none of them."""
        module = Early(lambda m, x, _: m.a(x)).eval().requires_grad_(False)
        config = EngineConfig(threads=1, precision="fp32", cpu_kernels=kernels)
        found = build_engine(module, config, LIMITS, lambda *_: None).run(BATCH).arrays
        for key, rows in module(torch.from_numpy(BATCH.arrays["input_ids"]), None, None, None, None).items():
            check_close(found[key], rows, what=key)

    def test_calibration_measures_the_first_output(self) -> None:
        """And counts texts, not token rows."""
        calibration = calibrate(trace_linears(make_module(), CPU), [BATCH], [BATCH], Options(), lambda *_: None)
        assert calibration.quantization.num_texts == calibration.quantization.accuracy.num_texts == BATCH.num_seqs

    def test_module_must_name_its_outputs(self) -> None:
        class Nameless(nn.Module):
            def forward(self, input_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
                return input_ids * 2

        with pytest.raises(ValueError, match=r"Nameless\.forward must return a dict of tensors"):
            capture(Nameless(), CPU)

    def test_null_engine_gives_what_it_is_told(self) -> None:
        outputs = (replace(EMBEDDINGS, dims=("num_seqs", 6)), replace(HIDDEN_STATES, dims=("num_tokens", 2)))
        engine = build_null(outputs, EngineConfig(kind="null"), LIMITS)
        batch = make_batch([3, 2], token_id=7)
        arrays = engine.run(batch).arrays
        assert engine.info.outputs == outputs
        assert arrays["embeddings"].tolist() == [[3, 7, 7, 21, 3, 7], [2, 7, 7, 14, 2, 7]]
        assert arrays["hidden_states"].tolist() == [[7, 0], [7, 1], [7, 2], [7, 0], [7, 1]]


class TestPrompts:
    @pytest.mark.parametrize("mode", pool.POOLINGS)
    def test_pooling_leaves_them_out(self, mode: str) -> None:
        """All of a sequence, none of it, and anything between."""
        module, config = make_module(mode), EngineConfig(threads=1, precision="fp32")
        engine = build_engine(module, config, LIMITS, lambda *_: None)
        prompts = np.array([5, 0, 29, 30, 1], np.int32)
        found = engine.run(with_arrays(BATCH, num_prompt_tokens=prompts)).arrays
        rows = pool_all(found["hidden_states"], BATCH.cu_seqlens.tolist(), prompts.tolist(), mode)
        check_close(found["embeddings"], functional.normalize(rows, dim=-1))

    def test_they_are_read_only_by_heads_that_ask(self) -> None:
        plain = TextModel(Bert(BERT_CONFIG), EmbeddingHead(("mean",), (), True)).eval()
        assert "num_prompt_tokens" in list_inputs(plain)
        engine = build_engine(plain, EngineConfig(threads=1, precision="fp32"), LIMITS, lambda *_: None)
        batch = replace(BATCH, arrays={name: a for name, a in BATCH.arrays.items() if name != "num_prompt_tokens"})
        assert np.isfinite(engine.run(batch).arrays["embeddings"]).all()

    def test_fused_pooling_keeps_them(self) -> None:
        graph_module = rewrite(capture(make_module(), CPU), ("fuse_pool", fuse_pool))
        assert count_calls(graph_module)["pool"] == 1 and "div" not in count_calls(graph_module)
        (node,) = (node for node in graph_module.graph.nodes if node.target is pool.OP)
        assert node.args[3] is True and str(node.args[4]) == "num_prompt_tokens"

    def test_fusing_drops_no_keyword(self) -> None:
        def body(m: Tiny, x: Tensor, cu_seqlens: Tensor) -> Tensor:
            return functional.normalize(
                pool.OP(x, cu_seqlens, "mean", num_prompt_tokens=cu_seqlens[1:] * 0 + 1), dim=-1
            )

        graph_module = capture_body(body)
        expected = run_graph(graph_module, BATCH)
        check_close(run_graph(rewrite(graph_module, ("fuse_pool", fuse_pool)), BATCH), expected)


class TestInputs:
    @pytest.mark.parametrize("name", ["reference", "fp32-torch"])
    @pytest.mark.parametrize("lost", ["input_ids", "token_type_ids", "num_prompt_tokens"])
    def test_missing_one_is_named(self, name: str, lost: str) -> None:
        batch = replace(BATCH, arrays={key: array for key, array in BATCH.arrays.items() if key != lost})
        with pytest.raises(ValueError, match=f"the model reads {lost}, which the batch does not have"):
            build(name).run(batch)

    @pytest.mark.parametrize("name", ["reference", "fp32-torch"])
    def test_model_without_types_asks_for_none(self, name: str) -> None:
        module = TextModel(Bert(replace(BERT_CONFIG, type_vocab_size=0)), EmbeddingHead(("mean",), (), True)).eval()
        engine = build_engine(module, EngineConfig(threads=1, **ENGINES[name]), LIMITS, lambda *_: None)  # type: ignore[arg-type]
        arrays = {key: BATCH.arrays[key] for key in ("input_ids", "position_ids")}
        found = engine.run(replace(BATCH, arrays=arrays)).arrays["embeddings"]
        np.testing.assert_array_equal(found, engine.run(BATCH).arrays["embeddings"])

    @pytest.mark.parametrize("name", ["reference", "fp32-torch"])
    def test_wrong_type_or_length_is_refused(self, name: str) -> None:
        engine = build(name)
        wrong_type = with_arrays(BATCH, input_ids=BATCH.arrays["input_ids"].astype(np.int32))
        with pytest.raises(ValueError, match=r"input_ids is int32 \[68\]; it must be int64 \[68 \(num_tokens\)\]"):
            engine.run(wrong_type)
        with pytest.raises(ValueError, match=r"num_prompt_tokens is int32 \[4\]; it must be int32 \[5 \(num_seqs\)\]"):
            engine.run(with_arrays(BATCH, num_prompt_tokens=PROMPTS[:4]))
        assert np.isfinite(engine.run(BATCH).arrays["embeddings"]).all()

    @pytest.mark.parametrize("name", ["reference", "fp32-torch"])
    @pytest.mark.parametrize(
        ("cu_seqlens", "max_seqlen", "error"),
        [
            ([1, 5, 68], 63, r"cu_seqlens is \[1, 5, 68\] ...; it must start at 0"),
            ([0], 1, r"cu_seqlens is \[0\] ...; it must start at 0 and hold each"),
            ([], 1, r"cu_seqlens is \[\] ...; it must start at 0"),
            ([0, 5, 5, 68], 63, r"cu_seqlens\[1 : 3\] is \[5, 5\]; it must increase"),
            ([0, 2**31 - 1, -(2**31), 68], 68, r"cu_seqlens\[2 : 4\] is .*; it must increase"),
            ([0, 100, 68], 100, r"cu_seqlens\[1 : 3\] is \[100, 68\]; it must increase"),
            ([0, 5, 68], 62, r"max_seqlen is 62, but a sequence has 63 tokens"),
            ([0, 5, 67], 63, r"input_ids is int64 \[68\]; it must be int64 \[67 \(num_tokens\)\]"),
        ],
    )
    def test_wrong_borders_are_refused(self, cu_seqlens: list[int], max_seqlen: int, error: str, name: str) -> None:
        borders = np.array(cu_seqlens, np.int32)
        arrays = BATCH.arrays | {"num_prompt_tokens": np.zeros(max(len(borders) - 1, 0), np.int32)}
        with pytest.raises(ValueError, match=error):
            build(name).run(Batch(arrays, borders, max_seqlen))

    def test_parameter_that_is_no_input_is_named(self) -> None:
        class Curious(nn.Module):
            def forward(self, input_ids: Tensor, weather: Tensor) -> dict[str, Tensor]:
                return {"rows": input_ids + weather}

        with pytest.raises(ValueError, match=r"Curious\.forward takes weather; an engine has input_ids, "):
            capture(Curious(), CPU)

    def test_bad_ids_are_an_error_of_the_step(self) -> None:
        bad = with_arrays(BATCH, input_ids=np.full(BATCH.num_tokens, 10**6))
        for name in ("reference", "fp32-torch"):
            with pytest.raises(EngineError):
                build(name).run(bad)
