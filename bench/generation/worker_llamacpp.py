"""Worker: llama.cpp with continuous batching over one context, as its server does it, through its Python bindings."""

import ctypes
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from bench.generation.session import MAX_CONCURRENT, MAX_TOTAL_TOKENS, Generate, Task, serve

MAX_BATCH_TOKENS = 512
NAMES = {
    "input_layernorm": "attn_norm",
    "mlp.down_proj": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.k_proj": "attn_k",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_proj": "attn_q",
    "self_attn.v_proj": "attn_v",
}


def convert(model: Path, out: Path) -> None:
    """Writes f32.gguf and q8_0.gguf, without a vocabulary: token ids go in and come out."""
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0):
        writer = gguf.GGUFWriter(out / f"{kind.name.lower()}.gguf", "llama")
        write_settings(writer, config)
        for name, value in tensors.items():
            value = reorder(name, value.astype(np.float32), config)
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
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(config.get("rope_theta", 10_000.0)))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")


def rename(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight to blk.3.ffn_up.weight."""
    name = name.removeprefix("model.").removesuffix(".weight")
    if name.startswith("layers."):
        _, layer, part = name.split(".", 2)
        return f"blk.{layer}.{NAMES[part]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[name] + ".weight"


def reorder(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Elements that turn together lie half a head apart in transformers, and side by side in llama.cpp."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, num_heads in heads.items():
        if f".{part}." in name:
            return value.reshape(num_heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return value


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Generate:
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(
        str(converted / options["file"]).encode(), llama_cpp.llama_model_default_params()
    )
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = MAX_CONCURRENT * MAX_TOTAL_TOKENS
    params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
    params.n_seq_max = MAX_CONCURRENT
    params.n_threads = params.n_threads_batch = threads
    params.kv_unified = True
    context = llama_cpp.llama_init_from_model(loaded, params)
    if not context:
        raise RuntimeError("llama.cpp made no context")
    vocab_size = json.loads((model / "config.json").read_text())["vocab_size"]
    return Continuous(context, vocab_size).generate


@dataclass
class Slot:
    """A request under way. `waiting`: its tokens that are not computed yet."""

    place: int
    waiting: list[int]
    num_past: int = 0
    answer: list[int] = field(default_factory=list)


class Continuous:
    """A step computes the next token of every answer, and of prompts what there is room for."""

    def __init__(self, context: Any, vocab_size: int) -> None:
        self.context, self.vocab_size = context, vocab_size
        self.memory = llama_cpp.llama_get_memory(context)
        self.batch = llama_cpp.llama_batch_init(MAX_BATCH_TOKENS, 0, 1)

    def generate(self, tasks: Sequence[Task], max_concurrent: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in tasks]
        slots: dict[int, Slot] = {}
        coming = list(enumerate(tasks))[::-1]
        while coming or slots:
            for number in range(max_concurrent):
                if number not in slots and coming:
                    place, task = coming.pop()
                    slots[number] = Slot(place, list(task.input_ids))
            for number in self.step(slots):
                slot = slots[number]
                if len(slot.answer) == tasks[slot.place].num_tokens:
                    answers[slot.place] = slot.answer
                    llama_cpp.llama_memory_seq_rm(self.memory, number, -1, -1)
                    del slots[number]
        return answers

    def step(self, slots: dict[int, Slot]) -> list[int]:
        """Returns the slots that got a token."""
        batch, rows = self.batch, []
        batch.n_tokens = 0
        for number, slot in sorted(slots.items(), key=lambda item: len(item[1].waiting)):
            chosen = slot.waiting[: MAX_BATCH_TOKENS - batch.n_tokens]
            slot.waiting = slot.waiting[len(chosen) :]
            for token in chosen:
                self.add(token, slot.num_past, number)
                slot.num_past += 1
            if chosen and not slot.waiting:
                batch.logits[batch.n_tokens - 1] = 1
                rows.append((number, batch.n_tokens - 1))
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise RuntimeError(f"llama_decode returned {status}")
        for number, row in rows:
            logits = ctypes.cast(
                llama_cpp.llama_get_logits_ith(self.context, row), ctypes.POINTER(ctypes.c_float * self.vocab_size)
            )
            token = int(np.frombuffer(logits.contents, np.float32).argmax())
            slots[number].answer.append(token)
            slots[number].waiting = [token]
        return [number for number, _ in rows]

    def add(self, token: int, position: int, number: int) -> None:
        batch, index = self.batch, self.batch.n_tokens
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, number, 0
        batch.n_tokens = index + 1


if __name__ == "__main__":
    serve(load, convert)
