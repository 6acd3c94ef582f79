"""Each pass on a graph just large enough: the same numbers before and after, and the nodes that should be there."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from runtime.backends.backend import Backend
from runtime.backends.cpu.backend import PASSES
from runtime.backends.cpu.pack_weights import pack_weights
from runtime.backends.plain.table import TORCH_KERNELS, plain_backend
from runtime.capture import capture, constant
from runtime.ops import embed_norm, lora, pool
from runtime.passes.drop_casts import drop_casts
from runtime.passes.fold_constants import fold_constants
from runtime.passes.fuse_add_norm import fuse_add_norm
from runtime.passes.fuse_gated_act import fuse_gated_act
from runtime.passes.fuse_linear_act import fuse_linear_act
from runtime.passes.fuse_linear_add import fuse_linear_add
from runtime.passes.fuse_qkv import fuse_qkv
from runtime.passes.pipeline import (
    PrecisionChoice,
    choose_precision,
    has_cpu_bf16,
    list_candidates,
    list_passes,
)
from runtime.passes.precision import lower_precision
from runtime.passes.rewriting import infer_shapes
from tests.kernels.tiny_graphs import (
    CPU,
    HIDDEN_SIZE,
    Body,
    Tiny,
    capture_body,
    count_calls,
    random_batch,
    rewrite,
    run_graph,
)
from tests.tolerances import check_close

BATCH = random_batch([5, 1, 9])


def check_pass(body: Body, name: str, rewriter: Callable[[GraphModule], None]) -> tuple[dict[str, int], GraphModule]:
    """The same result; how many calls of each op are left."""
    graph_module = capture_body(body)
    before = run_graph(graph_module, BATCH)
    rewrite(graph_module, (name, rewriter))
    check_close(run_graph(graph_module, BATCH), before, what=name)
    return count_calls(graph_module), graph_module


class TestFuseQkv:
    def test_linears_of_one_source_become_one(self) -> None:
        body = lambda m, x, _: m.a(x) * m.b(x) + m.c(x)  # noqa: E731
        counts, graph_module = check_pass(body, "fuse_qkv", fuse_qkv)
        assert (counts["linear"], counts["slice"]) == (1, 3)
        assert graph_module.get_buffer("abc_weight").shape == (3 * HIDDEN_SIZE, HIDDEN_SIZE)

    def test_lone_linear_is_left(self) -> None:
        counts, _ = check_pass(lambda m, x, _: m.b(m.a(x)), "fuse_qkv", fuse_qkv)
        assert counts == {"embedding": 1, "linear": 2}

    def test_linears_with_and_without_bias_stay_apart(self) -> None:
        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            return m.a(x) * m.b(x) + functional.linear(x, m.c.weight)

        counts, _ = check_pass(body, "fuse_qkv", fuse_qkv)
        assert (counts["linear"], counts["slice"]) == (2, 2)

    def test_feed_forward_stays_apart(self) -> None:
        """Both blocks of a layer may read one tensor: what is gated is one GEMM by itself, an activation keeps its."""
        gated = check_pass(lambda m, x, _: m.a(x) + functional.silu(m.b(x)) * m.c(x), "fuse_qkv", fuse_qkv)[0]
        assert (gated["linear"], gated["slice"]) == (2, 2)
        plain = check_pass(lambda m, x, _: m.a(x) * m.b(x) + functional.gelu(m.c(x)), "fuse_qkv", fuse_qkv)[0]
        assert (plain["linear"], plain["slice"]) == (2, 2)

    def test_modules_stay_apart(self) -> None:
        """As the keys and values that each layer of a decoder has of one source."""

        class Other(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.k, self.v = (nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(2))

            def forward(self, m: Tiny, x: Tensor, _: Tensor) -> Tensor:
                return m.a(x) * m.b(x) + self.k(x) * self.v(x)

        counts, graph_module = check_pass(Other(), "fuse_qkv", fuse_qkv)
        assert (counts["linear"], counts["slice"]) == (2, 4)
        assert graph_module.get_buffer("body_kv_weight").shape == (2 * HIDDEN_SIZE, HIDDEN_SIZE)

    def test_shared_weights_stay_shared(self) -> None:
        """As ALBERT's: layers that use the same weights fuse into the same constant."""

        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            for _ in range(3):
                x = m.a(x) * m.b(x)
            return x

        counts, graph_module = check_pass(body, "fuse_qkv", fuse_qkv)
        assert counts["linear"] == 3
        weights = {node.args[1] for node in graph_module.graph.nodes if "linear" in str(node.target)}
        assert len(weights) == 1

    def test_source_read_by_others_too(self) -> None:
        """The residual goes past the projections; only linears fuse."""
        counts, _ = check_pass(lambda m, x, _: m.a(x) * m.b(x) + x, "fuse_qkv", fuse_qkv)
        assert (counts["linear"], counts["add"]) == (1, 1)


