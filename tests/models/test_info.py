"""What is read from config.json and the sentence-transformers files, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CONFIGS, SOLO_CONFIGS

from models.config import read_config
from models.defaults import DEFAULTS, OFFSET_POSITIONS
from models.info import ModelDirectoryError, read_info
from models.keys import BARE_ENCODERS, read_architecture
from models.registry import DECODERS, FAMILIES, SEQ2SEQ, find_decoder, find_family, find_seq2seq
from models.seq2seq_config import T5_TYPES

BERT = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "vocab_size": 101,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
CLASSIFIER = BERT | {"architectures": ["BertForSequenceClassification"]}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def write_chain(directory: Path, *modules: tuple[str, dict[str, Any] | None]) -> None:
    """config.json, modules.json, and a folder for each module that has settings."""
    write(directory / "config.json", BERT)
    rows = []
    for index, (kind, settings) in enumerate(modules):
        path = "" if kind.endswith("Transformer") else f"{index}_{kind.rpartition('.')[2]}"
        kind = kind if "." in kind else f"sentence_transformers.models.{kind}"
        rows.append({"idx": index, "name": str(index), "path": path, "type": kind})
        if settings is not None:
            write(directory / path / "config.json", settings)
    write(directory / "modules.json", rows)


TRANSFORMER = ("Transformer", None)
MEAN = ("Pooling", {"pooling_mode_mean_tokens": True})
DENSE = ("Dense", {"in_features": 32, "out_features": 8})
NORMALIZE = ("Normalize", None)


def test_plain_directory(tmp_path: Path) -> None:
    write(tmp_path / "config.json", BERT)
    info = read_info(tmp_path)
    assert (info.architecture, info.task, info.vocab_size, info.type_vocab_size) == ("BertModel", "embed", 101, 2)
    assert (info.max_input_tokens, info.output_dim) == (512, 32)
    assert (info.pooling, info.normalize, info.modules, info.id2label) == (("mean",), False, (), {})


def test_classifier(tmp_path: Path) -> None:
    labels = {"1": "harmful", "0": "clean", "2": "unsure"}
    problem_type = "multi_label_classification"
    write(tmp_path / "config.json", CLASSIFIER | {"id2label": labels, "problem_type": problem_type})
    info = read_info(tmp_path)
    assert (info.task, info.output_dim, info.problem_type) == ("classify", 3, problem_type)
    assert list(info.id2label.items()) == [(0, "clean"), (1, "harmful"), (2, "unsure")]
    assert read_config(tmp_path).num_labels == 3
    info = read_info(tmp_path, task="embed")
    assert (info.task, info.output_dim, info.id2label) == ("embed", 32, {})


@pytest.mark.parametrize(("keys", "labels"), [({}, 2), ({"num_labels": 4}, 4), ({"id2label": None}, 2)])
def test_labels_without_names(tmp_path: Path, keys: dict[str, Any], labels: int) -> None:
    write(tmp_path / "config.json", CLASSIFIER | keys)
    assert read_info(tmp_path).id2label == {index: f"LABEL_{index}" for index in range(labels)}
    assert read_config(tmp_path).num_labels == labels


@pytest.mark.parametrize(
    ("legacy", "mode", "pooling"),
    [
        ("pooling_mode_mean_tokens", "mean", "mean"),
        ("pooling_mode_cls_token", "cls", "cls"),
        ("pooling_mode_max_tokens", "max", "max"),
        ("pooling_mode_lasttoken", "lasttoken", "last"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", "mean_sqrt_len"),
        ("pooling_mode_weightedmean_tokens", "weightedmean", "weighted_mean"),
    ],
)
def test_poolings(tmp_path: Path, legacy: str, mode: str, pooling: str) -> None:
    """In the words of sentence-transformers until version 5, and since."""
    others = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "include_prompt": True}
    for settings in (others | {legacy: True}, {"pooling_mode": mode}, {"pooling_mode": [mode]}):
        write_chain(tmp_path, TRANSFORMER, ("Pooling", settings))
        assert read_info(tmp_path).pooling == (pooling,)
        assert read_info(tmp_path, pooling="max").pooling == ("max",)


def test_token_classifiers(tmp_path: Path) -> None:
    """Poolings and modules are not for them; their checkpoint embeds too, without its head."""
    labels = {"0": "O", "1": "B-PER", "2": "I-PER"}
    config = BERT | {"architectures": ["BertForTokenClassification"], "id2label": labels}
    write_chain(tmp_path, TRANSFORMER, MEAN, DENSE, NORMALIZE)
    write(tmp_path / "config.json", config)
    info = read_info(tmp_path)
    assert (info.task, info.output_dim, info.modules) == ("token_classify", 3, ())
    assert info.id2label == {0: "O", 1: "B-PER", 2: "I-PER"}
    assert read_info(tmp_path, task="embed").task == "embed"
    with pytest.raises(ModelDirectoryError, match="task classify needs a classification head"):
        read_info(tmp_path, task="classify")
    write(tmp_path / "config.json", CLASSIFIER)
    with pytest.raises(ModelDirectoryError, match="task token_classify needs a token classification head"):
        read_info(tmp_path, task="token_classify")


def test_several_poolings(tmp_path: Path) -> None:
    """The older keys are concatenated in an order of their own, the newer list in its own; the newer key wins."""
    legacy = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}
    write_chain(tmp_path, TRANSFORMER, ("Pooling", legacy))
    assert (read_info(tmp_path).pooling, read_info(tmp_path).output_dim) == (("cls", "mean", "last"), 96)
    write_chain(tmp_path, TRANSFORMER, ("Pooling", legacy | {"pooling_mode": ["lasttoken", "cls"]}))
    assert (read_info(tmp_path).pooling, read_info(tmp_path).output_dim) == (("last", "cls"), 64)
    assert read_info(tmp_path, pooling="cls").output_dim == 32


def test_include_prompt(tmp_path: Path) -> None:
    for keys, pools_prompt in (({}, True), ({"include_prompt": True}, True), ({"include_prompt": False}, False)):
        write_chain(tmp_path, TRANSFORMER, ("Pooling", {"pooling_mode": "mean"} | keys))
        assert read_info(tmp_path).pools_prompt == pools_prompt


def test_whole_chain(tmp_path: Path) -> None:
    second = ("sentence_transformers.base.modules.dense.Dense", {"in_features": 8, "out_features": 5})
    write_chain(tmp_path, TRANSFORMER, MEAN, ("Dropout", {"dropout": 0.1}), DENSE, second, NORMALIZE)
    info = read_info(tmp_path)
    assert (info.modules, info.output_dim, info.normalize) == ((("Dense", "3_Dense"), ("Dense", "4_Dense")), 5, True)
    assert not read_info(tmp_path, normalize=False).normalize


def test_chain_is_not_for_classifiers(tmp_path: Path) -> None:
    write_chain(tmp_path, TRANSFORMER, MEAN, DENSE, NORMALIZE)
    write(tmp_path / "config.json", CLASSIFIER)
    info = read_info(tmp_path)
    assert (info.output_dim, info.modules, info.normalize) == (2, (), False)


def test_normalize_in_the_middle(tmp_path: Path) -> None:
    write_chain(tmp_path, TRANSFORMER, MEAN, NORMALIZE, ("LayerNorm", {"dimension": 32}))
    info = read_info(tmp_path)
    assert (info.modules, info.normalize) == ((("Normalize", "2_Normalize"), ("LayerNorm", "3_LayerNorm")), False)
    assert read_info(tmp_path, normalize=True).normalize


BAD_CHAINS: dict[str, tuple[tuple[tuple[str, Any], ...], str]] = {
    "other pooling": (
        (TRANSFORMER, ("Pooling", {"pooling_mode": ["mean", "median"]})),
        r"pooling \['mean', 'median'\] is not supported; supported are cls, max",
    ),
    "other older pooling": (
        (TRANSFORMER, ("Pooling", {"pooling_mode_mean_tokens": True, "pooling_mode_median": True})),
        r"pooling \['mean', 'pooling_mode_median'\] is not",
    ),
    "empty pooling": ((TRANSFORMER, ("Pooling", {"pooling_mode": []})), r"pooling \[\] is not"),
    "no pooling": ((TRANSFORMER, DENSE), r"modules\.json: there is no Pooling; set pooling"),
    "pooling alone": ((MEAN,), "Pooling are not supported in this order; it must be one Transformer"),
    "other input": (
        (TRANSFORMER, MEAN, ("Normalize", {"module_input_name": "token_embeddings"})),
        r"2_Normalize/config\.json: module_input_name 'token_embeddings' is not supported",
    ),
    "no settings": ((TRANSFORMER, ("Pooling", None)), r"1_Pooling/config\.json: .*needs this file"),
    "unknown module": ((TRANSFORMER, ("LSTM", {})), r"'sentence_transformers\.models\.LSTM' is not supported"),
    "own code": ((("my_code.Transformer", None), MEAN), r"'my_code\.Transformer' is not supported"),
    "order": ((MEAN, TRANSFORMER), "Pooling, Transformer are not supported in this order"),
    "rows": ((TRANSFORMER, DENSE, MEAN), "Dense, Pooling are not supported in this order"),
    "twice": ((TRANSFORMER, MEAN, MEAN), "Transformer, Pooling, Pooling are not supported in this order"),
    "two transformers": ((TRANSFORMER, TRANSFORMER, MEAN), "Transformer, Transformer, Pooling are not supported"),
    "width": ((TRANSFORMER, MEAN, ("Dense", {"in_features": 32})), "the key 'out_features' is missing"),
}


@pytest.mark.parametrize("name", BAD_CHAINS)
def test_chains_that_are_refused(tmp_path: Path, name: str) -> None:
    modules, message = BAD_CHAINS[name]
    write_chain(tmp_path, *modules)
    with pytest.raises(ModelDirectoryError, match=message):
        read_info(tmp_path)


@pytest.mark.parametrize("content", [[1], [{"type": "x"}], "null", {"0": "Transformer"}])
def test_modules_that_are_no_list(tmp_path: Path, content: Any) -> None:
    write(tmp_path / "config.json", BERT)
    write(tmp_path / "modules.json", content)
    with pytest.raises(ModelDirectoryError, match=r"modules\.json: must be a list"):
        read_info(tmp_path)


def write_folder(directory: Path, folder: str) -> None:
    """A Transformer in a folder, then Pooling and Normalize."""
    kinds = [("Transformer", folder), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    rows = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds]
    write(directory / "modules.json", rows)
    write(directory / "1_Pooling/config.json", {"pooling_mode": "cls"})


def test_transformer_in_a_folder(tmp_path: Path) -> None:
    """It is not to be served by itself, without what comes after it, unless that is asked for."""
    write(tmp_path / "0_BERT/config.json", BERT)
    write_folder(tmp_path, "0_BERT")
    info = read_info(tmp_path)
    assert (info.transformer, info.pooling, info.normalize) == ("0_BERT", ("cls",), True)
    with pytest.raises(ModelDirectoryError, match=r"this is only the Transformer of the model in .* as the source"):
        read_info(tmp_path / "0_BERT")
    assert read_info(tmp_path / "0_BERT", pooling="mean").pooling == ("mean",)
    write(tmp_path / "other/config.json", BERT)
    assert read_info(tmp_path / "other").pooling == ("mean",)
    write(tmp_path / "modules.json", {"another": "program's"})
    assert read_info(tmp_path / "0_BERT").pooling == ("mean",)


@pytest.mark.parametrize("folder", ["..", "a/b", "/etc"])
def test_folders_elsewhere(tmp_path: Path, folder: str) -> None:
    write_folder(tmp_path, folder)
    with pytest.raises(ModelDirectoryError, match=f"the folder '{folder}' is not directly inside"):
        read_info(tmp_path)


NOT_TRANSFORMERS = {"jina_bert", "jina_bert_qk_norm", "new", "xlm-roberta-flash"}
"""Published with code of their own."""


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_of_every_family(tmp_path: Path, name: str) -> None:
    """RoBERTa and its kin lose the rows up to the padding id; the others have a row for every token."""
    config = CONFIGS[name]()
    config.architectures = [type(config).__name__.replace("Config", "Model")]
    config.save_pretrained(tmp_path)
    lost = {"roberta": 2, "camembert": 2, "xlm-roberta": 6, "xlm-roberta-xl": 3, "mpnet": 2}.get(config.model_type, 0)
    assert (config.model_type in OFFSET_POSITIONS) == (lost > 0)
    assert read_info(tmp_path).max_input_tokens == config.max_position_embeddings - lost


@pytest.mark.parametrize(
    "model_type",
    sorted({name for family in FAMILIES.values() for name in family.model_types} - NOT_TRANSFORMERS - set(T5_TYPES)),
)
def test_defaults_are_those_of_transformers(tmp_path: Path, model_type: str) -> None:
    """A config.json that says no more than it must."""
    config = next(make() for make in (CONFIGS | SOLO_CONFIGS).values() if make().model_type == model_type)
    theirs = type(config)()
    architecture = type(config).__name__.replace("Config", "Model")
    write(tmp_path / "config.json", BERT | {"model_type": model_type, "architectures": [architecture]})
    ours, info = read_config(tmp_path), read_info(tmp_path)
    assert ours.max_position_embeddings == theirs.max_position_embeddings
    assert (
        ours.type_vocab_size
        == getattr(theirs, "type_vocab_size", 0)
        == (info.type_vocab_size if ours.type_vocab_size else 0)
    )
    eps_names = ("layer_norm_eps", "norm_eps", "rms_norm_eps")
    assert ours.norm_eps == next((getattr(theirs, key) for key in eps_names if hasattr(theirs, key)), 1e-12)
    assert ours.pad_token_id == theirs.pad_token_id
    assert ours.embedding_size == getattr(theirs, "embedding_size", ours.hidden_size)
    assert ours.num_groups == getattr(theirs, "num_hidden_groups", ours.num_layers)
    assert (
        ours.activation
        == {"gelu": "gelu", "gelu_new": "gelu_tanh", "silu": "silu"}[getattr(theirs, "hidden_act", "gelu")]
    )
    assert find_family(architecture, model_type).model_types.count(model_type) == 1


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "relative positions": (
        {"position_embedding_type": "rotary"},
        "position_embedding_type 'rotary' is not",
    ),
    "decoder": ({"is_decoder": True}, "is_decoder True is not supported; only False is"),
    "cross attention": ({"add_cross_attention": True}, "add_cross_attention"),
    "pruned": ({"pruned_heads": {"0": [1]}}, "pruned_heads"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config .* use a checkpoint without it"),
    "own code": ({"auto_map": {"AutoModel": "code.Model"}}, r"auto_map says .* its own code \(AutoModel\)"),
    "activation": ({"hidden_act": "mish"}, "unknown activation 'mish'; known are gelu"),
    "heads": ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
    "no width": ({"hidden_size": None}, "the key 'hidden_size' is missing"),
    "text": ({"vocab_size": "many"}, "vocab_size is 'many'; it must be a whole number of at least 1"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be"),
    "labels": ({"id2label": {"1": "a", "2": "b"}}, "id2label must map the numbers from 0 on"),
    "albert": ({"model_type": "albert", "net_structure_type": 1}, "net_structure_type 1 is not supported; only 0 is"),
    "groups": ({"model_type": "albert", "num_hidden_groups": 0}, "num_hidden_groups is 0"),
    "buckets": (
        {"model_type": "mpnet", "relative_attention_num_buckets": 64},
        "relative_attention_num_buckets 64 is not",
    ),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_configs_that_are_refused(tmp_path: Path, name: str) -> None:
    keys, message = BAD_CONFIGS[name]
    path = write(tmp_path / "config.json", BERT | keys)
    with pytest.raises(ModelDirectoryError, match=message) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(str(path))


def test_settings_without_effect_are_accepted(tmp_path: Path) -> None:
    """As in published files: written down, at the value that changes nothing."""
    harmless = {"position_embedding_type": "absolute", "is_decoder": False, "pruned_heads": {}, "use_cache": True}
    albert = {"down_scale_factor": 1, "gap_size": 0, "net_structure_type": 0, "num_memory_blocks": 0}
    own_tokenizer = {"auto_map": {"AutoTokenizer": ["code.Tokenizer", None]}}
    write(tmp_path / "config.json", BERT | harmless | albert | own_tokenizer | {"model_type": "albert"})
    assert read_config(tmp_path).num_groups == 1


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({}, {"task": "classify"}, "task classify needs a classification head, but the architecture is BertModel"),
        ({"model_type": "xlnet"}, {}, "model_type 'xlnet' is not served; served are albert, bert"),
        ({"model_type": None}, {}, "model_type None is not served"),
        (CLASSIFIER | {"problem_type": "ranking"}, {}, "problem_type 'ranking' is not supported; supported are single"),
        ({"max_position_embeddings": 0}, {}, "max_position_embeddings is 0"),
    ],
)
def test_info_that_is_refused(tmp_path: Path, keys: dict[str, Any], options: dict[str, Any], message: str) -> None:
    write(tmp_path / "config.json", BERT | keys)
    with pytest.raises(ModelDirectoryError, match=message):
        read_info(tmp_path, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not valid JSON"), ("[]", "must hold a JSON object, not list"), (None, "a model directory needs this file")],
)
def test_broken_config(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        write(tmp_path / "config.json", content)
    for read in (read_info, read_config):
        with pytest.raises(ModelDirectoryError, match=rf"config\.json: .*{message}"):
            read(tmp_path)


def test_unknown_architecture() -> None:
    for architecture in ("GPT2Model", "BertForMultipleChoice", "BertLMHeadModel"):
        with pytest.raises(ModelDirectoryError, match=f"'{architecture}' is not served. Served are Albert, Bert"):
            find_family(architecture, "bert")
    with pytest.raises(ModelDirectoryError, match="'BertModel' contradicts model_type 'roberta'; it goes with bert"):
        find_family("BertModel", "roberta")
    with pytest.raises(ModelDirectoryError, match="'GitForConditionalGeneration' is no encoder-decoder that is served"):
        find_seq2seq("GitForConditionalGeneration", "git")
    with pytest.raises(ModelDirectoryError, match="contradicts model_type 'mt5'; it goes with bart, mbart"):
        find_seq2seq("BartForConditionalGeneration", "mt5")


def test_without_an_architecture_it_is_the_bare_encoder() -> None:
    """As AutoModel of transformers has it. Of a decoder that would be one that cannot generate."""
    for model_type, name in BARE_ENCODERS.items():
        assert read_architecture({"model_type": model_type}) == name
        assert model_type in find_family(name, model_type).model_types
    for find in (find_family, find_decoder):
        with pytest.raises(ModelDirectoryError, match="the key 'architectures' is missing"):
            find(read_architecture({"model_type": "llama"}), "llama")


def test_every_model_type_has_a_family() -> None:
    """T5's and its kin's two: the whole, and the encoder alone."""
    families = {*FAMILIES.values(), *DECODERS.values(), *SEQ2SEQ.values()}
    found = [model_type for family in families for model_type in family.model_types]
    assert sorted(found) == sorted([*DEFAULTS, *T5_TYPES])


def test_matryoshka_dimensions(tmp_path: Path) -> None:
    def read(given: Any) -> tuple[int, ...]:
        write(tmp_path / "config.json", BERT | {"matryoshka_dimensions": given})
        return read_info(tmp_path).matryoshka_dimensions

    assert read([16, 8]) == (16, 8)
    assert read(None) == read([]) == ()
    for bad in (16, "16", ["16"], [0], [True], [1.5], {"a": 1}):
        with pytest.raises(
            ModelDirectoryError, match=r"config.json: matryoshka_dimensions is .*; it must be a list of"
        ):
            read(bad)
