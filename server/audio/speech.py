"""How one model is asked for a transcript: the tokens of languages, tasks and times, and where each stands.

The prompt is Whisper's: `<|startofprev|>` and what was said before, `<|startoftranscript|>`, the language, the task
(Radford et al., 2022, figure 1).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from models.info import ModelDirectoryError, ModelInfo
from models.seq2seq_info import Seq2SeqInfo
from server.audio.fallback import Attempt
from server.audio.languages import NAMES, find_language
from server.audio.segments import TranscriptTokens
from server.errors import InvalidField
from server.text.detokenizer import TokenTexts

SpeechTask = Literal["transcribe", "translate"]
ENGLISH = "en"
NUM_WORDS_OF_SEVERAL = 51_865
"""Vocabularies from this size on have tokens for languages, whatever a directory says or leaves out."""


@dataclass(frozen=True, slots=True)
class Speech:
    """What is known of one model that hears.

    `languages`: their tokens by their codes; empty where it writes English only. `tasks`: theirs, by name. The others
    are None where it has no such token.
    """

    rules: Seq2SeqInfo
    tokens: TranscriptTokens
    languages: Mapping[str, int]
    tasks: Mapping[str, int]
    no_timestamps_id: int
    previous_id: int | None
    no_speech_id: int | None

    @property
    def start_id(self) -> int:
        return self.rules.decoder_start_token_id

    @property
    def filter_width(self) -> int:
        """Of frames, by which what alignment heads look at is smoothed."""
        assert self.rules.speech is not None
        return self.rules.speech.median_filter_width

    @property
    def max_tokens(self) -> int:
        """Of what a window says: half of what the decoder has room for. The other half is for what was said before."""
        return self.rules.max_target_tokens // 2

    def find_language(self, given: str) -> str:
        """The code of a language by its code, which may be the model's own, or its name. Raises InvalidField."""
        if given in self.languages:
            return given
        code = find_language(given, "language")
        if code not in (self.languages or (ENGLISH,)):
            known = ", ".join(self.languages) if self.languages else f"English only; send {ENGLISH!r} or leave it out"
            raise InvalidField(f"language {code!r} is not known to this model, which writes {known}", param="language")
        return code

    def check_task(self, task: SpeechTask) -> None:
        """Raises InvalidField."""
        if task != "transcribe" and task not in self.tasks:
            raise InvalidField(
                "this model writes down English only and does not translate; use /v1/audio/transcriptions, or a "
                "multilingual model",
                param="model",
            )

    def check_words(self) -> None:
        """Whether the model can tell when words are said. Raises InvalidField."""
        assert self.rules.speech is not None
        if not self.rules.speech.alignment_heads:
            raise InvalidField(
                "timestamp_granularities has word, and this model cannot tell: its generation_config.json has no "
                "alignment_heads, or its engine.kind is not planned. Send segment",
                param="timestamp_granularities",
            )

    def begin(self, language: str, task: SpeechTask, before: Sequence[int]) -> list[int]:
        """The prompt of a window. `before`: tokens of what was said until then; the last of them are what there is room
        for."""
        prompt = [self.start_id]
        if self.languages:
            prompt += [self.languages[language], self.tasks[task]]
        if before and self.previous_id is not None:
            return [self.previous_id, *before[-(self.max_tokens - 1) :], *prompt]
        return prompt

    def find_start(self, prompt: Sequence[int]) -> int:
        """The place of `<|startoftranscript|>`."""
        return len(prompt) - 1 - prompt[::-1].index(self.start_id)

    def read_attempt(
        self, token_ids: Sequence[int], logprobs: Sequence[float], no_speech_logprob: float, temperature: float
    ) -> Attempt:
        """A window's answer. `logprobs`: of all tokens, the end among them."""
        words = tuple(token_id for token_id in token_ids if token_id != self.tokens.end_id)
        avg_logprob = sum(logprobs) / (len(words) + 1)
        return Attempt(words, self.tokens.write(words), temperature, avg_logprob, math.exp(no_speech_logprob))

    def name_language(self, token_id: int) -> str:
        """Its code."""
        return next(code for code, known in self.languages.items() if known == token_id)


def find_speech(info: ModelInfo, texts: TokenTexts) -> Speech:
    """What the directory's generation_config.json leaves out is the tokenizer's to say. Raises ModelDirectoryError."""
    assert info.seq2seq is not None and info.seq2seq.speech is not None, "Only Whisper hears. This is a bug."
    speech = info.seq2seq.speech
    no_timestamps = find_token(texts, speech.no_timestamps_token_id, "<|notimestamps|>")
    if no_timestamps is None:
        raise ModelDirectoryError(
            "generation_config.json has no no_timestamps_token_id and the tokenizer no <|notimestamps|>, behind which "
            "the tokens of times come; take both files from the original model"
        )
    languages = {token.strip("<|>"): token_id for token, token_id in speech.lang_to_id.items()}
    if not languages and info.output_dim >= NUM_WORDS_OF_SEVERAL:
        languages = find_tokens(texts, NAMES)
    tasks = dict(speech.task_to_id) or (find_tokens(texts, ("transcribe", "translate")) if languages else {})
    if languages and "transcribe" not in tasks:
        raise ModelDirectoryError(
            "generation_config.json has lang_to_id and no task_to_id, and the tokenizer no <|transcribe|>; take both "
            "files from the original model"
        )
    no_speech = find_token(texts, None, "<|nospeech|>")
    return Speech(
        rules=info.seq2seq,
        tokens=TranscriptTokens(texts, end_id=info.eos_token_ids[0], first_timestamp_id=no_timestamps + 1),
        languages=languages,
        tasks=tasks,
        no_timestamps_id=no_timestamps,
        previous_id=find_token(texts, speech.prev_sot_token_id, "<|startofprev|>"),
        no_speech_id=find_token(texts, None, "<|nocaptions|>") if no_speech is None else no_speech,
    )


def find_token(texts: TokenTexts, given: int | None, name: str) -> int | None:
    return texts.find_id(name) if given is None else given


def find_tokens(texts: TokenTexts, names: Sequence[str] | Mapping[str, str]) -> dict[str, int]:
    found = {name: texts.find_id(f"<|{name}|>") for name in names}
    return {name: token_id for name, token_id in found.items() if token_id is not None}