class TestFuseLinearAct:
    @pytest.mark.parametrize("act", ["gelu", "gelu_tanh", "relu", "silu", "tanh"])
    def test_activation_joins_its_linear(self, act: str) -> None:
        functions = {"gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"), "tanh": torch.tanh}
        activate = functions.get(act) or getattr(functional, act)
        counts, graph_module = check_pass(lambda m, x, _: activate(m.a(x)), "fuse_linear_act", fuse_linear_act)
        assert counts == {"embedding": 1, "linear_act": 1}
        (node,) = (node for node in graph_module.graph.nodes if "linear_act" in str(node.target))
        assert node.args[3] == act

    def test_linear_without_bias(self) -> None:
        body = lambda m, x, _: functional.relu(functional.linear(x, m.a.weight))  # noqa: E731
        assert check_pass(body, "fuse_linear_act", fuse_linear_act)[0] == {"embedding": 1, "linear_act": 1}

    def test_activation_joins_adapters(self) -> None:
        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            ids = torch.ones_like(x[:, 0], dtype=torch.int64)
            return functional.gelu(lora.OP(m.a(x), x, m.b.weight[None], ids, m.c.weight[None]))

        counts, graph_module = check_pass(body, "fuse_linear_act", fuse_linear_act)
        assert (counts["linear"], counts["lora"]) == (1, 1) and "gelu" not in counts
        (node,) = (node for node in graph_module.graph.nodes if "lora" in str(node.target))
        assert node.args[-1] == "gelu"

    def test_second_reader_of_the_linear_forbids(self) -> None:
        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            up = m.a(x)
            return functional.gelu(up) + up

        counts, _ = check_pass(body, "fuse_linear_act", fuse_linear_act)
        assert counts == {"embedding": 1, "linear": 1, "gelu": 1, "add": 1}

    def test_activation_of_something_else_is_left(self) -> None:
        counts, _ = check_pass(lambda m, x, _: functional.gelu(m.norm(x)), "fuse_linear_act", fuse_linear_act)
        assert counts == {"embedding": 1, "layer_norm": 1, "gelu": 1}


class TestFuseGatedAct:
    @pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu"])
    def test_gate_and_what_it_lets_through_become_one_op(self, act: str) -> None:
        functions = {"gelu_tanh": lambda x: functional.gelu(x, approximate="tanh")}
        activate = functions.get(act) or getattr(functional, act)

        def both(graph_module: GraphModule) -> None:
            fuse_qkv(graph_module)
            graph_module.graph.eliminate_dead_code()
            infer_shapes(graph_module)
            fuse_gated_act(graph_module)

        for body in (lambda m, x, _: activate(m.a(x)) * m.b(x), lambda m, x, _: m.b(activate(m.a(x)) * m.c(x))):
            counts, graph_module = check_pass(body, "fuse_gated_act", both)
            assert counts["gated_act"] == 1 and "mul" not in counts and "slice" not in counts
            (node,) = (node for node in graph_module.graph.nodes if "gated_act" in str(node.target))
            assert node.args[1] == act

    def test_product_of_other_things_is_left(self) -> None:
        counts, _ = check_pass(lambda m, x, _: functional.silu(m.a(x)) * m.b(m.c(x)), "fuse_gated_act", fuse_gated_act)
        assert counts["mul"] == 1 and "gated_act" not in counts


