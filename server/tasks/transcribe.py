"""Speech to text: a decoder writes down what an encoder has heard in a window of sound."""

from collections.abc import Iterator, Sequence

from models.info import ModelInfo
from server.audio.speech import Speech
from server.config import ConfigError, ModelConfig
from server.tasks.generate import describe_graph, reduce
from server.tasks.head import Example, Head, Work, refuse_pooling
from server.tasks.task import Task
from server.wire.generation import GenerationParams
from server.wire.processors import AllowedTokens, Processor, SuppressedAtBegin, SuppressedTokens, Timestamps


def settle_params(speech: Speech, prompt: Sequence[int], temperature: float, seed: int) -> GenerationParams:
    """Of one attempt at a window. The same seed hears the same, so that one file has one transcript."""
    return GenerationParams(
        max_tokens=count_most_tokens(speech, prompt),
        temperature=temperature,
        seed=seed,
        num_logprobs=0,
        processors=tuple(list_processors(speech)),
        stop_token_ids=(speech.tokens.end_id,),
        probe=None if speech.no_speech_id is None else (speech.find_start(prompt), speech.no_speech_id),
    )


def count_most_tokens(speech: Speech, prompt: Sequence[int]) -> int:
    """That a window may say: as many as there is room for, or as the directory allows."""
    rules = speech.rules
    most = speech.max_tokens if rules.max_length is None else min(speech.max_tokens, rules.max_length - 1)
    return min(most, rules.max_target_tokens - len(prompt))


def list_processors(speech: Speech) -> Iterator[Processor]:
    rules = speech.rules
    if rules.suppress_tokens:
        yield SuppressedTokens(rules.suppress_tokens)
    if rules.begin_suppress_tokens:
        yield SuppressedAtBegin(rules.begin_suppress_tokens)
    assert rules.speech is not None
    yield Timestamps(
        speech.tokens.first_timestamp_id,
        speech.no_timestamps_id,
        speech.tokens.end_id,
        rules.speech.max_initial_timestamp_index,
    )


def ask_language(speech: Speech) -> GenerationParams:
    """The most probable one, right behind `<|startoftranscript|>`."""
    processors = (AllowedTokens(tuple(sorted(speech.languages.values()))),)
    return GenerationParams(max_tokens=1, temperature=0.0, processors=processors)


def ask_alignment(prompt: Sequence[int]) -> GenerationParams:
    """Of a window and what it says: nothing is written, and what its tokens behind the prompt look at is told."""
    return GenerationParams(max_tokens=0, align_from=len(prompt))


def check_config(model: ModelConfig) -> None:
    refuse_pooling(model, "embeddings, and this model writes down what it hears")
    if model.limits.truncation != "error":
        raise ConfigError(
            f"model {model.name}: limits.truncation is for texts, and this model hears sound of any length, up to "
            "limits.max_audio_s. Leave it out"
        )


def describe_output(info: ModelInfo) -> str:
    """Of each window."""
    assert info.seq2seq is not None
    return f"transcripts of up to {info.seq2seq.max_target_tokens // 2} tokens for each window"


def make_example(info: ModelInfo, name: str, has_tokenizer: bool, has_chat_template: bool) -> Example:
    return Example("/v1/audio/transcriptions", {"model": name, "file": "@speech.wav"}, is_form=True)


HEAD = Head("transcribe", Work.ENCODE_DECODE, check_config, describe_graph, describe_output, make_example)
TASK = Task(
    name="transcribe",
    heads=("transcribe",),
    params=GenerationParams,
    routes=("POST /v1/audio/transcriptions", "POST /v1/audio/translations"),
    reduce=reduce,
)
