"""OpenAI's `/v1/audio/transcriptions` and `/v1/audio/translations`: sound files to text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from server.audio.hearing import Heard, Hearing
from server.audio.segments import Segment, Transcript
from server.audio.speech import Speech, SpeechTask
from server.audio.transcriber import TranscriptWish
from server.http.api.openai_audio_reply import PLAIN, VTT, write_delta, write_done, write_transcript
from server.http.api.openai_audio_request import AudioRequest, read_request
from server.http.api.openai_errors import render_error
from server.http.api.openai_schemas import EVENT_STREAM, ErrorReply, TranscriptionReply
from server.http.call import Call, Reply
from server.http.endpoint import take_places
from server.http.events import EventStream
from server.http.multipart import FORM, UploadedFile, describe_form, parse_form, read_form_body
from server.http.route import Answer, Route
from server.http.state import ServedModel, ServerState
from server.http.transcription import FIELD, Transcription
from server.tasks.transcribe import TASK
from server.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Dictation:
    """A transcript under way."""

    transcription: Transcription
    wish: TranscriptWish

    def finish(self, segments: Sequence[Segment]) -> Transcript:
        return Transcript(self.wish.language, self.transcription.heard.duration_s, tuple(segments))


async def transcribe_audio(call: Call, state: ServerState) -> Reply | None:
    return await answer(call, state, "transcribe")


async def translate_audio(call: Call, state: ServerState) -> Reply | None:
    return await answer(call, state, "translate")


async def answer(call: Call, state: ServerState, task: SpeechTask) -> Reply | None:
    asked = read_request(await parse_form(call))
    model = state.pick_model(asked.model, TASK)
    call.model = model.name
    place = take_places(call, model, 1)
    try:
        dictation = await begin(call, state, model, asked, task)
        if asked.stream:
            await stream(call, state, dictation)
            return None
        segments = [segment async for found in dictation.transcription.read(dictation.wish) for segment in found]
        transcript = dictation.finish(segments)
        return await model.tokenizer.run(partial(write_transcript, transcript, asked, task=task))
    finally:
        place.release()


async def begin(call: Call, state: ServerState, model: ServedModel, asked: AudioRequest, task: SpeechTask) -> Dictation:
    """Whatever can be wrong with the request is found here. Raises ServiceError's kinds."""
    hearing = model.hearing
    assert hearing is not None, "Every model that transcribes has it. This is a bug."
    hearing.speech.check_task(task)
    if asked.has_words:
        hearing.speech.check_words()
    language = hearing.speech.find_language(asked.language) if asked.language else ""
    prompt_ids = await read_prompt(asked.prompt or "", model.tokenizer, hearing.speech)
    heard = await hear(call, hearing, asked)
    metrics = state.metrics.bind_tokens(route=call.path, model=model.name)
    transcription = Transcription(call, model, hearing, heard, metrics)
    language = language or await transcription.find_language()
    return Dictation(transcription, TranscriptWish(language, task, asked.temperature, prompt_ids, asked.has_words))


async def hear(call: Call, hearing: Hearing, asked: AudioRequest) -> Heard:
    """The file, which is let go. Raises EmptyInput, InputTooLong, InvalidField, Overloaded."""
    assert call.held is not None, "There is a body. This is a bug."
    content, asked.file = asked.file.content, UploadedFile(asked.file.name, b"")
    heard = await hearing.hear(content, FIELD)
    call.held.hold(max(heard.features.nbytes - len(content), 0))
    return heard


async def read_prompt(prompt: str, tokenizer: Tokenizer, speech: Speech) -> tuple[int, ...]:
    """Its last tokens. What looks like a special one in it stands for nothing. Raises InvalidField."""
    if not prompt.strip():
        return ()
    texts = [f" {prompt.strip()}"]
    (found,) = await tokenizer.encode(texts, truncation="left", field="prompt", add_special_tokens=False)
    return tuple(token_id for token_id in found.input_ids.tolist() if token_id < speech.tokens.end_id)


async def stream(call: Call, state: ServerState, dictation: Dictation) -> None:
    """A window's text at a time: until it is certain that a window need not be decoded once more, nothing is said."""
    segments: list[Segment] = []
    async with EventStream(call, state.config.server.sse_ping_s) as events:
        async for found in dictation.transcription.read(dictation.wish):
            text = "".join(segment.text for segment in found)
            if text:
                await events.write(write_delta(text if segments else text.lstrip()))
            segments += found
        await events.write(write_done(dictation.finish(segments)))
        await events.end()


def build_route(path: str, answer_audio: Answer, summary: str) -> Route:
    return Route(
        "POST",
        path,
        answer_audio,
        render_error,
        summary,
        "openai",
        schema=describe_form(AudioRequest),
        reply=TranscriptionReply,
        other_replies={PLAIN: {}, VTT: {}, **EVENT_STREAM},
        error_reply=ErrorReply,
        deadline="generation",
        media_types=(FORM,),
        has_audio=True,
        read_body=read_form_body,
    )


ROUTES = (
    build_route("/v1/audio/transcriptions", transcribe_audio, "Write down speech"),
    build_route("/v1/audio/translations", translate_audio, "Write down speech in English"),
)
