"""What a language model needs around it: tokenizers that may be missing, configuration, the documentation's schema."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeGenerator
from fake_generator import (
    BOS,
    CONTEXT,
    EOS,
    FakeGenerator,
    GenerationServer,
    describe_translator,
    write_directory,
)
from fake_hearer import SETTINGS
from fake_hearer import describe_model as describe_hearer
from prometheus_client import CollectorRegistry

from models.info import ModelDirectoryError, ModelInfo
from models.seq2seq_info import Seq2SeqInfo
from server.config import ConfigError, HttpConfig, ModelConfig, ServerConfig, SourceConfig
from server.errors import InvalidField
from server.metrics import Metrics
from server.processes.announcement import find_example, write_body
from server.processes.deployment import DeployedModel
from server.processes.http_process import build_state
from server.processes.resolution import resolve, settle_weights
from server.tasks.registry import HEADS
from server.text.tokenizer_file import load_tokenizer

pytestmark = pytest.mark.anyio

DECODER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


async def test_a_tokenizer_that_is_not_there(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    options: dict[str, Any] = {"max_input_tokens": 8, "vocab_size": 50, "type_vocab_size": 1, "pool": pool}
    with pytest.raises(ModelDirectoryError, match=r"there is no tokenizer\.json, .* spm\.model"):
        load_tokenizer(tmp_path, **options)
    tokenizer = load_tokenizer(tmp_path, is_required=False, **options)
    assert not tokenizer.knows_texts
    (sequence,) = await tokenizer.encode([[5, 6]], truncation="error", field="prompt")
    assert sequence.input_ids.tolist() == [5, 6]
    (sequence,) = await tokenizer.encode([list(range(10))], truncation="right", field="prompt")
    assert sequence.num_tokens == 8
    with pytest.raises(InvalidField, match=r"prompt is text, but this model has no tokenizer; send token ids"):
        await tokenizer.encode(["hello"], truncation="right", field="prompt")
    with pytest.raises(InvalidField, match=r"inputs is text"):
        await tokenizer.describe(["hello"], add_special_tokens=True, field="inputs")
    with pytest.raises(InvalidField, match="has the token id 50"):
        await tokenizer.encode([[50]], truncation="error", field="prompt")


async def test_special_tokens_only_where_they_are_wanted(generator: GenerationServer) -> None:
    tokenizer = generator.tokenizer
    (bare,) = await tokenizer.encode(["hello"], truncation="error", field="x", add_special_tokens=False)
    (whole,) = await tokenizer.encode(["hello"], truncation="error", field="x")
    assert whole.input_ids.tolist() == [BOS, *bare.input_ids.tolist()]
    assert await tokenizer.run(lambda: 5) == 5


async def test_what_is_said_of_it(make_generator: MakeGenerator) -> None:
    generator = make_generator()
    model = (await generator.client.get("/v1/models/writer")).json()
    assert (model["task"], model["max_model_len"]) == ("generate", CONTEXT)
    info = (await generator.client.get("/info")).json()["models"][0]
    assert info["eos_token_ids"] == [EOS] and info["task"] == "generate"


async def test_the_schema_stands_by_itself(generator: GenerationServer) -> None:
    """References would point into the whole document, where their targets are not."""
    document = (await generator.client.get("/openapi.json")).json()
    for path in ("/v1/completions", "/v1/chat/completions"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "$ref" not in json.dumps(schema) and "temperature" in schema["properties"]


def test_configuration() -> None:
    assert HttpConfig().generation_timeout_ms == 600_000
    source = SourceConfig(path="x")
    for head in (HEADS["generate"], HEADS["classify"]):
        head.check_config(ModelConfig(name="m", source=source))
        for wrong in ({"pooling": "mean"}, {"normalize": False}):
            with pytest.raises(ConfigError, match="model m: pooling and normalize are for embeddings"):
                head.check_config(ModelConfig(name="m", source=source, **wrong))


@pytest.mark.parametrize(
    ("task", "has_tokenizer", "template", "route"),
    [
        ("embed", True, None, "/v1/embeddings"),
        ("classify", True, None, "/predict"),
        ("generate", True, "x", "/v1/chat/completions"),
        ("generate", True, None, "/v1/completions"),
        ("generate", False, None, "/v1/completions"),
        ("transcribe", True, None, "/v1/audio/transcriptions"),
    ],
)
def test_an_example_to_try(tmp_path: Path, task: str, has_tokenizer: bool, template: str | None, route: str) -> None:
    directory = write_directory(tmp_path / "model", template)
    if not has_tokenizer:
        (directory / "tokenizer.json").unlink()
    config = ModelConfig(name="m", source=SourceConfig(path="x"))
    example = find_example(DeployedModel(0, config, directory, ModelInfo("X", task, 9, 1, 9, 9)))
    assert example.route == route
    assert task != "generate" or isinstance(example.body.get("prompt", ""), str) == has_tokenizer
    shown = "-F model=m -F file=@speech.wav" if task == "transcribe" else "-H 'content-type: application/json' -d '{"
    assert write_body(example).startswith(shown)


def test_chat_templates_of_the_configuration(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A text in the YAML reaches the tokenizer, and the example that is shown at the start."""
    directory = write_directory(write_config(tmp_path, "decoder", **DECODER), None)
    model = {"name": "m", "source": {"path": str(directory)}, "chat": {"template": "{{ messages[0].content }}!"}}
    deployment = resolve(ServerConfig.model_validate({"models": [model]}), tmp_path)
    assert find_example(deployment.models[0]).route == "/v1/chat/completions"
    state = build_state(deployment, 0, Metrics(CollectorRegistry()), [FakeGenerator()], pool)
    template = state.models["m"].tokenizer.chat_template
    assert template.render([{"role": "user", "content": "hello"}]) == "hello!"