class TestFuseRmsNorm:
    @staticmethod
    def norm(m: Tiny, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (HIDDEN_SIZE,), m.norm.weight, 1e-5)

    def test_alone(self) -> None:
        counts, _ = check_pass(lambda m, x, _: self.norm(m, m.a(x)), "fuse_add_norm", fuse_add_norm)
        assert counts == {"embedding": 1, "linear": 1, "add_norm": 1}

    def test_with_the_sum_before_it(self) -> None:
        counts, _ = check_pass(lambda m, x, _: self.norm(m, m.a(x) + x), "fuse_add_norm", fuse_add_norm)
        assert counts == {"embedding": 1, "linear": 1, "add_norm": 1}

    def test_sum_that_goes_on_as_residual_stays(self) -> None:
        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            summed = m.a(x) + x
            return self.norm(m, summed) + summed

        counts, _ = check_pass(body, "fuse_add_norm", fuse_add_norm)
        assert counts == {"embedding": 1, "linear": 1, "add": 2, "add_norm": 1}


class TestFoldConstants:
    def test_what_no_input_changes_is_computed_once(self) -> None:
        counts, _ = check_pass(
            lambda m, x, _: m.a(x) + (m.a.bias * 2 + torch.ones(HIDDEN_SIZE)).view(1, -1), "fold", fold_constants
        )
        assert counts == {"embedding": 1, "linear": 1, "view": 1, "add": 1}

    def test_views_of_weights_keep_sharing_them(self) -> None:
        counts, graph_module = check_pass(lambda m, x, _: x @ m.a.weight.t(), "fold", fold_constants)
        assert counts == {"embedding": 1, "t": 1, "matmul": 1}
        assert not any("folded" in str(node.target) for node in graph_module.graph.nodes)

    def test_what_an_input_changes_stays(self) -> None:
        counts, _ = check_pass(lambda m, x, _: m.a(x) + torch.arange(x.shape[0])[:, None], "fold", fold_constants)
        assert counts["arange"] == 1


class TestDropCasts:
    def test_cast_to_the_same_type_goes(self) -> None:
        counts, _ = check_pass(lambda m, x, _: m.a(x).float(), "drop_casts", drop_casts)
        assert counts == {"embedding": 1, "linear": 1}

    def test_cast_to_another_type_stays(self) -> None:
        counts, _ = check_pass(lambda m, x, _: m.a(x.double().float()), "drop_casts", drop_casts)
        assert counts["to"] == 2


class TestFuseAddNorm:
    def test_sum_joins_its_norm(self) -> None:
        counts, _ = check_pass(lambda m, x, _: m.norm(m.a(x) + x), "fuse_add_norm", fuse_add_norm)
        assert counts == {"embedding": 1, "linear": 1, "add_norm": 1}

    def test_second_reader_of_the_sum_forbids(self) -> None:
        """Pre-LN: the residual goes on unnormed."""

        def body(m: Tiny, x: Tensor, _: Tensor) -> Tensor:
            total = m.a(x) + x
            return m.norm(total) * total

        assert check_pass(body, "fuse_add_norm", fuse_add_norm)[0]["add"] == 1

    @pytest.mark.parametrize(
        "body",
        [
            lambda m, x, _: m.norm(torch.add(m.a(x), x, alpha=2)),
            lambda m, x, _: m.norm(x + m.a.bias),
            lambda m, x, _: m.norm(x + 1.0),
        ],
        ids=["scaled", "broadcast", "number"],
    )
    def test_what_is_no_plain_sum_is_left(self, body: Body) -> None:
        assert check_pass(body, "fuse_add_norm", fuse_add_norm)[0]["add"] == 1

    def test_norm_without_weights_is_left(self) -> None:
        counts, _ = check_pass(
            lambda m, x, _: functional.layer_norm(m.a(x) + x, (HIDDEN_SIZE,)), "fuse_add_norm", fuse_add_norm
        )
        assert "add_norm" not in counts


