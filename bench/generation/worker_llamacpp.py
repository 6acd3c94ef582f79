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

from bench.generation.session import MAX_CONCURRENT, MAX_TOTAL_TOKENS, Generate, Task, serve
from bench.gguf_files import open_context, open_model, write_files

MAX_BATCH_TOKENS = 512


def convert(model: Path, out: Path) -> None:
    """Writes f32.gguf and q8_0.gguf."""
    kinds = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0)
    write_files(model, out, "llama", kinds, rope_theta=find_theta, adjust=reorder)


def find_theta(config: dict[str, Any]) -> float:
    return float(config.get("rope_theta", 10_000.0))


def reorder(name: str, value: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """Elements that turn together lie half a head apart in transformers, and side by side in llama.cpp."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for part, num_heads in heads.items():
        if f".{part}." in name:
            return value.reshape(num_heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return value


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Generate:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = MAX_CONCURRENT * MAX_TOTAL_TOKENS
    params.n_batch = params.n_ubatch = MAX_BATCH_TOKENS
    params.n_seq_max = MAX_CONCURRENT
    context = open_context(open_model(converted / options["file"]), params, threads)
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
