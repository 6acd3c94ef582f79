"""Fields that the bodies of all of vLLM's pooling routes may have (its PoolingBasicRequestMixin)."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from server.errors import InvalidField
from server.http.api.fields import Label, Priority
from server.http.state import ServedModel
from server.text.work import Truncation


class PoolingFields(BaseModel):
    """Beside what a route pools."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    truncate_prompt_tokens: Annotated[StrictInt, Field(ge=-1, lt=2**31)] | None = Field(
        None, description="Cut longer inputs to so many tokens; -1: to as many as the model takes."
    )
    truncation_side: Literal["left", "right"] | None = Field(
        None, description="The end that is then cut off; what the server's configuration says if absent, or right."
    )
    priority: Priority = None
    request_id: Label | None = Field(None, description="As the header x-request-id, which goes before.")
    user: Label | None = None

    def limit_inputs(self, model: ServedModel) -> tuple[Truncation, int | None]:
        """What happens to inputs of more than so many tokens; None: than the model takes. Raises InvalidField."""
        truncation, num_tokens = self.limit_pairs(model)
        return truncation or model.config.limits.truncation, num_tokens

    def limit_pairs(self, model: ServedModel) -> tuple[Truncation | None, int | None]:
        """The same of queries and documents, together where the model reads pairs; no truncation: as it is configured.

        Raises InvalidField.
        """
        num_tokens, most = self.truncate_prompt_tokens, model.tokenizer.max_input_tokens
        if num_tokens is None:
            return None, None
        if num_tokens == 0 or num_tokens > most:
            raise InvalidField(
                f"truncate_prompt_tokens is {num_tokens}; it must be -1, for all that the model takes, or from 1 to "
                f"{most}",
                param="truncate_prompt_tokens",
            )
        return self.choose_side(model), None if num_tokens == -1 else num_tokens

    def choose_side(self, model: ServedModel) -> Truncation | None:
        """Of what is cut; None: as it is configured."""
        return self.truncation_side or ("right" if model.config.limits.truncation == "error" else None)
