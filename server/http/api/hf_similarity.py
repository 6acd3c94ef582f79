"""Sentence similarity in Hugging Face's payloads: how alike sentences are to another one, by an embedder."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypeIs

from server.errors import InvalidField
from server.http.api.fields import Texts
from server.http.call import Call, Reply, reply_json
from server.http.ranking import Question, SideTexts, score
from server.http.state import ServedModel
from server.text.prompts import Prompt
from server.text.work import Truncation

Comparison = dict[Literal["source_sentence", "sentences"], str | Texts]
Sentences = Annotated[Comparison, Field(min_length=2, max_length=2)]
"""`inputs`: a text, and the list of texts that it is compared with."""


def is_comparison(inputs: object) -> TypeIs[Comparison]:
    return isinstance(inputs, dict) and "sentences" in inputs


async def compare_sentences(
    call: Call, model: ServedModel, inputs: Comparison, prompt: Prompt, truncation: Truncation
) -> Reply:
    """Cosines, in the order of the sentences. Both sides get the same prompt: neither is a query."""
    source, others = inputs["source_sentence"], inputs["sentences"]
    if not isinstance(source, str) or not isinstance(others, list):
        raise InvalidField("inputs: source_sentence must be a text, and sentences a list of texts", param="inputs")
    sides = SideTexts([source], "source_sentence"), SideTexts(others, "sentences")
    question = Question(*sides, truncation, prompts=(prompt, prompt))
    return reply_json((await score(call, model, question)).tolist())
