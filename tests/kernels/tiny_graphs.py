"""Small modules with the inputs every model has, what becomes of them in the passes, and a tiny BERT."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from unittest.mock import Mock, patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from models.bert import Bert
from models.config import EncoderConfig
from models.decoder_config import DecoderConfig
from models.decoder_layers import Decoder
from models.heads import EmbeddingHead, TextModel
from models.rotary import RotaryConfig
from runtime import build, build_reference
from runtime.batch import Batch
from runtime.capture import capture, constant
from runtime.engines.transfer import lay_out, to_tensors
from runtime.passes.pipeline import Pass, run_passes
from runtime.passes.rewriting import replace_constant

CPU = torch.device("cpu")
VOCAB_SIZE, HIDDEN_SIZE, MAX_POSITIONS = 60, 32, 128

BERT_CONFIG = EncoderConfig(
    architecture="BertModel",
    model_type="bert",
    vocab_size=VOCAB_SIZE,
    hidden_size=HIDDEN_SIZE,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    activation="gelu",
    max_position_embeddings=MAX_POSITIONS,
    type_vocab_size=2,
    norm_eps=1e-12,
    pad_token_id=0,
    embedding_size=HIDDEN_SIZE,
    num_groups=2,
    layers_per_group=1,
    task_type_vocab_size=0,
    num_labels=2,
)


def tiny_bert() -> nn.Module:
    """Two layers with random weights, the same each time; pooled by the mean and scaled to length 1."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TextModel(Bert(BERT_CONFIG), EmbeddingHead(("mean",), (), True))
    # The initial norms are the identity, which would hide mistakes.
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.eval().requires_grad_(False)


LLAMA_CONFIG = DecoderConfig(
    architecture="LlamaForCausalLM",
    model_type="llama",
    vocab_size=VOCAB_SIZE,
    hidden_size=HIDDEN_SIZE,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=48,
    activation="silu",
    norm_eps=1e-5,
    max_position_embeddings=MAX_POSITIONS,
    rotaries=(RotaryConfig(dim=8, theta=10000.0),) * 2,
    windows=(-1, -1),
    softmax_scales=(8**-0.5, 8**-0.5),
    has_qkv_bias=False,
    has_o_bias=False,
    has_mlp_bias=False,
    is_tied=True,
)


def tiny_llama() -> nn.Module:
    """Two layers with random weights, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Decoder(LLAMA_CONFIG).eval().requires_grad_(False)


Body = Callable[["Tiny", Tensor, Tensor], Tensor]


class Tiny(nn.Module):
    """An embedding, then `body(self, rows, cu_seqlens)` over three linear layers and two norms."""

    def __init__(self, body: Body):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.word = nn.Embedding(VOCAB_SIZE, HIDDEN_SIZE)
            self.a, self.b, self.c = (nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE) for _ in range(3))
            self.norm, self.other_norm = nn.LayerNorm(HIDDEN_SIZE), nn.LayerNorm(HIDDEN_SIZE)
        self.body = body

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> dict[str, Tensor]:
        return {"rows": self.body(self, self.word(input_ids), cu_seqlens)}


@cache
def capture_made(make: Callable[[], nn.Module]) -> GraphModule:
    return capture(make(), CPU)


@contextmanager
def captured_once(make: Callable[[], nn.Module]) -> Iterator[None]:
    """What is built meanwhile of what `make` makes gets copies of one graph: capturing takes longer than the rest."""
    shared = Mock(side_effect=lambda *_: build.copy_graph(capture_made(make)))
    with patch.object(build, "capture_module", shared), patch.object(build_reference, "capture_module", shared):
        yield
    shared.assert_called()


def capture_body(body: Body) -> GraphModule:
    return capture(Tiny(body).eval().requires_grad_(False), CPU)


def rewrite(graph_module: GraphModule, *passes: tuple[str, Pass]) -> GraphModule:
    run_passes(graph_module, list(passes), lambda name, graph: None)
    return graph_module


def random_batch(seqlens: Sequence[int], seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    batch = lay_out(list(seqlens), rng.integers(1, VOCAB_SIZE, sum(seqlens)))
    batch.arrays["token_type_ids"] = rng.integers(0, 2, sum(seqlens))
    return batch


def run_graph(graph_module: GraphModule, batch: Batch) -> Tensor:
    """The only output."""
    for node in graph_module.graph.find_nodes(op="get_attr"):
        replace_constant(graph_module, node, constant(graph_module, node))
    graph_module.recompile()  # engines call nodes, so passes leave the generated code as it is
    with torch.inference_mode():
        inputs = [node.name for node in graph_module.graph.nodes if node.op == "placeholder"]
        outputs: dict[str, Tensor] = graph_module(*(to_tensors(batch, CPU)[name] for name in inputs))
    (output,) = outputs.values()
    return output


def count_calls(graph_module: GraphModule) -> dict[str, int]:
    """How often each op is called, by its short name: aten.linear.default is linear."""
    counts: dict[str, int] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            name = str(node.target).split(".")[1]
            counts[name] = counts.get(name, 0) + 1
    return counts
