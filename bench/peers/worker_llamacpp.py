"""Worker: llama.cpp's embeddings of Qwen3's architecture, means over tokens, sequences end to end in one batch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from protocol import Embed, Rows, Sequences, serve
from safetensors.numpy import load_file

MAX_BATCH_TOKENS, MAX_SEQUENCES = 2048, 64
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


def convert(model: Path, out: Path) -> None:
    """Writes f16.gguf and q8_0.gguf, without a vocabulary: token ids go in."""
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    for kind in (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0):
        writer = gguf.GGUFWriter(out / f"{kind.name.lower()}.gguf", "qwen3")
        write_settings(writer, config)
        for name, value in tensors.items():
            value = value.astype(np.float32)
            if value.ndim == 2:
                writer.add_tensor(rename(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
            else:
                writer.add_tensor(rename(name), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def write_settings(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def rename(name: str) -> str:
    """layers.3.mlp.up_proj.weight to blk.3.ffn_up.weight."""
    name = name.removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm"}[name] + ".weight"


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Embed:
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(
        str(converted / options["file"]).encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
    params.n_seq_max = MAX_SEQUENCES
    params.n_threads = params.n_threads_batch = threads
    params.embeddings = True
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_MEAN
    params.kv_unified = True
    context = llama_cpp.llama_init_from_model(loaded, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    width = json.loads((model / "config.json").read_text())["hidden_size"]
    batch = llama_cpp.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)
    return lambda batches: [run(context, batch, width, part) for each in batches for part in cut(each)]


def cut(sequences: Sequences) -> list[Sequences]:
    """A batch to those that there is room for."""
    parts: list[list[Any]] = [[]]
    for sequence in sequences:
        if sum(map(len, parts[-1])) + len(sequence) > MAX_BATCH_TOKENS and parts[-1]:
            parts.append([])
        parts[-1].append(sequence)
    return list(parts)


def run(context: Any, batch: Any, width: int, sequences: Sequences) -> Rows:
    """End to end. Raises RuntimeError where llama.cpp computes nothing."""
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    batch.n_tokens = fill(batch, sequences)
    status = llama_cpp.llama_decode(context, batch)
    if status:
        raise RuntimeError(f"llama_decode returned {status}")
    rows = np.stack([read_row(context, number, width) for number in range(len(sequences))])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(batch: Any, sequences: Sequence[np.ndarray]) -> int:
    """End to end; how many tokens there are."""
    place = 0
    for number, sequence in enumerate(sequences):
        for position, token in enumerate(sequence.tolist()):
            batch.token[place], batch.pos[place] = token, position
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, number, 1
            place += 1
    return place


def read_row(context: Any, number: int, width: int) -> Rows:
    return np.ctypeslib.as_array(llama_cpp.llama_get_embeddings_seq(context, number), (width,)).copy()


if __name__ == "__main__":
    serve(load, convert)
