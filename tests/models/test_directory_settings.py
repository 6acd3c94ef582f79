"""The files about texts and scores: what counts as a limit, a prompt, an activation, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from sentence_dirs import write_json

from models.info import ModelDirectoryError, ModelInfo, read_info
from models.tokenization import OWN_FILES

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CLASSIFIER = {"architectures": ["BertForSequenceClassification"]}
OWN = "sentence_bert_config.json"
TOKENIZER = "tokenizer_config.json"
SETTINGS = "config_sentence_transformers.json"
TRANSFORMER = {"path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling"}


def read(directory: Path, config: dict[str, Any] | None = None, **files: Any) -> ModelInfo:
    """`files` by name, without .json."""
    write_json(directory / "config.json", BERT | (config or {}))
    for name, content in files.items():
        write_json(directory / f"{name}.json", content)
    return read_info(directory)


@pytest.mark.parametrize("config", [{}, CLASSIFIER])
@pytest.mark.parametrize(
    ("own", "tokenizer", "limit"),
    [
        (None, None, 128),
        (None, {}, 128),
        ({"max_seq_length": 64}, None, 64),
        ({"max_seq_length": 256}, None, 128),
        ({"do_lower_case": False}, {"model_max_length": 16}, 16),
        ({"max_seq_length": 64}, {"model_max_length": 16}, 64),
        ({"max_seq_length": 8}, {"model_max_length": 16}, 8),
        (None, {"model_max_length": 16}, 16),
        (None, {"model_max_length": 16.0}, 16),
        (None, {"model_max_length": 256}, 128),
        (None, {"model_max_length": None, "max_len": 16}, 16),
        (None, {"model_max_length": 16, "max_len": 8}, 16),
        (None, {"model_max_length": 1e30}, 128),
        (None, {"model_max_length": float("inf")}, 128),
        (None, {"model_max_length": 1000000000000000019884624838656}, 128),
        (None, {"max_length": 16}, 128),
        ({"max_seq_length": 64, "processor_kwargs": {"model_max_length": 32}}, {"model_max_length": 16}, 32),
    ],
)
def test_limits(
    config: dict[str, Any],
    own: dict[str, Any] | None,
    tokenizer: dict[str, Any] | None,
    limit: int,
    tmp_path: Path,
) -> None:
    files = {"sentence_bert_config": own, "tokenizer_config": tokenizer}
    given = {name: content for name, content in files.items() if content is not None}
    assert read(tmp_path, config | {"max_position_embeddings": 128}, **given).max_input_tokens == limit


def test_limit_of_every_name(tmp_path: Path) -> None:
    """The earlier name wins."""
    for limit, name in enumerate(reversed(OWN_FILES), 20):
        write_json(tmp_path / name, {"max_seq_length": limit, "do_lower_case": limit == 20})
        info = read(tmp_path)
        assert (info.max_input_tokens, info.do_lower_case) == (limit, limit == 20)


def test_context_of_generators(tmp_path: Path) -> None:
    """A tokenizer's limit is for inputs."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 128}
    assert read(tmp_path, config, tokenizer_config={"model_max_length": 16}).max_input_tokens == 128


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [
        ({}, 2),
        ({"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, 2),
        ({"model_input_names": ["input_ids", "attention_mask"]}, 1),
        ({"tokenizer_class": "BertTokenizer"}, 2),
        ({"tokenizer_class": "XLMRobertaTokenizerFast"}, 1),
        ({"tokenizer_class": "DistilBertTokenizer", "model_input_names": ["input_ids", "token_type_ids"]}, 2),
    ],
)
def test_token_types(tokenizer: dict[str, Any], size: int, tmp_path: Path) -> None:
    assert read(tmp_path, tokenizer_config=tokenizer).type_vocab_size == size


def read_settings(directory: Path, settings: Any, config: dict[str, Any] | None = None) -> ModelInfo:
    write_json(directory / "1_Pooling/config.json", {"pooling_mode": "mean"})
    chain = [TRANSFORMER] if config else [TRANSFORMER, POOLING]
    return read(directory, config, modules=chain, config_sentence_transformers=settings)


def test_prompts(tmp_path: Path) -> None:
    settings = {"prompts": {"query": "q: ", "document": None}, "default_prompt_name": "query"}
    info = read_settings(tmp_path, settings)
    assert (info.prompts, info.default_prompt_name) == ({"query": "q: ", "document": ""}, "query")
    for other in ({}, {"prompts": None, "default_prompt_name": None}, settings | {"model_type": "SparseEncoder"}):
        info = read_settings(tmp_path, other)
        assert (info.prompts, info.default_prompt_name) == ({}, None)
    assert not read_settings(tmp_path, settings, CLASSIFIER).prompts
    assert read_settings(tmp_path, settings | {"model_type": "CrossEncoder"}, CLASSIFIER).prompts["query"] == "q: "


BAD_FILES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "own limit": ({}, {OWN: {"max_seq_length": "many"}}, "max_seq_length is 'many'; it must be a whole number"),
    "own arguments": ({}, {OWN: {"tokenizer_args": [1]}}, r"tokenizer_args is \[1\]; it must be an object"),
    "own config": ({}, {OWN: {"config_args": {"num_hidden_layers": 1}}}, "config_args .* is not supported"),
    "own output": ({}, {OWN: {"module_output_name": "sentence_embedding"}}, "module_output_name .* is not supported"),
    "limit": ({}, {TOKENIZER: {"model_max_length": "512"}}, "model_max_length is '512'; it must be a number"),
    "limit of nothing": ({}, {TOKENIZER: {"max_len": 0}}, "max_len is 0; it must be a number of at least 1"),
    "inputs": ({}, {TOKENIZER: {"model_input_names": "input_ids"}}, "model_input_names is 'input_ids'; it must be a"),
    "prompts": ({}, {SETTINGS: {"prompts": ["query: "]}}, r"prompts must map names to texts, but is \['query: '\]"),
    "prompt": ({}, {SETTINGS: {"prompts": {"query": 1}}}, "prompts must map names to texts"),
    "default": (
        {},
        {SETTINGS: {"prompts": {"query": "", "passage": ""}, "default_prompt_name": "q"}},
        "default_prompt_name 'q' is none of the prompts; there are query, passage",
    ),
    "dimensions": ({}, {SETTINGS: {"truncate_dim": -1}}, "truncate_dim is -1; it must be a whole number"),
    "old activation": (
        CLASSIFIER | {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"},
        {},
        r"function 'torch\.nn\.modules\.activation\.Softmax' is not supported; supported are torch\.nn's Identity, Sig",
    ),
    "activation": (
        CLASSIFIER | {"sentence_transformers": {"activation_fn": "my.nn.Sigmoid"}},
        {},
        r"activation_fn 'my\.nn\.Sigmoid' is not supported",
    ),
    "settings": (CLASSIFIER | {"sentence_transformers": "4.1"}, {}, "sentence_transformers is '4.1'; it must be an"),
    "own activation": (
        CLASSIFIER,
        {SETTINGS: {"model_type": "CrossEncoder", "activation_fn": "torch.nn.ReLU"}, "modules.json": [TRANSFORMER]},
        r"config_sentence_transformers\.json: activation_fn 'torch\.nn\.ReLU' is not supported",
    ),
    "scorer": (
        CLASSIFIER,
        {SETTINGS: {"model_type": "CrossEncoder"}},
        r"a cross-encoder with the modules sentence_transformers\.\S+\.Pooling is not supported",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_are_refused(name: str, tmp_path: Path) -> None:
    config, files, message = BAD_FILES[name]
    write_json(tmp_path / "modules.json", [TRANSFORMER, POOLING])
    write_json(tmp_path / "1_Pooling/config.json", {"pooling_mode": "mean"})
    for file, content in files.items():
        write_json(tmp_path / file, content)
    with pytest.raises(ModelDirectoryError, match=message):
        read(tmp_path, config)