class TestPrecision:
    @staticmethod
    def body(m: Tiny, x: Tensor, cu_seqlens: Tensor) -> Tensor:
        rows = m.norm(m.a(x) + x)
        pooled = pool.OP(rows, cu_seqlens, "mean")
        return m.other_norm(m.b(pooled))

    def lowered(self, keep_linears: bool) -> GraphModule:
        graph_module = capture_body(self.body)
        expected = run_graph(graph_module, BATCH)

        def lower(graph: GraphModule) -> None:
            lower_precision(graph, torch.bfloat16, keep_linears=keep_linears)

        rewrite(graph_module, ("fuse_add_norm", fuse_add_norm), ("precision", lower))
        actual = run_graph(graph_module, BATCH)
        assert actual.dtype == torch.float32
        check_close(actual, expected, torch.bfloat16)
        return graph_module

    @pytest.mark.parametrize("keep_linears", [True, False])
    def test_norms_and_heads_stay_fp32(self, keep_linears: bool) -> None:
        graph_module = self.lowered(keep_linears)
        dtypes = {
            node.target: constant(graph_module, node).dtype
            for node in graph_module.graph.nodes
            if node.op == "get_attr"
        }
        linears = torch.float32 if keep_linears else torch.bfloat16
        assert dtypes == {
            "word.weight": torch.bfloat16,
            "a.weight": linears,
            "a.bias": linears,
            "norm.weight": torch.float32,
            "norm.bias": torch.float32,
            "b.weight": torch.float32,
            "b.bias": torch.float32,
            "other_norm.weight": torch.float32,
            "other_norm.bias": torch.float32,
        }

    @pytest.mark.parametrize("keep_linears", [True, False])
    def test_rows_are_bf16_up_to_the_pooling(self, keep_linears: bool) -> None:
        graph_module = self.lowered(keep_linears)
        dtypes = [node.meta["val"].dtype for node in graph_module.graph.nodes if node.op == "call_function"]
        assert dtypes == [torch.bfloat16] * 3 + [torch.float32] * 3

    @pytest.mark.parametrize("keep_linears", [True, False])
    def test_weight_that_a_linear_shares_with_the_head_stays_fp32(self, keep_linears: bool) -> None:
        def body(m: Tiny, x: Tensor, cu_seqlens: Tensor) -> Tensor:
            return m.a(pool.OP(m.norm(m.a(x)), cu_seqlens, "mean"))

        def lower(graph: GraphModule) -> None:
            lower_precision(graph, torch.bfloat16, keep_linears=keep_linears)

        graph_module = capture_body(body)
        expected = run_graph(graph_module, BATCH)
        rewrite(graph_module, ("precision", lower))
        check_close(run_graph(graph_module, BATCH), expected, torch.bfloat16)

    @pytest.mark.parametrize("keep_linears", [True, False])
    def test_features_take_the_type_of_weights(self, keep_linears: bool) -> None:
        """They are an input in fp32, where words come out of a table of the type that is asked for."""

        class Hearing(nn.Module):
            num_features = 6

            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(6, HIDDEN_SIZE), nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)

            def forward(self, features: Tensor) -> dict[str, Tensor]:
                return {"rows": self.b(functional.gelu(self.a(features)))}

        graph_module = capture(Hearing().eval().requires_grad_(False), CPU)
        features = np.random.default_rng(0).standard_normal((15, 6), np.float32)
        batch = replace(BATCH, arrays=BATCH.arrays | {"features": features})
        expected = run_graph(graph_module, batch)

        def lower(graph: GraphModule) -> None:
            lower_precision(graph, torch.bfloat16, keep_linears=keep_linears)

        rewrite(graph_module, ("precision", lower), ("drop_casts", drop_casts))
        assert count_calls(graph_module).get("to", 0) == (not keep_linears)
        check_close(run_graph(graph_module, batch), expected, torch.bfloat16)

    def test_choice_follows_the_device_and_says_so(self) -> None:
        native = has_cpu_bf16()
        choice = choose_precision("bf16", plain_backend(CPU))
        assert choice.dtype == torch.bfloat16
        assert "bf16 matrix instructions" in choice.reason
        assert choose_precision("fp32", plain_backend(CPU)) == PrecisionChoice("fp32", torch.float32, "configured")
        names = [candidate.precision for candidate in list_candidates(plain_backend(CPU))]
        assert names == ["fp32", "bf16", "int8"] if native else ["fp32", "int8"]