def write_config(directory: Path, name: str, **keys: object) -> Path:
    """A directory with nothing but config.json."""
    (directory / name).mkdir()
    sizes = {"vocab_size": 50, "hidden_size": 4, "max_position_embeddings": 64}
    (directory / name / "config.json").write_text(json.dumps(sizes | keys))
    return directory / name


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"limits": {"truncation": "right"}}, "limits.truncation is for inputs to be embedded or classified"),
        ({"speculative": {"method": "draft", "draft": {"path": "encoder"}}}, "encoder does not generate text"),
        (
            {"source": {"path": "encoder"}, "speculative": {"method": "ngram"}},
            "speculative is for language models",
        ),
        ({"source": {"path": "encoder"}, "chat": {"template": "x"}}, "chat is for models that generate"),
        ({"engine": {"precision": "auto_per_bucket"}}, "engine.precision auto_per_bucket is for models that read"),
        ({"chat": {"template": "tools"}}, "chat.template: there is no chat template 'tools'; there are none$"),
        ({"chat": {"template": "{% if %}"}}, "chat.template: this model's chat template is broken in line 1"),
        ({"chat": {"template_kwargs": {"messages": []}}}, "chat.template_kwargs must not have messages"),
    ],
)
def test_what_is_not_for_such_a_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, "decoder", **DECODER)
    write_config(tmp_path, "encoder", architectures=["BertModel"], model_type="bert", type_vocab_size=2)
    config = {"models": [{"name": "m", "source": {"path": "decoder"}} | model]}
    with pytest.raises((ConfigError, ModelDirectoryError), match=f"model m: .*{message}"):
        resolve(ServerConfig.model_validate(config), tmp_path)


def settle(info: ModelInfo, **options: Any) -> Seq2SeqInfo:
    model = ModelConfig.model_validate({"name": "m", "source": {"path": "x"}} | options)
    found = settle_weights(model, info).seq2seq
    assert found is not None
    return found


def test_engines_that_tell_what_tokens_look_at() -> None:
    """ONNX Runtime's do not: they have no times of words, and refuse a coverage penalty."""
    translator, hearer = describe_translator(100), describe_hearer(SETTINGS)
    onnx = {"engine": {"kind": "onnxruntime"}}
    graphs = {"engine": {"kind": "cuda_graphs", "device": "cuda"}}
    assert not settle(translator).has_coverage
    assert all(settle(translator, coverage_penalty=True, **options).has_coverage for options in ({}, graphs))
    for options, heads in (({}, ((0, 1),)), (graphs, ((0, 1),)), (onnx, ())):
        speech = settle(hearer, **options).speech
        assert speech is not None and speech.alignment_heads == heads
    with pytest.raises(ConfigError, match=r"coverage_penalty is for engine\.kind planned, cuda_graphs, reference, and"):
        settle(translator, coverage_penalty=True, **onnx)
    for info in (hearer, ModelInfo("BertModel", "embed", 9, 1, 9, 9)):
        with pytest.raises(ConfigError, match=f"m: coverage_penalty is for .* of texts, and .* task is {info.task}"):
            settle(info, coverage_penalty=True)


def test_prompts_that_are_not_pooled_are_not_cut_off(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "encoder", architectures=["BertModel"], model_type="bert", type_vocab_size=2)
    rows = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    rows.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (directory / "modules.json").write_text(json.dumps(rows))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True, "include_prompt": False}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    for truncation in ("right", "error", "left"):
        model = {"name": "m", "source": {"path": str(directory)}, "limits": {"truncation": truncation}}
        config = ServerConfig.model_validate({"models": [model]})
        if truncation != "left":
            resolve(config, tmp_path)
            continue
        with pytest.raises(ConfigError, match=r"model m: limits.truncation left would cut the prompt off"):
            resolve(config, tmp_path)
