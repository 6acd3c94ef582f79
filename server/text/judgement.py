"""How a language model that judges is asked about a query and a document: by its own chat template, which knows these
two roles, or in the words of Qwen3-Reranker (Zhang et al., 2025), whose directory has no such template.
"""

from server.errors import InvalidField
from server.text.chat_template import Chat, ChatTemplate

ROLES = ("query", "document")
"""Of messages, as sentence-transformers 6 calls them."""
MARK = "\ue000document\ue001"
"""Stands for the document while the template is rendered. Characters for private use, which texts do not have."""

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def frame(template: ChatTemplate, query: str, *, opens_answer: bool) -> tuple[str, str]:
    """What stands before a document, and behind it. `opens_answer`: the template is to end where the answer begins.

    Raises InvalidField where it cannot be rendered.
    """
    if not all(f'"{role}"' in template.source or f"'{role}'" in template.source for role in ROLES):
        return f"{BEFORE}<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: ", AFTER
    messages = ({"role": "query", "content": query}, {"role": "document", "content": MARK})
    text = template.render_chat(Chat(messages, add_generation_prompt=opens_answer))
    before, mark, after = text.partition(MARK)
    if not mark:
        raise InvalidField("the model's chat template leaves the document out of the question", param="model")
    return before, after
