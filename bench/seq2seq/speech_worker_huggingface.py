"""Worker: Hugging Face transformers' Whisper, by the plain `generate` that all models have: clips are no longer than
it hears at once, and what its own adds for longer ones would only cost time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel, WhisperForConditionalGeneration

from bench.generation.session import Task, split
from bench.seq2seq.features import NUM_TOKENS, WHISPER_PROMPT, make_features
from bench.seq2seq.session import Translate, serve


def load(model: Path, converted: Path, options: dict[str, Any], threads: int) -> Translate:
    torch.set_num_threads(threads)
    module = WhisperForConditionalGeneration.from_pretrained(
        model, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    module.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=NUM_TOKENS, pad_token_id=0, decoder_start_token_id=WHISPER_PROMPT[0]
    )
    return lambda tasks, batch_size, search: transcribe(module, tasks, batch_size)


def transcribe(module: PreTrainedModel, tasks: Sequence[Task], batch_size: int) -> list[list[int]]:
    features = [torch.from_numpy(make_features(task).T) for task in tasks]
    answers: list[list[int]] = []
    for places in split(range(len(tasks)), batch_size):
        prompt = torch.tensor([WHISPER_PROMPT] * len(places))
        with torch.inference_mode():
            heard = torch.stack([features[place] for place in places])
            output = GenerationMixin.generate(module, input_features=heard, decoder_input_ids=prompt)
        answers += output[:, len(WHISPER_PROMPT) :].tolist()
    return answers


if __name__ == "__main__":
    serve(load)
