"""Kinds of fields that several protocols have. Every list and every text of a schema has a bound, be it in itself or by
what is made of it; lists stop at their first error, for an error costs a hundred times what an item does.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, field_validator

from server.text.inputs import Input
from server.text.work import Truncation

MAX_NAME_CHARS, MAX_LABEL_CHARS = 4096, 1024
MAX_LIST = 65_536
"""A call's inputs; how many of them a model takes is configured."""
MAX_OPTIONS = 64
"""Members of an object that has few."""

ModelName = Annotated[str, Field(max_length=MAX_NAME_CHARS)]
Label = Annotated[str, Field(max_length=MAX_LABEL_CHARS)]
"""What clients send along for themselves."""
Texts = Annotated[list[str], Field(fail_fast=True, max_length=MAX_LIST)]
TokenIds = Annotated[list[StrictInt], Field(fail_fast=True)]
"""As many as the body may hold."""
TokenLists = Annotated[list[TokenIds], Field(fail_fast=True, max_length=MAX_LIST)]
TextsOrIds = Annotated[
    str | Texts | TokenIds | TokenLists,
    Field(
        union_mode="left_to_right",
        description="a text, a list of texts, a list of token ids, or a list of lists of token ids",
    ),
]
Options = Annotated[dict[str, Any], Field(max_length=MAX_OPTIONS)]
Priority = Annotated[
    Annotated[StrictInt, Field(ge=-(2**31), lt=2**31)] | None,
    Field(description="Lower is earlier; 0 if absent. Where the server allows it."),
]


class TruncationFields(BaseModel):
    """What happens to long inputs."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    truncate: StrictBool | None = Field(None, description="What the server's configuration says if absent.")
    truncation_direction: Literal["left", "right"] = Field(
        "right", description="The end that is cut off; `Left` and `Right` are understood as well."
    )

    @field_validator("truncation_direction", mode="before")
    @classmethod
    def lower(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    def choose_truncation(self, configured: Truncation) -> Truncation:
        """The request's word, else the server's."""
        if self.truncate is None:
            return configured
        return self.truncation_direction if self.truncate else "error"


def list_inputs(given: str | list[Any]) -> list[Input]:
    """One entry per sequence of `TextsOrIds`."""
    return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
