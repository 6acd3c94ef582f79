"""Hugging Face's inference payloads: what all models' have in common."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, StrictBool, StrictInt

from server.errors import InvalidField
from server.http.api.fields import MAX_LIST, Label, ModelName, Options, Texts, TruncationFields
from server.http.api.hf_similarity import Sentences, is_comparison
from server.http.body import check_object
from server.http.replies import join_list
from server.text.inputs import Text

MAX_LABELS = 1024

Labels = Annotated[list[Label], Field(fail_fast=True, max_length=MAX_LABELS)]
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True, max_length=MAX_LIST)]
TextPair = Annotated[dict[Literal["text", "text_pair"], str], Field(min_length=2, max_length=2)]
"""A text and the one it is classified with."""
Question = Annotated[dict[Literal["question", "context"], str], Field(min_length=2, max_length=2)]
"""And the text that answers it."""
Schema = TypeVar("Schema", bound=BaseModel)


class FeatureExtraction(TruncationFields):
    """Parameters for embedders."""

    normalize: StrictBool | None = None
    prompt_name: ModelName | None = None
    dimensions: Annotated[StrictInt, Field(ge=1, le=MAX_LIST)] | None = None
    encoding_format: Literal["float"] | None = None


class InferenceRequest(FeatureExtraction):
    """Body of `POST /models/{name}` and `POST /`; parameters of feature extraction may also stand beside `inputs`."""

    inputs: Annotated[
        str | TextPair | Question | Sentences | Texts | Many[TextPair] | Many[Question],
        Field(
            union_mode="left_to_right",
            description="a text or a list of texts; for text classification also {text, text_pair} or a list of those; "
            "for question answering {question, context} or a list of those; for embedders also {source_sentence, "
            "sentences}, which are compared",
        ),
    ]
    parameters: Options | None = Field(
        None,
        description="Of token classification: aggregation_strategy, ignore_labels, stride. Of text classification: "
        "top_k, function_to_apply. Of zero-shot classification: candidate_labels, multi_label, hypothesis_template. "
        "Of fill-mask: top_k, targets. Of question answering: top_k, doc_stride, max_answer_len, max_question_len, "
        "max_seq_len, handle_impossible_answer, align_to_words. Of translation, summarization, text2text-generation: "
        "src_lang, tgt_lang, max_new_tokens, max_length, min_new_tokens, min_length, num_beams, num_return_sequences, "
        "length_penalty, early_stopping, do_sample, temperature, top_k, top_p, seed, repetition_penalty, "
        "no_repeat_ngram_size, clean_up_tokenization_spaces, truncation, generate_parameters (more of them). "
        "Of feature extraction: those that may also stand beside inputs.",
    )
    options: Options | None = Field(None, description="Understood, and of no effect.")
    model: ModelName | None = Field(None, description="For `POST /`, where several models are served.")

    def list_texts(self) -> list[str]:
        """Raises InvalidField where there are pairs."""
        texts = [item for item in self.list_all() if isinstance(item, str)]
        self.check_all(texts, "a text or a list of texts")
        return texts

    def list_inputs(self) -> list[Text]:
        """Texts and pairs. Raises InvalidField where there are questions, or sentences to compare."""
        if is_comparison(self.inputs):
            raise InvalidField("inputs with source_sentence and sentences are for embedders", param="inputs")
        found: list[Text] = []
        for item in self.list_all():
            if isinstance(item, str):
                found.append(item)
            elif "text" in item:
                found.append((item["text"], item["text_pair"]))
        self.check_all(found, "a text, {text, text_pair} or a list of those")
        return found

    def list_questions(self) -> list[tuple[str, str]]:
        """With their contexts. Raises InvalidField where there is anything else."""
        items = [item for item in self.list_all() if not isinstance(item, str) and "question" in item]
        self.check_all(items, "{question, context} or a list of those")
        return [(item["question"], item["context"]) for item in items]

    def list_all(self) -> Sequence[str | dict[Any, Any]]:
        return [self.inputs] if isinstance(self.inputs, str | dict) else self.inputs

    def check_all(self, taken: Sequence[object], wanted: str) -> None:
        """Raises InvalidField where something is left."""
        if len(taken) < len(self.list_all()):
            raise InvalidField(f"inputs must be {wanted} for this model", param="inputs")

    def unwrap(self, answers: list[Any]) -> Any:
        """What a client gets that has not sent a list."""
        return answers if isinstance(self.inputs, list) else answers[0]

    def join(self, answers: list[bytes]) -> bytes:
        """The same of JSON values."""
        return join_list(answers) if isinstance(self.inputs, list) else answers[0]


def read_parameters(schema: type[Schema], given: dict[str, Any] | None) -> Schema:
    """What is null is not said. Raises InvalidField naming the parameter."""
    return check_object(schema, {name: value for name, value in (given or {}).items() if value is not None})
