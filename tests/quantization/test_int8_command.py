"""`padless quantize`: what it reads, what it refuses, and what it leaves behind."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
import yaml

from models.info import ModelInfo
from runtime.batch import Batch, Output
from runtime.quantization.calibrate import Calibration, LinearReport, Options
from runtime.quantization.report import compare_speed, count_bytes, format_json, format_markdown
from runtime.quantization.scheme import LinearScheme, Quantization, load_quantization
from server import __main__ as command_line
from server.config import ConfigError, ModelConfig
from server.processes import quantize_process
from server.processes.deployment import DeployedModel
from server.processes.quantize_process import choose_texts, count_held_out, read_texts
from tests.kernels.tiny_graphs import random_batch

WORDS = [f"w{index}" for index in range(50)]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of fifty words."""
    path = tmp_path_factory.mktemp("tiny")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(path)
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", *WORDS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def config(directory: Path, tmp_path: Path) -> Path:
    models = [{"name": "org/tiny", "source": {"path": str(directory)}, "engine": {"threads": 1}}]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    return path


def write_texts(path: Path, count: int) -> Path:
    random = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(random.choice(WORDS, random.integers(1, 12)))}) for _ in range(count)]
    path.write_text("\n".join(lines) + "\n")
    return path


def run_quantize(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """The command, and what it has run in a process of its own, both in this one."""
    called: list[tuple[str, Sequence[str]]] = []
    monkeypatch.setattr(command_line, "run_module", lambda module, words: called.append((module, words)) or 0)
    monkeypatch.setattr(sys, "argv", ["padless", "quantize", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    ((module, words),) = called
    assert (ended.value.code, module) == (0, quantize_process.__name__)
    monkeypatch.setattr(sys, "argv", [module, *words])
    quantize_process.main()


def test_file_and_report_lie_beside_the_config(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_texts(tmp_path / "texts.jsonl", 60)
    run_quantize(monkeypatch, "--config", config, "--data", data, "--max-texts", 50)
    stdout = capsys.readouterr().out
    out = tmp_path / "org_tiny.int8.safetensors"
    quantization = load_quantization(out)
    assert len(quantization.linears) == 4 and quantization.activations == "dynamic"
    assert (quantization.num_texts, quantization.accuracy.num_texts) == (10, 40)
    assert f"quantization: {out}" in stdout and "precision: int8" in stdout
    assert "measured on 40 others" in out.with_suffix(".md").read_text()
    document = json.loads(out.with_suffix(".json").read_text())
    assert len(document["linears"]) == 4 and document["accuracy"]["num_texts"] == 40


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "other"}, "no such model; there are org/tiny"),
        ({"out": "/nowhere/x.safetensors"}, "there is no folder /nowhere"),
        ({"data": "/nowhere.jsonl"}, "No such file"),
    ],
)
def test_errors_are_one_line(
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    message: str,
) -> None:
    data = write_texts(tmp_path / "texts.jsonl", 5)
    arguments = quantize_process.Arguments(
        str(config), "org/tiny", str(data), str(tmp_path / "x.safetensors"), "dynamic", "50"
    )
    monkeypatch.setattr(sys, "argv", ["", *arguments._replace(**changed)])
    with pytest.raises(SystemExit) as exit_status:
        quantize_process.main()
    stderr = capsys.readouterr().err
    assert exit_status.value.code == 2
    assert message in stderr and len(stderr.splitlines()) == 1


@pytest.mark.parametrize("task", ["generate", "text2text"])
def test_generators_need_none(tmp_path: Path, task: str) -> None:
    config = ModelConfig.model_validate({"name": "writer", "source": {"path": "x"}})
    model = DeployedModel(0, config, tmp_path, ModelInfo("X", task, 9, 1, 9, 9))
    with pytest.raises(ConfigError, match=r"writes answers.* set engine.precision to int8"):
        quantize_process.quantize(model, tmp_path / "x.jsonl", tmp_path / "x.safetensors", Options(), 5)


def test_too_few_texts_are_refused_at_once(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["padless", "quantize", "--config", str(config), "--data", "x", "--max-texts", "1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        command_line.main()
    assert "--max-texts 1: must be at least 2" in capsys.readouterr().err


class TestData:
    def read(self, tmp_path: Path, content: str) -> list[str]:
        path = tmp_path / "texts.jsonl"
        path.write_text(content, encoding="utf-8")
        return list(read_texts(path))

    def test_strings_objects_and_blank_lines(self, tmp_path: Path) -> None:
        content = '"one"\n\n{"text": "two", "id": 3}\r\n"a\u2028b"\n'
        assert self.read(tmp_path, content) == ["one", "two", "a\u2028b"]

    @pytest.mark.parametrize("line", ["{", "3", '{"txt": "a"}', '{"text": 3}', '""', '["a"]', "null"])
    def test_bad_lines_are_named(self, tmp_path: Path, line: str) -> None:
        with pytest.raises(ConfigError, match=r"texts\.jsonl: line 2 is"):
            self.read(tmp_path, f'"one"\n{line}\n"three"\n')

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "x").write_bytes(b'"\xff"')
        with pytest.raises(ConfigError, match="not UTF-8"):
            list(read_texts(tmp_path / "x"))

    def test_texts_are_different_and_their_order_is_repeatable(self) -> None:
        texts = [str(index) for index in range(100)]
        chosen = choose_texts(texts + texts, 60, Path())
        assert (
            len(set(chosen)) == 60 and chosen == choose_texts(texts, 60, Path()) and chosen != sorted(chosen, key=int)
        )

    def test_one_text_is_too_few(self) -> None:
        with pytest.raises(ConfigError, match="at least 2"):
            choose_texts(["a", "a"], 10, Path("x"))

    @pytest.mark.parametrize(("num_texts", "num_held_out"), [(2, 1), (3, 2), (100, 80)])
    def test_some_are_held_out_however_few_there_are(self, num_texts: int, num_held_out: int) -> None:
        assert count_held_out(num_texts) == num_held_out


class TestReport:
    linears = (LinearReport("a", (10, 100), 0.01, 0.02), LinearReport("b", (20, 10), 0.03, 0.03, is_float=True))
    calibration = Calibration(Quantization({"a": LinearScheme(), "b": LinearScheme(is_float=True)}, "f"), linears)

    def test_bytes(self) -> None:
        assert count_bytes(self.linears) == (4 * 1200, 10 * 104 + 800)

    def test_speed_is_shown_where_it_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = 0.0

        def run(seconds: float) -> object:
            def step(batch: Batch) -> Output:
                nonlocal clock
                clock += seconds
                return Output({"embeddings": np.zeros((batch.num_seqs, 1), np.float32)})

            return type("Timed", (), {"run": staticmethod(step)})()

        monkeypatch.setattr("time.perf_counter", lambda: clock)
        speed = compare_speed(run(0.3), run(0.1), [random_batch([5, 5])] * 3)  # type: ignore[arg-type]
        assert speed.ratio == pytest.approx(3) and speed.int8_tokens_per_s == pytest.approx(100)
        assert "3.00 times" in format_markdown("tiny", self.calibration, Options(), speed)
        assert json.loads(format_json(self.calibration, Options(), speed))["speed"]["ratio"] == pytest.approx(3)

    def test_floats_are_named(self) -> None:
        text = format_markdown("tiny", self.calibration, Options(), None)
        assert "Left in float: `b`." in text and "tokens/s" not in text
