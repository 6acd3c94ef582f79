"""Small tokenizers as language models have them, an engine that generates what it is told, and a server with both."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from prometheus_client import CollectorRegistry
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as RawTokenizer

from models.info import ModelInfo
from models.seq2seq_info import Seq2SeqInfo
from models.translation import TranslationInfo
from server.config import ChatConfig, HttpConfig, LimitsConfig, ModelConfig, ServerConfig, SourceConfig
from server.http.admission import Admission
from server.http.app import App
from server.http.state import ServedModel, ServerState
from server.metrics import Metrics
from server.tasks.registry import HEADS
from server.text.chat_template import load_chat_template
from server.text.languages import Languages
from server.text.tokenizer import Tokenizer
from server.text.tokenizer_file import load_tokenizer
from server.wire.generation import AnswerNews, FinishReason, GenerationParams, TokenLogprob, pack_logprob, write_news
from server.wire.job import EngineStatus, Job
from server.wire.result_stream import ResultStream

CORPUS = [
    "Once upon a time there was a little girl who lived near the forest. She said hello to the world.",
    "The quick brown fox jumps over the lazy dog. Stop here, please! END of the story\nand the next line",
    "été garçon naïve 你好 世界 😀 Grüße",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
BOS, EOS = 1, 2
CONTEXT = 128
TARGET = 64
LANGUAGES = Languages(TranslationInfo("prefix", "en_XX", "de_DE"), {"en_XX": 3, "de_DE": 4, "de_CH": 5}, EOS)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build_byte_level() -> RawTokenizer:
    """As GPT-2, Llama 3 and Qwen have it: byte-level BPE, whatever the bytes."""
    raw = RawTokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    raw.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", BOS)])
    return raw


def build_byte_fallback(*, by_metaspace: bool = False) -> RawTokenizer:
    """As Llama 2 and Mistral have it: blanks are U+2581, and what has no token is written in bytes."""
    vocab = {token: index for index, token in enumerate([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))])}
    words = ["▁", *"abcdefghijklmnopqrstuvwxyz", "é", "你", "▁a", "▁the", "▁t", "th", "he", "the"]
    vocab |= {word: len(vocab) + place for place, word in enumerate(words)}
    merges = [("▁", "a"), ("▁", "t"), ("t", "h"), ("h", "e"), ("th", "e"), ("▁t", "he"), ("▁", "the")]
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.add_special_tokens(SPECIAL)
    if by_metaspace:
        raw.pre_tokenizer = pre_tokenizers.Metaspace()
        raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
        return raw
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


def build_word_ends(*, by_steps: bool = False, has_lone_end: bool = False) -> RawTokenizer:
    """As GPT-1 and translators of subword-nmt have it: pieces that end a word say so, and a blank follows them."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        *SPECIAL,
        *(["</w>"] if has_lone_end else []),
        *letters,
        "é",
        ".",
        *(f"{letter}</w>" for letter in letters),
        "é</w>",
        ".</w>",
        "th",
        "the</w>",
    ]
    merges = [("t", "h"), ("th", "e</w>")]
    vocab = {word: index for index, word in enumerate(words)}
    raw = RawTokenizer(models.BPE(vocab, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    raw.add_special_tokens(SPECIAL)
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    steps = decoders.Sequence([decoders.Replace("</w>", " "), decoders.Fuse(), decoders.Strip(" ", 0, 1)])
    raw.decoder = steps if by_steps else decoders.BPEDecoder(suffix="</w>")
    return raw


def build_word_piece() -> RawTokenizer:
    words = ["[UNK]", "un", "##able", "##s", "word", "don", "'", "t", ".", ",", "é", "##é"]
    raw = RawTokenizer(models.WordPiece({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    raw.add_special_tokens([AddedToken("[UNK]", special=True)])
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    return raw


def write_directory(directory: Path, template: str | None = CHATML) -> Path:
    """With a tokenizer, and a chat template where one is wanted."""
    directory.mkdir(exist_ok=True)
    build_byte_level().save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"} | ({} if template is None else {"chat_template": template})
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def find_logprob(token_id: int) -> float:
    """Of the fake engine: the same for a token wherever it stands."""
    return -0.1 * (1 + token_id % 7)


class FakeJob:
    """What `FakeGenerator` does of a job: one prompt's answers after another's, all prompts in step."""

    def __init__(self, engine: "FakeGenerator", job: Job) -> None:
        self.engine, self.job, self.params = engine, job, job.params
        self.prompts = [job.input_ids.row(index).tolist() for index in range(job.num_inputs)]
        self.stopped: set[int] = set()
        self.num_steps = 0
        self.has_ended = False
        self.is_cancelled = False
        self.stream = ResultStream(self.cancel)
        self.task = asyncio.create_task(self.run())

    @property
    def prompt(self) -> list[int]:
        (prompt,) = self.prompts
        return prompt

    def cancel(self, rows: Sequence[int]) -> None:
        self.stopped |= set(rows)
        if not rows:
            self.is_cancelled = self.is_cancelled or not self.has_ended
            self.task.cancel()

    async def run(self) -> None:
        per_prompt = self.params.num_sequences
        plans = [
            self.plan(prompt, index, place * per_prompt + index)
            for place, prompt in enumerate(self.prompts)
            for index in range(per_prompt)
        ]
        num_steps = max(len(plan) for plan in plans)
        open_rows = set(range(len(plans)))
        for step in range(num_steps):
            if self.engine.gate is not None:
                await self.engine.gate.acquire()
            if self.engine.error is not None and self.num_steps >= self.engine.error_after:
                self.has_ended = True
                self.stream.fail(self.engine.error)
                return
            news = [plan[step] for plan in plans if step < len(plan)]
            news = [item for item in news if item.row not in self.stopped]
            open_rows -= {item.row for item in news if item.finish_reason} | self.stopped
            self.num_steps += 1
            self.has_ended = self.num_steps == num_steps
            if news:
                self.stream.put(write_news(news, is_last=not open_rows))
            await asyncio.sleep(0)

    def plan(self, prompt: list[int], index: int, row: int) -> list[AnswerNews]:
        """All news of one answer: a token each, but `tokens_per_event`."""
        ids = list(self.engine.answers[index % len(self.engine.answers)])[: self.params.max_tokens]
        for place, token_id in enumerate(ids):
            if token_id in self.params.stop_token_ids:
                ids = ids[: place + 1]
                break
        is_stopped = bool(ids) and ids[-1] in self.params.stop_token_ids
        reason: FinishReason = "stop" if is_stopped or len(ids) < self.params.max_tokens else "length"
        size = self.engine.tokens_per_event
        groups = [tuple(ids[begin : begin + size]) for begin in range(0, len(ids), size)] or [()]
        return [
            AnswerNews(
                row,
                group,
                self.find_logprobs(group, self.params.num_logprobs),
                reason if place == len(groups) - 1 else "",
                self.engine.num_cached_tokens if index == 0 and place == 0 else 0,
                self.find_prompt_logprobs(prompt) if index == place == 0 else (),
            )
            for place, group in enumerate(groups)
        ]

    def find_prompt_logprobs(self, prompt: list[int]) -> tuple[TokenLogprob, ...]:
        if self.params.probe is not None:
            return self.find_logprobs(self.params.probe[1:], 0)
        return self.find_logprobs(prompt[1:], self.params.num_prompt_logprobs)

    def find_logprobs(self, ids: Any, num_top: int) -> tuple[TokenLogprob, ...]:
        if num_top < 0:
            return ()
        others = np.arange(10, 10 + num_top)
        return tuple(
            pack_logprob(find_logprob(token_id), others, np.array([-0.05 * (other + 1) for other in others]))
            for token_id in ids
        )


@dataclass
class FakeGenerator:
    """An EngineClient that generates `answers`, in turn for each sequence; one step for each release of `gate`."""

    answers: list[list[int]] = field(default_factory=list)
    tokens_per_event: int = 1
    num_cached_tokens: int = 0
    gate: asyncio.Semaphore | None = None
    error: Exception | None = None
    error_after: int = 0
    refusal: Exception | None = None
    reported: tuple[EngineStatus, ...] = (EngineStatus(is_ready=True, reason="ready"),)
    jobs: list[FakeJob] = field(default_factory=list)

    def statuses(self) -> tuple[EngineStatus, ...]:
        return self.reported

    def submit(self, job: Job) -> ResultStream:
        assert job.input_ids.values.dtype == np.int32
        if self.refusal is not None:
            raise self.refusal
        self.jobs.append(FakeJob(self, job))
        return self.jobs[-1].stream

    async def close(self) -> None:
        return None

    @property
    def params(self) -> GenerationParams:
        return self.jobs[-1].params

    @property
    def num_cancelled(self) -> int:
        return sum(job.is_cancelled for job in self.jobs)


@dataclass
class GenerationServer:
    """The application and what is behind it: `writer`, a model with texts, `ids`, one without, and `translator`, an
    encoder-decoder."""

    app: App
    state: ServerState
    engine: FakeGenerator
    ids_engine: FakeGenerator
    translator_engine: FakeGenerator
    tokenizer: Tokenizer
    raw: RawTokenizer
    client: httpx.AsyncClient

    def count(self, name: str = "requests_total", **labels: str) -> float:
        return sum(
            sample.value
            for metric in self.state.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == f"padless_{name}" and labels.items() <= sample.labels.items()
        )

    def encode(self, text: str) -> list[int]:
        return list(self.raw.encode(text, add_special_tokens=False).ids)

    def say(self, *texts: str, end: int | None = EOS) -> None:
        """What the engine is to answer."""
        self.engine.answers = [[*self.encode(text), *([] if end is None else [end])] for text in texts]

    async def complete(self, prompt: Any = "Once upon", **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", None)
        body = {"model": "writer", "prompt": prompt, "max_tokens": 40} | fields
        return await self.client.post("/v1/completions", json=body, headers=headers)

    async def chat(self, messages: Any = None, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hello"}] if messages is None else messages
        return await self.client.post("/v1/chat/completions", json={"model": "writer", "messages": messages} | fields)

    def check_idle(self) -> None:
        """No place is taken, and every stream has ended or been cancelled."""
        for model in self.state.models.values():
            assert (model.admission.num_inputs, model.admission.num_tokens) == (0, 0)
        for job in (*self.engine.jobs, *self.ids_engine.jobs, *self.translator_engine.jobs):
            assert job.is_cancelled or job.has_ended


def describe_translator(size: int) -> ModelInfo:
    """Of a vocabulary of that size."""
    rules = Seq2SeqInfo(TARGET, EOS, EOS, num_beams=2, max_length=20, no_repeat_ngram_size=3, has_coverage=True)
    info = ModelInfo("M2M100ForConditionalGeneration", "text2text", size, 1, CONTEXT, size, eos_token_ids=(EOS,))
    return replace(info, seq2seq=rules)


def build_generation_server(
    directory: Path,
    pool: ThreadPoolExecutor,
    *,
    http: dict[str, Any] | None = None,
    chat: dict[str, Any] | None = None,
    **limits: Any,
) -> GenerationServer:
    raw = RawTokenizer.from_file(str(directory / "tokenizer.json"))
    size = raw.get_vocab_size()
    info = ModelInfo("LlamaForCausalLM", "generate", size, 1, CONTEXT, size, eos_token_ids=(EOS,))
    options: dict[str, Any] = {"max_input_tokens": CONTEXT, "vocab_size": size, "type_vocab_size": 1, "pool": pool}
    tokenizers = {
        "writer": load_tokenizer(directory, chat_template=load_chat_template(directory), **options),
        "ids": Tokenizer(None, **options),
    }
    tokenizers["translator"] = tokenizers["writer"]
    infos = dict.fromkeys(("writer", "ids"), info) | {"translator": describe_translator(size)}
    configs = tuple(
        ModelConfig(
            name=name,
            source=SourceConfig(path="unused"),
            limits=LimitsConfig(**limits),
            chat=ChatConfig(**(chat or {})),
        )
        for name in tokenizers
    )
    engines = [FakeGenerator(), FakeGenerator([[7, 8, EOS]]), FakeGenerator()]
    served = {
        config.name: ServedModel(
            config.name,
            config,
            HEADS[infos[config.name].task],
            infos[config.name],
            tokenizers[config.name],
            Admission(config.limits.max_concurrent_requests),
            engine,
            languages=LANGUAGES if config.name == "translator" else None,
        )
        for config, engine in zip(configs, engines, strict=True)
    }
    config = ServerConfig(server=HttpConfig(**(http or {})), models=configs)
    state = ServerState(config, served, Metrics(CollectorRegistry()))
    app = App(state)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless")
    server = GenerationServer(app, state, *engines, tokenizers["writer"], raw, client)
    server.say("Once upon a time")
    server.translator_engine.answers = server.engine.answers
    return server


def read_events(response: httpx.Response) -> list[Any]:
    """Parsed events of a whole stream, which must end as OpenAI's do; without that end."""
    assert response.headers["content-type"].startswith("text/event-stream"), response.text
    lines = response.text.split("\n\n")
    assert lines[-1] == "" and lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
