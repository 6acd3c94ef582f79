"""Decoders as llama.cpp reads them: files, a model, a context. For workers, in an environment that has llama.cpp."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    "input_layernorm": "attn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.v_proj": "attn_v",
}
Adjust = Callable[[str, np.ndarray, dict[str, Any]], np.ndarray]
"""(name, weight, config.json)."""


def keep(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    return value


def write_files(
    model: Path,
    out: Path,
    architecture: str,
    kinds: Iterable[gguf.GGMLQuantizationType],
    *,
    rope_theta: Callable[[dict[str, Any]], float],
    adjust: Adjust = keep,
) -> None:
    """A file for each kind, by its name, without a vocabulary: token ids go in and come out."""
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    for kind in kinds:
        writer = gguf.GGUFWriter(out / f"{kind.name.lower()}.gguf", architecture)
        write_settings(writer, config, rope_theta(config))
        for name, value in tensors.items():
            value = adjust(name, value.astype(np.float32), config)
            if value.ndim == 2:
                writer.add_tensor(rename(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
            else:
                writer.add_tensor(rename(name), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def write_settings(writer: gguf.GGUFWriter, config: dict[str, Any], rope_theta: float) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope_theta)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def rename(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight to blk.3.ffn_up.weight."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name] + ".weight"


def open_model(file: Path) -> Any:
    llama_cpp.llama_backend_init()
    return llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())


def open_context(model: Any, params: Any, threads: int) -> Any:
    """Raises RuntimeError."""
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    return context
