"""How a model that judges is asked about a query and a document: by its own chat template, which knows these two roles,
or in the words of Qwen3-Reranker (Zhang et al., 2025), whose directory has no such template.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from models.info import ModelInfo
from models.keys import ModelDirectoryError
from server.errors import InvalidField
from server.text.chat_template import Chat, ChatTemplate
from server.text.prompts import find_default
from server.text.tokenizer import Tokenizer
from server.wire.job import TokenArray

ROLES = ("query", "document")
"""Of messages, as sentence-transformers 6 calls them."""
QUERY, DOCUMENT = MARKS = ("\ue000query\ue001", "\ue000document\ue001")
"""Stand for them while the template is rendered. Characters for private use, which texts do not have."""

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@dataclass(frozen=True, slots=True)
class Wording:
    """`template` None: Qwen3-Reranker's. `prompt`: the system's message, or Qwen3-Reranker's instruction; empty: none,
    or the usual one. `is_structured`: contents are lists of parts. `opens_answer`: the question ends where the answer
    begins."""

    template: ChatTemplate | None
    prompt: str
    is_structured: bool
    opens_answer: bool

    def ask(self, query: str, document: str) -> str:
        """Raises InvalidField where it cannot be rendered."""
        if self.template is None:
            instruction = self.prompt or INSTRUCTION
            return f"{BEFORE}<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}{AFTER}"
        contents = {"system": self.prompt, **dict(zip(ROLES, (query, document), strict=True))}
        messages = tuple(
            {"role": role, "content": [{"type": "text", "text": text}] if self.is_structured else text}
            for role, text in contents.items()
            if text or role in ROLES
        )
        return self.template.render_chat(Chat(messages, add_generation_prompt=self.opens_answer))

    def find_problem(self) -> str:
        """Why pairs cannot be put so; empty where they can. Decided by what is rendered, as sentence-transformers
        does, for templates may hand roles on without naming them."""
        try:
            text = self.ask(*MARKS)
        except InvalidField as error:
            return error.message
        lost = [role for role, mark in zip(ROLES, MARKS, strict=True) if mark not in text]
        if lost:
            return f"the chat template leaves out the content of the role {' and '.join(lost)}, or changes it"
        return "the chat template repeats the document" if text.count(DOCUMENT) > 1 else ""


class Frame(NamedTuple):
    """What stands before a document, and between it and the ending."""

    before: str
    between: str


@dataclass(frozen=True, slots=True)
class Judge:
    """`ending`: what stands behind query and document, whatever they are, and `ending_ids` its tokens."""

    wording: Wording
    ending: str
    ending_ids: TokenArray

    def frame(self, query: str) -> Frame:
        """Raises InvalidField."""
        before, mark, after = self.wording.ask(query, DOCUMENT).partition(DOCUMENT)
        if not mark or not after.endswith(self.ending):
            raise InvalidField("the model's chat template puts this query in another way than others", param="query")
        return Frame(before, after.removesuffix(self.ending))


def build_judge(info: ModelInfo, tokenizer: Tokenizer) -> Judge | None:
    """None where pairs are read as they are. Raises ModelDirectoryError where the template does not carry them, or no
    input is long enough for it."""
    if not info.question_format:
        return None
    is_structured = info.question_format == "structured"
    wording = Wording(tokenizer.chat_template, find_default(info).text, is_structured, info.opens_answer)
    problem = wording.find_problem()
    if problem and info.question_format != "qwen3":
        raise ModelDirectoryError(
            f"this model is asked about pairs by its chat template, and {problem}. Correct chat_template.jinja"
        )
    wording = replace(wording, template=None) if problem else wording
    text = wording.ask(*MARKS)
    ending = text[max(text.rfind(mark) + len(mark) for mark in MARKS) :]
    num_tokens = len(tokenizer.list_ids(wording.ask("", "")))
    if num_tokens >= tokenizer.max_input_tokens:
        raise ModelDirectoryError(
            f"what this model is asked about pairs has {num_tokens} tokens without them, and an input may have "
            f"{tokenizer.max_input_tokens}; raise limits.max_input_tokens"
        )
    return Judge(wording, ending, np.array(tokenizer.list_ids(ending), np.int32))