class TestPackWeights:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_packed_linear_computes_the_same(self, dtype: torch.dtype) -> None:
        def body(module: Tiny, x: Tensor, _: Tensor) -> Tensor:
            return x + module.b(functional.gelu(module.a(x)))

        graph_module = capture_body(body)
        expected = run_graph(graph_module, BATCH)
        fusing = [("fuse_linear_act", fuse_linear_act), ("fuse_linear_add", fuse_linear_add)]
        lowering = [("precision", partial(lower_precision, dtype=dtype))] if dtype != torch.float32 else []
        rewrite(graph_module, *fusing, *lowering, ("pack_weights", pack_weights))
        check_close(run_graph(graph_module, BATCH).float(), expected, dtype)
        assert count_calls(graph_module) == {"embedding": 1, "linear_act_packed": 2}
        packed = [constant(graph_module, node) for node in graph_module.graph.nodes if "weight_packed" in node.name]
        assert [weight.dtype for weight in packed] == [dtype] * 2

    def test_shared_weight_is_packed_once(self) -> None:
        _, graph_module = check_pass(lambda m, x, _: m.a(m.a(x)), "pack_weights", pack_weights)
        packed = [node.target for node in graph_module.graph.nodes if "weight_packed" in str(node.target)]
        assert packed == ["a_weight_packed"]


FP32_CHOICE = PrecisionChoice("fp32", torch.float32, "")
BF16_CHOICE = PrecisionChoice("bf16", torch.bfloat16, "")
INT8_CHOICE = PrecisionChoice("int8", torch.bfloat16, "")


COMPILED = Backend("avx512", CPU, TORCH_KERNELS | {embed_norm.OP: print}, PASSES)


@pytest.mark.parametrize(
    ("choice", "is_compiled", "last"),
    [
        (FP32_CHOICE, False, ["fuse_add_norm", "fuse_linear_add", "drop_casts"]),
        (FP32_CHOICE, True, ["fuse_linear_add", "drop_casts", "pack_weights"]),
        (BF16_CHOICE, False, ["fuse_linear_add", "precision", "drop_casts"]),
        (BF16_CHOICE, True, ["fuse_linear_add", "precision", "drop_casts", "pack_weights"]),
        (INT8_CHOICE, True, ["quantize", "fuse_linear_add", "precision", "drop_casts", "pack_weights"]),
    ],
)
def test_order_of_passes(choice: PrecisionChoice, is_compiled: bool, last: list[str]) -> None:
    names = [name for name, _ in list_passes(choice, COMPILED if is_compiled else plain_backend(CPU))]
    assert names[:4] == ["fold_constants", "fuse_qkv", "fuse_linear_act", "fuse_gated_act"]
    assert names[-len(last) :] == last


def test_a_pass_that_breaks_the_graph_is_caught() -> None:
    def swap(graph_module: GraphModule) -> None:
        for node in graph_module.graph.nodes:
            if "linear" in str(node.target):
                node.args = (node.args[1], node.args[0], node.args[2])

    with pytest.raises(Exception, match=r"(?i)shape|size"):
        rewrite(capture_body(lambda m, x, _: m.a(x)), ("swap", swap))
