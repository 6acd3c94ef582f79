"""OpenAI's chat completions: the model's template makes a prompt of the messages, and the answer is the next one."""

from functools import partial
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt
from pydantic.config import JsonDict

from server.errors import InvalidField
from server.http.answers import Answer
from server.http.api.generation_fields import MAX_LOGPROBS, GenerationFields
from server.http.api.generation_params import build_params, build_rules
from server.http.api.logprobs import format_objects
from server.http.api.messages import MAX_MESSAGES, ROLES, read_messages
from server.http.api.openai_errors import render_error
from server.http.api.openai_generation import Choice, Choices, Envelope, generate
from server.http.api.openai_schemas import EVENT_STREAM, ChatReply, ErrorReply
from server.http.body import parse_body
from server.http.call import Call, Reply
from server.http.endpoint import TextJob
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.http.text_generation import TextGeneration
from server.tasks.generate import TASK, GenerationWish
from server.text.chat_template import Chat
from server.text.text_stream import Delta

MESSAGE: JsonDict = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {"description": "A text, or a list of parts of type text."},
    },
    "examples": [{"role": "user", "content": "Once upon a time"}],
}


class ChatRequest(GenerationFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True, max_length=MAX_MESSAGES)] = Field(
        description="a list of objects with role and content", json_schema_extra={"items": MESSAGE}
    )
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="The old name of max_completion_tokens."
    )
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = Field(
        None, description="What is left of the context if absent."
    )
    chat_template: str | None = Field(None, description="One of the model's templates, by its name.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="an object: further variables for the template, such as enable_thinking"
    )
    add_generation_prompt: StrictBool | None = Field(
        None, description="The prompt ends with what makes the assistant speak; true, unless it goes on, if absent."
    )
    continue_final_message: StrictBool | None = Field(
        None, description="The answer goes on with the last message instead of beginning a new one."
    )
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None


async def create_chat_completion(call: Call, state: ServerState) -> Reply | None:
    asked = parse_body(ChatRequest, call.take_body())
    model = state.pick_model(asked.model, TASK)
    call.model = model.name
    job = build_job(asked, model)
    kind = "chat.completion.chunk" if asked.stream else "chat.completion"

    async def make_choices(generation: TextGeneration) -> Choices:
        return ChatChoices(asked, model)

    return await generate(
        *(call, state, model, asked, job),
        rules=build_rules(asked, model),
        make_choices=make_choices,
        envelope=Envelope("chatcmpl", kind, model.name),
    )


def build_job(asked: ChatRequest, model: ServedModel) -> TextJob:
    """Raises InvalidField and its kinds."""
    check_tools(asked)
    chat = read_chat(asked, model)
    if asked.top_logprobs is not None and not asked.logprobs:
        raise InvalidField("top_logprobs needs logprobs; set logprobs to true or leave it out", param="top_logprobs")
    params = build_params(asked, model, num_logprobs=(asked.top_logprobs or 0) if asked.logprobs else -1)
    context = model.tokenizer.max_input_tokens
    bad_words, min_tokens = tuple(asked.bad_words or ()), asked.min_tokens or 0
    wish = GenerationWish(params, choose_max_tokens(asked), context, bad_words, min_tokens, "top_logprobs")
    return TextJob(
        TASK,
        [chat],
        "messages",
        settle=partial(wish.settle, tokenizer=model.tokenizer, field="messages"),
        num_answers=params.num_sequences,
        num_sequences=params.num_rows,
        num_answer_tokens=wish.most_tokens,
        priority=asked.priority or 0,
    )


def read_chat(asked: ChatRequest, model: ServedModel) -> Chat:
    """The server's own variables for the template, and the request's over them. Raises InvalidField and its kinds."""
    messages = read_messages(asked.messages)
    model.tokenizer.chat_template.find(asked.chat_template)
    is_continued = bool(asked.continue_final_message)
    return Chat(
        tuple(messages),
        {**model.config.chat.template_kwargs, **(asked.chat_template_kwargs or {})},
        add_generation_prompt=not is_continued if asked.add_generation_prompt is None else asked.add_generation_prompt,
        continue_final_message=is_continued,
        template=asked.chat_template,
    )


def check_tools(asked: ChatRequest) -> None:
    """Raises InvalidField."""
    for name in ("tools", "functions"):
        if getattr(asked, name):
            raise InvalidField(f"{name} are not supported; leave {name} out", param=name)
    for name in ("tool_choice", "function_call"):
        if getattr(asked, name) not in (None, "none"):
            raise InvalidField(f"{name} must be 'none': tools are not supported; leave it out", param=name)


def choose_max_tokens(asked: ChatRequest) -> int | None:
    """Under either name. Raises InvalidField."""
    new, old = asked.max_completion_tokens, asked.max_tokens
    if new is not None and old is not None and new != old:
        raise InvalidField(
            f"max_completion_tokens is {new} and max_tokens, its old name, is {old}; leave one of them out",
            param="max_completion_tokens",
        )
    return old if new is None else new


class ChatChoices:
    """Writes choices. Mutable: which of them have begun in a stream."""

    def __init__(self, asked: ChatRequest, model: ServedModel) -> None:
        self._texts = model.tokenizer.texts
        self._has_logprobs = bool(asked.logprobs)
        self._has_token_ids = bool(asked.return_token_ids)
        self._begun: set[int] = set()

    def tells(self, delta: Delta) -> bool:
        return delta.index not in self._begun or self._has_news(delta) or bool(delta.finish_reason)

    def _has_news(self, delta: Delta) -> bool:
        return bool(delta.text or (delta.tokens and (self._has_logprobs or self._has_token_ids)))

    async def list_chunks(self, delta: Delta) -> list[Choice]:
        chunks = []
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            chunks.append(self._build_chunk(delta.index, {"role": "assistant", "content": ""}))
        if self._has_news(delta):
            chunk = self._build_chunk(delta.index, {"content": delta.text})
            if self._has_logprobs:
                chunk["logprobs"] = format_objects(delta.tokens, self._texts)
            if self._has_token_ids:
                chunk["token_ids"] = [token.token_id for token in delta.tokens]
            chunks.append(chunk)
        if delta.finish_reason:
            chunks.append(self._build_chunk(delta.index, {}) | {"finish_reason": delta.finish_reason})
        return chunks

    def _build_chunk(self, index: int, delta: dict[str, str]) -> Choice:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def describe(self, index: int, answer: Answer) -> Choice:
        choice: Choice = {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": format_objects(answer.tokens, self._texts) if self._has_logprobs else None,
            "finish_reason": answer.finish_reason,
        }
        if self._has_token_ids:
            choice["token_ids"] = [token.token_id for token in answer.tokens]
        return choice


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        create_chat_completion,
        render_error,
        "Answer a chat",
        "openai",
        schema=ChatRequest.model_json_schema(),
        reply=ChatReply,
        other_replies=EVENT_STREAM,
        error_reply=ErrorReply,
        deadline="generation",
    ),
)
