"""What a directory of a language model says of itself: the task, the context, the tokens that end an answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from models.info import ModelDirectoryError, read_info

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 8,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50,
    "n_embd": 8,
    "n_positions": 32,
    "eos_token_id": 3,
}


def write(directory: Path, keys: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(keys))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_llama(tmp_path: Path) -> None:
    info = read_info(write(tmp_path, LLAMA))
    assert (info.task, info.vocab_size, info.output_dim, info.max_input_tokens) == ("generate", 100, 100, 64)
    assert info.eos_token_ids == (2,) and info.type_vocab_size == 1


def test_gpt2(tmp_path: Path) -> None:
    info = read_info(write(tmp_path, GPT2))
    assert (info.task, info.output_dim, info.max_input_tokens, info.eos_token_ids) == ("generate", 50, 32, (3,))


@pytest.mark.parametrize(
    ("given", "generation", "expected"),
    [
        (2, {"eos_token_id": [7, 8]}, (7, 8)),
        (2, {"eos_token_id": None}, (2,)),
        (2, {}, (2,)),
        ([4, 5], None, (4, 5)),
        (None, None, ()),
        (2, {"eos_token_id": 0}, (0,)),
    ],
)
def test_the_tokens_that_end_an_answer(
    tmp_path: Path, given: Any, generation: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    assert read_info(write(tmp_path, LLAMA | {"eos_token_id": given}, generation)).eos_token_ids == expected


DECODER = {"2": {"content": "</s>"}, "9": {"content": "<|im_end|>", "special": True}}
ADDED = [{"id": 2, "content": "</s>"}, {"id": 9, "content": "<|im_end|>"}]


@pytest.mark.parametrize(
    ("config", "tokenizer", "expected"),
    [
        ({"eos_token": "<|im_end|>", "added_tokens_decoder": DECODER}, None, (7, 2, 9)),
        ({"eos_token": {"content": "<|im_end|>"}}, {"added_tokens": ADDED}, (7, 2, 9)),
        ({"eos_token": "</s>"}, {"added_tokens": ADDED}, (7, 2)),
        ({"eos_token": "<other>"}, {"added_tokens": ADDED}, (7, 2)),
        ({"eos_token": None}, {"added_tokens": ADDED}, (7, 2)),
        ({"eos_token": "</s>"}, {}, (7, 2)),
        ({"eos_token": "</s>"}, None, (7, 2)),
    ],
)
def test_the_token_that_the_tokenizer_names_ends_an_answer_too(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any] | None, expected: tuple[int, ...]
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert read_info(write(tmp_path, LLAMA, {"eos_token_id": [7, 2]})).eos_token_ids == expected


@pytest.mark.parametrize("given", ["</s>", -1, [1, "2"], True, 1.5])
def test_what_is_no_token_id(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ModelDirectoryError, match=r"generation_config\.json: eos_token_id .* must be a token id"):
        read_info(write(tmp_path, LLAMA, {"eos_token_id": given}))


def test_the_task_can_be_another(tmp_path: Path) -> None:
    info = read_info(write(tmp_path, LLAMA), task="embed")
    assert (info.task, info.output_dim, info.eos_token_ids) == ("embed", 8, ())
    write(tmp_path, LLAMA | {"architectures": ["LlamaModel"]})
    assert read_info(tmp_path).task == "embed"
    with pytest.raises(ModelDirectoryError, match="task generate needs a language model head"):
        read_info(tmp_path, task="generate")
    with pytest.raises(ModelDirectoryError, match=r"there is no token 'yes', which the answers .*\. Leave task out$"):
        read_info(write(tmp_path, LLAMA), task="classify")
