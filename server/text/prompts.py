"""Prompts: what a model wants to read before every text, as sentence-transformers puts it there, and the adapter of the
same name, if there is one. Knows no HTTP."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from models.info import ModelInfo
from server.errors import InvalidField
from server.text.inputs import Input
from server.text.tokenizer import Tokenizer

ALWAYS_KNOWN = ("query", "document")
"""Names that every model of sentence-transformers has, empty where its directory says nothing of them."""
QUERIES = ("query", "search_query", "retrieval.query")
DOCUMENTS = ("document", "passage", "search_document", "corpus", "retrieval.passage")
INPUT_TYPES: Mapping[str, Sequence[str]] = {
    "query": QUERIES,
    "search_query": QUERIES,
    "document": DOCUMENTS,
    "search_document": DOCUMENTS,
    "passage": DOCUMENTS,
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
}
"""The words of Cohere, Voyage and NIM, and under which names directories have the prompt: a type's own name is looked
for first, and then these in their order. Where they have adapters these are Jina's names."""


class Prompt(NamedTuple):
    """The text to put before each input; `adapter_id`: see `Batch.adapter_ids`."""

    text: str = ""
    adapter_id: int = 0


NO_PROMPT = Prompt()


def choose_prompt(
    info: ModelInfo,
    *,
    text: str | None = None,
    name: str | None = None,
    input_type: str | None = None,
    task: str | None = None,
) -> Prompt:
    """As its text was given, by its name, by what the inputs are, or by the task they are for; else the default.

    Raises InvalidField for `prompt_name`, `input_type`, `task`, and where more than one of them is given.
    """
    given = {"prompt": text, "prompt_name": name, "input_type": input_type, "task": task}
    fields = [field for field, value in given.items() if value is not None]
    if len(fields) > 1:
        raise InvalidField(f"{' and '.join(fields)} choose a prompt each; leave all but one out", param=fields[1])
    if text is not None:
        return Prompt(text)
    if task is not None:
        return find_by_task(info, task)
    if name is not None:
        return find_prompt(info, name)
    if input_type is not None:
        return find_by_type(info, input_type)
    return find_default(info)


def find_default(info: ModelInfo) -> Prompt:
    """Empty where the directory has none."""
    return NO_PROMPT if info.default_prompt_name is None else name_prompt(info, info.default_prompt_name)


def name_prompt(info: ModelInfo, name: str) -> Prompt:
    """With the adapter of the same name."""
    return Prompt(info.prompts.get(name, ""), info.adapters.index(name) + 1 if name in info.adapters else 0)


def find_prompt(info: ModelInfo, name: str) -> Prompt:
    """Raises InvalidField listing the names."""
    names = dict.fromkeys([*info.prompts, *ALWAYS_KNOWN])
    if name not in names:
        raise InvalidField(
            f"prompt_name {name[:50]!r} is not one of this model's; it has {', '.join(names)}", param="prompt_name"
        )
    return name_prompt(info, name)


def find_by_task(info: ModelInfo, task: str) -> Prompt:
    """Raises InvalidField listing the tasks."""
    if task in info.prompts:
        return name_prompt(info, task)
    names = ", ".join(info.prompts)
    known = f"it has {names}" if names else "it has none; leave task out"
    raise InvalidField(f"task {task[:50]!r} is not one of this model's; {known}", param="task")


def find_by_type(info: ModelInfo, input_type: str) -> Prompt:
    """Empty where the directory has no prompt for inputs of this type: the default may be for others.

    Raises InvalidField listing the types.
    """
    if input_type not in INPUT_TYPES and input_type not in info.prompts:
        types = dict.fromkeys([*INPUT_TYPES, *info.prompts])
        raise InvalidField(
            f"input_type {input_type[:50]!r} is not known; there are {', '.join(types)}", param="input_type"
        )
    names = (input_type, *INPUT_TYPES.get(input_type, ()))
    found = next((name for name in names if info.prompts.get(name) or name in info.adapters), input_type)
    return name_prompt(info, found)


async def count_prompt_tokens(tokenizer: Tokenizer, prompt: str, *, add_special_tokens: bool) -> int:
    """How many of a text's tokens are its prompt's, special ones before it included. It must not be empty.

    As Transformer._get_prompt_length of sentence-transformers 6: the prompt by itself, without what ends it.
    """
    (sequence,) = await tokenizer.encode(
        [prompt], truncation="right", field="prompt", add_special_tokens=add_special_tokens
    )
    return sequence.num_tokens - tokenizer.texts.is_special(int(sequence.input_ids[-1]))


def put_before(prompt: str, inputs: Sequence[Input]) -> Sequence[Input]:
    """The inputs with the prompt before texts and before the first text of pairs, and nothing between them.

    Token ids are the client's own, and what is empty stays so.
    """
    return [put_before_one(prompt, item) for item in inputs] if prompt else inputs


def put_before_one(prompt: str, item: Input) -> Input:
    if isinstance(item, str):
        return prompt + item if item else item
    if isinstance(item, tuple) and any(item):
        return (prompt + item[0], item[1])
    return item
