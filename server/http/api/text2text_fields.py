"""What routes of encoder-decoders take alike: how answers are found."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

from server.http.api.fields import ModelName, Priority
from server.http.api.generation_fields import Count, Factor, LengthPenalty, Sequences, Temperature
from server.tasks.text2text import MAX_NGRAM, DecodingWish

CoveragePenalty = Annotated[float, Field(strict=True, ge=0, le=10)]


class DecodingFields(BaseModel):
    """How answers are found. What is absent is as the model's directory says."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: ModelName | None = Field(None, description="Needed only where several models write answers.")
    n: Sequences | None = Field(None, description="The best answers to each text; 1 if absent.")
    beam_width: Sequences | None = Field(None, description="1: the most probable token each time.")
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    min_tokens: Count | None = None
    length_penalty: LengthPenalty | None = Field(
        None, description="Scores are divided by the answer's length to this power."
    )
    beam_groups: Sequences | None = Field(
        None, description="So many groups of beams, each of which keeps out of the way of those before it."
    )
    diversity_penalty: Annotated[float, Field(strict=True, ge=0, le=100, allow_inf_nan=False)] | None = Field(
        None, description="With beam_groups: what a token loses for each beam before that has just chosen it."
    )
    coverage_penalty: CoveragePenalty | None = Field(
        None, description="Of a search, for models that are configured for it: scores get this times the coverage."
    )
    early_stopping: StrictBool | Literal["never"] | None = None
    repetition_penalty: Factor | None = None
    no_repeat_ngram_size: Annotated[StrictInt, Field(ge=0, le=MAX_NGRAM)] | None = None
    temperature: Temperature | None = Field(None, description="Over 0: tokens are drawn.")
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: StrictBool | None = Field(
        None, description="Events, a sentence of an answer each, or a whole one where texts are not split."
    )
    priority: Priority = None

    @property
    def num_answers(self) -> int:
        return self.n or 1

    def wish(self) -> DecodingWish:
        return DecodingWish(
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            num_answers=self.num_answers,
            beam_width=self.beam_width,
            length_penalty=self.length_penalty,
            coverage_penalty=self.coverage_penalty or 0.0,
            beam_groups=self.beam_groups or 1,
            diversity_penalty=self.diversity_penalty or 0.0,
            early_stopping=self.early_stopping,
            temperature=self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=self.no_repeat_ngram_size,
        )
