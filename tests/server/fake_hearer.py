"""An engine that hears what a test tells it, and an application that asks it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fake_generator import FakeGenerator, FakeJob
from prometheus_client import CollectorRegistry

from models.info import ModelInfo
from models.seq2seq_info import Seq2SeqInfo
from models.speech_info import SpeechInfo
from server.audio.features import LogMel
from server.audio.hearing import Hearing
from server.audio.speech import find_speech
from server.config import HttpConfig, LimitsConfig, ModelConfig, ServerConfig, SourceConfig
from server.errors import EngineFailure
from server.http.admission import Admission
from server.http.app import App
from server.http.state import ServedModel, ServerState
from server.metrics import Metrics
from server.tasks.registry import HEADS
from server.text.tokenizer_file import load_tokenizer
from server.wire.generation import AnswerNews, write_news
from server.wire.job import Job
from server.wire.processors import AllowedTokens
from server.wire.result_stream import ResultStream
from tests.whisper_files import (
    MAX_TARGET_TOKENS,
    NUM_MEL_BINS,
    WINDOW_S,
    build_tokenizer,
    describe_generation,
    make_sound,
    write_wav,
)

RAW = build_tokenizer()
SETTINGS = describe_generation(RAW)
SOUND = write_wav(make_sound(1.5))


def find(token: str) -> int:
    token_id = RAW.token_to_id(token)
    assert token_id is not None
    return token_id


END, START, PREVIOUS, NO_SPEECH = (
    find(f"<|{name}|>") for name in ("endoftext", "startoftranscript", "startofprev", "nospeech")
)


def spell(*parts: str | float, end: bool = True) -> list[int]:
    """Texts and times in turn."""
    ids: list[int] = []
    for part in parts:
        ids += RAW.encode(part).ids if isinstance(part, str) else [find(f"<|{part:.2f}|>")]
    return [*ids, *([END] if end else [])]


@dataclass
class Hearer(FakeGenerator):
    """Says `windows`, one after the other; asked for a language, that one. Mutable: as the others."""

    windows: list[list[int]] = field(default_factory=lambda: [spell(0.0, " hello", 1.5)])
    language: str = "de"
    num_said: int = 0
    num_frames: int = WINDOW_S * 50
    fails_at: int | None = None
    """So many windows have been answered."""
    aligned: list[Job] = field(default_factory=list)

    def submit(self, job: Job) -> ResultStream:
        if job.params.align_from is not None:
            return self.align(job)
        if isinstance(job.params.processors[0], AllowedTokens):
            self.answers = [[find(f"<|{self.language}|>")]]
        else:
            self.error = EngineFailure("gone") if self.num_said == self.fails_at else None
            self.answers = [self.windows[min(self.num_said, len(self.windows) - 1)]]
            self.num_said += 1
        return super().submit(job)

    def align(self, job: Job) -> ResultStream:
        """Each token looks at five rows of the encoder behind those of the one before."""
        num_tokens = len(job.input_ids.row(0)) - job.params.align_from
        weights = np.full((num_tokens, 2, self.num_frames), 1e-3, np.float32)
        for token in range(num_tokens):
            weights[token, :, 5 * token : 5 * token + 5] = 0.1
        self.aligned.append(job)
        stream = ResultStream(lambda rows: None)
        stream.put(write_news([AnswerNews(0, finish_reason="length", cross_weights=weights)], is_last=True))
        return stream

    @property
    def said(self) -> list[FakeJob]:
        """Jobs that asked for words."""
        return [job for job in self.jobs if job.params.max_tokens > 1]


def describe_model(settings: dict[str, Any], alignment_heads: tuple[tuple[int, int], ...] = ((0, 1),)) -> ModelInfo:
    speech = SpeechInfo(
        NUM_MEL_BINS,
        lang_to_id=settings.get("lang_to_id", {}),
        task_to_id=settings.get("task_to_id", {}),
        no_timestamps_token_id=settings["no_timestamps_token_id"],
        max_initial_timestamp_index=settings["max_initial_timestamp_index"],
        prev_sot_token_id=settings["prev_sot_token_id"],
        alignment_heads=alignment_heads,
    )
    rules = Seq2SeqInfo(
        MAX_TARGET_TOKENS,
        START,
        END,
        suppress_tokens=tuple(settings["suppress_tokens"]),
        begin_suppress_tokens=tuple(settings["begin_suppress_tokens"]),
        speech=speech,
    )
    size = RAW.get_vocab_size()
    return ModelInfo(
        *("WhisperForConditionalGeneration", "transcribe", size, 1, WINDOW_S * 50, size),
        eos_token_ids=(END,),
        seq2seq=rules,
    )


def build_hearer(
    pool: ThreadPoolExecutor, directory: Path, engine: Hearer, info: ModelInfo | None = None, **limits: Any
) -> ServedModel:
    """A model named whisper."""
    RAW.save(str(directory / "tokenizer.json"))
    info = info or describe_model(SETTINGS)
    tokenizer = load_tokenizer(
        directory, max_input_tokens=info.max_input_tokens, vocab_size=info.vocab_size, type_vocab_size=1, pool=pool
    )
    config = ModelConfig(name="whisper", source=SourceConfig(path="unused"), limits=LimitsConfig(**limits))
    speech, log_mel = find_speech(info, tokenizer.texts), LogMel(NUM_MEL_BINS, WINDOW_S)
    hearing = Hearing(speech, log_mel, config.limits.max_audio_s, pool, asyncio.Semaphore(1))
    admission = Admission(config.limits.max_concurrent_requests)
    return ServedModel("whisper", config, HEADS["transcribe"], info, tokenizer, admission, engine, hearing=hearing)


@dataclass
class AudioServer:
    """The application, and the engine behind it."""

    state: ServerState
    app: App
    engine: Hearer
    client: httpx.AsyncClient

    async def post(
        self, content: bytes = SOUND, *, route: str = "transcriptions", name: str = "a.wav", **fields: Any
    ) -> httpx.Response:
        path = f"/v1/audio/{route}"
        return await self.client.post(path, files={"file": (name, content)}, data=fields)

    async def refuse(self, content: bytes = SOUND, **fields: Any) -> tuple[int, str | None, str]:
        response = await self.post(content, **fields)
        error = response.json()["error"]
        return response.status_code, error["param"], error["message"]

    def check_idle(self) -> None:
        for model in self.state.models.values():
            assert (model.admission.num_inputs, model.admission.num_tokens) == (0, 0)
        assert self.app.bodies.held_bytes == 0


def build_audio_server(
    pool: ThreadPoolExecutor,
    directory: Path,
    http: dict[str, Any] | None = None,
    info: ModelInfo | None = None,
    **limits: Any,
) -> AudioServer:
    engine = Hearer()
    model = build_hearer(pool, directory, engine, info, **limits)
    config = ServerConfig(server=HttpConfig(**(http or {})), models=(model.config,))
    state = ServerState(config, {"whisper": model}, Metrics(CollectorRegistry()))
    app = App(state)
    return AudioServer(
        state, app, engine, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://padless")
    )
