"""NomicBERT v2, for which transformers has no class, against its formula in fp64 by the names of its files."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from own_checkpoints import Tensors, draw_tensors, draw_texts, save_model
from tiny_engines import Captured, capture_model, check_planned
from tiny_models import Ids, pack
from torch import Tensor
from torch.nn import functional

from models.config import read_config
from models.info import ModelDirectoryError
from models.load import load_model
from runtime.quantization.accuracy import Bound
from runtime.quantization.calibrate import Options, calibrate, simulate_linears
from runtime.quantization.observe import random_batch, trace_linears
from runtime.quantization.scheme import save_quantization
from runtime.quantization.simulate import compute_float, linear_weights, replace_linears, run_batches
from tests.tolerances import measure_difference

VOCAB, WIDTH, NUM_HEADS, HIDDEN, NUM_LAYERS, NUM_EXPERTS, TOP_K = 61, 32, 4, 48, 4, 6, 2
THETA = 10000.0
KEYS: dict[str, Any] = {
    "architectures": ["NomicBertModel"],
    "model_type": "nomic_bert",
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_head": NUM_HEADS,
    "n_inner": HIDDEN,
    "n_layer": NUM_LAYERS,
    "n_positions": 128,
    "type_vocab_size": 1,
    "activation_function": "gelu",
    "layer_norm_epsilon": 1e-5,
    "rotary_emb_base": THETA,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_scaling_factor": None,
    "qkv_proj_bias": True,
    "mlp_fc1_bias": True,
    "mlp_fc2_bias": True,
    "moe_every_n_layers": 2,
    "num_experts": NUM_EXPERTS,
    "moe_top_k": TOP_K,
    "moe_normalize_expert_weights": False,
    "expert_choice_router": False,
    "num_shared_experts": 0,
    "ffn_div": 1,
    "pad_token_id": 0,
}
SEQLENS = [1, 17, 33, 64, 5]
TEXTS = draw_texts(SEQLENS, VOCAB)


def list_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, WIDTH),
        "embeddings.token_type_embeddings.weight": (1, WIDTH),
        "emb_ln.weight": (WIDTH,),
        "emb_ln.bias": (WIDTH,),
    }
    for layer in range(NUM_LAYERS):
        linears = {"attn.Wqkv": (3 * WIDTH, WIDTH), "attn.out_proj": (WIDTH, WIDTH)}
        own: dict[str, tuple[int, ...]] = {
            f"{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")
        }
        if layer % 2:
            own |= {"mlp.router.layer.weight": (NUM_EXPERTS, WIDTH), "mlp.experts.bias": (WIDTH,)}
            own |= {f"mlp.experts.mlp.{part}": (NUM_EXPERTS * HIDDEN, WIDTH) for part in ("w1", "w2")}
        else:
            linears |= {"mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN)}
        for name, shape in linears.items():
            own |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        shapes |= {f"encoder.layers.{layer}.{name}": shape for name, shape in own.items()}
    return shapes


def compute_expected(tensors: Tensors, ids: Ids) -> Tensor:
    """Rows of one text: fp64 [seqlen, width]."""
    exact = {name: value.double() for name, value in tensors.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return functional.linear(x, exact[f"{name}.weight"], exact[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (WIDTH,), exact[f"{name}.weight"], exact[f"{name}.bias"], 1e-5)

    def turn(x: Tensor) -> Tensor:
        half = WIDTH // NUM_HEADS // 2
        angles = torch.arange(len(ids)).double()[:, None] * THETA ** (-torch.arange(half).double() / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attend(layer: str, x: Tensor) -> Tensor:
        q, k, v = linear(f"{layer}attn.Wqkv", x).view(len(ids), 3, NUM_HEADS, -1).permute(1, 2, 0, 3)
        weights = (turn(q) @ turn(k).transpose(1, 2) / (WIDTH // NUM_HEADS) ** 0.5).softmax(-1)
        return linear(f"{layer}attn.out_proj", (weights @ v).transpose(0, 1).flatten(1))

    def route(layer: str, x: Tensor) -> Tensor:
        probabilities = functional.linear(x, exact[f"{layer}mlp.router.layer.weight"]).softmax(-1)
        weights = torch.zeros_like(probabilities)
        chosen = probabilities.topk(TOP_K).indices
        weights.scatter_(1, chosen, probabilities.gather(1, chosen))
        w1, w2 = (exact[f"{layer}mlp.experts.mlp.{part}"].view(NUM_EXPERTS, HIDDEN, WIDTH) for part in ("w1", "w2"))
        each = functional.gelu(torch.einsum("th,eih->tei", x, w1))
        return torch.einsum("te,tei,eih->th", weights, each, w2) + exact[f"{layer}mlp.experts.bias"]

    x = exact["embeddings.word_embeddings.weight"][ids] + exact["embeddings.token_type_embeddings.weight"][0]
    x = norm("emb_ln", x)
    for index in range(NUM_LAYERS):
        layer = f"encoder.layers.{index}."
        x = norm(f"{layer}norm1", x + attend(layer, x))
        fed = route(layer, x) if index % 2 else linear(f"{layer}mlp.fc2", functional.gelu(linear(f"{layer}mlp.fc1", x)))
        x = norm(f"{layer}norm2", x + fed)
    return x


@cache
def make_tensors() -> Tensors:
    return draw_tensors(list_shapes())


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Captured:
    folder = tmp_path_factory.mktemp("nomic")
    return capture_model(lambda: save_model(folder, KEYS, make_tensors()))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow), "int8"])
def test_mean_of_rows_is_the_formula(captured: Captured, precision: str) -> None:
    ids, types = TEXTS
    expected = torch.stack([compute_expected(make_tensors(), text).mean(0) for text in ids])
    check_planned(captured, precision, ids, [kinds * 0 for kinds in types], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("bound", "is_float"), [(Bound(agreement=0), False), (Bound(agreement=1, error=1e-9), True)])
def test_calibration_counts_experts(captured: Captured, bound: Bound, is_float: bool, tmp_path: Path) -> None:
    """In its accuracy, which is the engine's, and among what stays in float where nothing else is exact enough."""
    model = captured.model
    graph_module = trace_linears(load_model(model.directory, model.info), torch.device("cpu"))
    calibrated, held_out = (random_batch(VOCAB, num_seqs, 9) for num_seqs in (8, 16))
    options = Options(overflow_free=False, bound=bound)
    calibration = calibrate(graph_module, [calibrated], [held_out], options, lambda *_: None)
    schemes, accuracy = calibration.quantization.linears, calibration.quantization.accuracy
    names = [name for name in schemes if name.endswith("up")]
    assert len(names) == NUM_LAYERS // 2
    assert all(schemes[name].is_float == is_float for name in names)
    reports = [each for each in calibration.linears if each.name.startswith(names[0])]
    assert [each.shape for each in reports] == [(NUM_EXPERTS, HIDDEN, WIDTH), (NUM_EXPERTS, WIDTH, HIDDEN)]
    linears = replace_linears(simulate_linears(linear_weights(graph_module), schemes, False))
    both = [run_batches(graph_module, [held_out], each, lambda *_: None, "") for each in (linears, compute_float)]
    assert accuracy.error == 0 if is_float else accuracy.error > 1.1 * measure_difference(*both).norm
    save_quantization(tmp_path / "int8", calibration.quantization)
    engines = (captured.build("torch", "int8", quantization=tmp_path / "int8"), captured.build("torch", "fp32"))
    found, expected = (engine.run(held_out).arrays["embeddings"].copy() for engine in engines)
    # Between its layers an engine's rows are bf16 besides.
    assert measure_difference(found, expected).norm == pytest.approx(accuracy.error, rel=0.15, abs=4e-3)


def test_weights_that_sum_to_one_are_read(captured: Captured, tmp_path: Path) -> None:
    """The norm behind hides little of it: compared by elements."""
    other = capture_model(lambda: save_model(tmp_path, KEYS | {"moe_normalize_expert_weights": True}, make_tensors()))
    ids, types = TEXTS
    batch = pack(ids, [kinds * 0 for kinds in types])
    found, expected = (each.build("torch", "fp32").run(batch).arrays["embeddings"].copy() for each in (other, captured))
    assert measure_difference(found, expected).norm > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "swiglu"}, "experts need the activation_function gelu"),
        ({"mlp_fc1_bias": False}, "needs mlp_fc1_bias and mlp_fc2_bias"),
        ({"expert_choice_router": True}, "expert_choice_router"),
        ({"num_shared_experts": 1}, "num_shared_experts"),
        ({"ffn_div": 2}, "ffn_div"),
        ({"moe_top_k": 7}, "moe_top_k 7 is more than the 6 experts there are"),
        ({"moe_top_k": None}, "moe_top_k"),
    ],
)
def test_what_is_not_served_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelDirectoryError, match=message):
        save_model(tmp_path, KEYS | changes, {})
        read_config(tmp_path)
