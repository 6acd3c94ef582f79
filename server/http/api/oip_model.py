"""The Open Inference Protocol v2, whatever carries it: what models take and give, what is asked of them, and the answer
as arrays. `oip` is REST, `oip_rpc` gRPC.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from server.errors import InvalidField, UnknownModel, Unservable
from server.http.api.fields import Label, Options
from server.http.api.oip_outputs import Kept, Rows, Wanted, describe_dims, find_outputs, pick_outputs
from server.http.api.oip_tensors import Given, InputTensor, read_numbers, read_texts
from server.http.call import Call
from server.http.endpoint import TextJob, check_places, describe_statuses, run_job
from server.http.replies import INLINE_NUMBERS
from server.http.state import ServedModel, ServerState
from server.tasks import infer
from server.text.inputs import Input
from server.text.prompts import find_default
from server.wire.job import TokenSequence

EXTENSIONS = ("model_configuration", "model_repository", "schedule_policy", "statistics")
"""Of both; REST has `binary_tensor_data` as well."""
VERSION = "1"
"""Of every model: there are no others."""
PLATFORM = "padless"
IDS, MASK, TYPES, TEXT = "input_ids", "attention_mask", "token_type_ids", "text"
MAX_PRIORITY = 1_000_000
MAX_TIMEOUT_US = 86_400_000_000
EXAMPLE = {"name": TEXT, "shape": [1], "datatype": "BYTES", "data": ["Hello, world"]}


class OutputWish(BaseModel):
    model_config = ConfigDict(extra="ignore")

    name: Label
    parameters: Options | None = None


class InferRequest(BaseModel):
    """Body of `POST /v2/models/{name}/infer`."""

    model_config = ConfigDict(extra="ignore")

    id: Label | None = None
    parameters: Annotated[
        Options | None,
        Field(
            description="an object; `timeout`, in microseconds, limits the request's time, and of `priority` 1 is the "
            "most urgent"
        ),
    ] = None
    inputs: Annotated[
        list[InputTensor],
        Field(
            max_length=3,
            examples=[[EXAMPLE]],
            description="`text` of BYTES; or `input_ids` [n, width] with `attention_mask`, whose zeros are padding, "
            "and `token_type_ids` if need be",
        ),
    ]
    outputs: Annotated[list[OutputWish], Field(max_length=8)] | None = None

    def is_binary(self, name: str) -> bool:
        """Whether an output is wanted behind the JSON: what is said of it counts before what is said of all."""
        wish = next((wish for wish in self.outputs or () if wish.name == name), None)
        said = (wish.parameters or {}).get("binary_data") if wish else None
        return bool((self.parameters or {}).get("binary_data_output") if said is None else said)

    def list_names(self) -> list[str]:
        """Of the outputs that are wanted. Raises InvalidField."""
        for wish in self.outputs or ():
            if (wish.parameters or {}).get("classification"):
                raise InvalidField(
                    f"outputs: classification of {wish.name[:100]!r} is not supported; leave it out, and take the "
                    "largest of the numbers",
                    param="outputs",
                )
        return [wish.name for wish in self.outputs or ()]

    def read_parameter(self, name: str, most: int) -> int:
        """0 where it is not there. Raises InvalidField."""
        value = (self.parameters or {}).get(name, 0)
        if type(value) is not int or not 0 <= value <= most:
            raise InvalidField(
                f"parameters: {name} must be a whole number from 0 to {most}, 0 for none", param="parameters"
            )
        return value


class TensorMetadata(TypedDict):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(TypedDict):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class TensorConfig(TypedDict):
    """`dims`: without the first, which counts the batch's rows."""

    name: str
    data_type: str
    dims: list[int]


class InputConfig(TensorConfig):
    """`optional`: texts and ids take one another's place."""

    optional: bool


class ModelConfig(TypedDict):
    """Of Triton's, what clients read."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[InputConfig]
    output: list[TensorConfig]


class ModelIndex(TypedDict):
    name: str
    version: str
    state: str
    reason: str


def find_model_version(name: str, version: str, state: ServerState) -> ServedModel:
    """`version` may be empty. Raises UnknownModel and its kinds."""
    if version not in ("", VERSION):
        raise UnknownModel(f"model {name[:100]!r} has no version {version[:20]!r}; it has {VERSION}", param="model")
    return state.find_model(name)


def is_ready(model: ServedModel, state: ServerState) -> bool:
    return not state.is_draining and any(status.is_ready for status in model.engine.statuses())


def describe_model(model: ServedModel) -> ModelMetadata:
    outputs = find_outputs(model)
    names = [TensorMetadata(name=name, datatype="INT64", shape=[-1, -1]) for name in (IDS, MASK, TYPES)]
    return {
        "name": model.full_name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": [TensorMetadata(name=TEXT, datatype="BYTES", shape=[-1]), *names],
        "outputs": [
            TensorMetadata(name=name, datatype="FP32", shape=[-1, *describe_dims(spec)])
            for name, spec in outputs.items()
        ],
    }


def configure_model(model: ServedModel) -> ModelConfig:
    """As Triton tells it. BYTES have a dimension there, of one text a row; here any shape will do."""
    outputs = find_outputs(model)
    ids: list[InputConfig] = [
        {"name": name, "data_type": "TYPE_INT64", "dims": [-1], "optional": True} for name in (IDS, MASK, TYPES)
    ]
    return {
        "name": model.full_name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": model.config.limits.max_client_batch_size,
        "input": [{"name": TEXT, "data_type": "TYPE_STRING", "dims": [1], "optional": True}, *ids],
        "output": [
            {"name": name, "data_type": "TYPE_FP32", "dims": describe_dims(spec)} for name, spec in outputs.items()
        ],
    }


def list_models(state: ServerState, *, only_ready: bool) -> list[ModelIndex]:
    """And the heads that were configured for them."""
    found: list[ModelIndex] = []
    for model in state.models.values():
        ready = is_ready(model, state)
        reason = "" if ready else describe_statuses(model.engine.statuses())
        name = "READY" if ready else "UNAVAILABLE"
        if ready or not only_ready:
            names = [head.full_name for head in model.heads if head.is_listed]
            found += [{"name": each, "version": VERSION, "state": name, "reason": reason} for each in names]
    return found


def refuse_loading() -> Unservable:
    return Unservable(
        "models cannot be loaded or unloaded here: they are those of the server's configuration. Change it and start "
        "the server again",
        param="model",
    )


async def infer_rows(call: Call, model: ServedModel, asked: InferRequest, parts: Sequence[Given]) -> dict[str, Rows]:
    """float32, of each output that is wanted. `parts`: each input's values, None where they are its `data`.

    Raises ServiceError's kinds.
    """
    outputs = pick_outputs(asked.list_names(), find_outputs(model))
    timeout_us = asked.read_parameter("timeout", MAX_TIMEOUT_US)
    if timeout_us:
        call.shorten_deadline(timeout_us / 1e6)
    priority = asked.read_parameter("priority", MAX_PRIORITY)
    inputs, kept = list_inputs(asked.inputs, parts, model)
    wanted = Wanted(model, outputs, kept)
    job = TextJob(
        *(infer.TASK, inputs, "inputs"),
        outputs={name: name for name in outputs},
        settle=wanted.settle,
        list_rows=wanted.list_rows,
        prompt=find_default(model.info),
        truncation=model.config.limits.truncation,
        priority=priority and priority - MAX_PRIORITY - 1,  # those that have one go before those that have none
    )
    found = await run_job(call, model, job)
    fill = partial(wanted.fill, found)
    is_short = sum(array.values.size for array in found.values()) <= INLINE_NUMBERS
    return fill() if is_short else await model.tokenizer.run(fill)


def list_inputs(
    tensors: Sequence[InputTensor], parts: Sequence[Given], model: ServedModel
) -> tuple[Sequence[Input], Kept | None]:
    """One for each row, and of ids which are kept. A tensor without elements may say any number of rows, so they are
    counted before they are made.

    Raises InvalidField, EmptyInput.
    """
    named = {tensor.name: (tensor, part) for tensor, part in zip(tensors, parts, strict=True)}
    unknown = named.keys() - {IDS, MASK, TYPES, TEXT}
    if unknown or len(named) < len(tensors) or (TEXT in named) == (IDS in named) or (TEXT in named and len(named) > 1):
        raise InvalidField(
            f"inputs must be {TEXT!r} alone, or {IDS!r} and, each at most once, {MASK!r} and {TYPES!r}", param="inputs"
        )
    check_places(count_rows(tensors), model, "inputs")
    if TEXT in named:
        return read_texts(*named[TEXT]), None
    return list_rows({name: np.atleast_2d(read_numbers(*given)) for name, given in named.items()})


def count_rows(tensors: Sequence[InputTensor]) -> int:
    """By their shapes: of texts any, of ids [n, width] or [width]."""
    return max(
        tensor.num_elements if tensor.name == TEXT else tensor.shape[0] if len(tensor.shape) > 1 else 1
        for tensor in tensors
    )


def list_rows(arrays: Mapping[str, npt.NDArray[np.int64]]) -> tuple[list[TokenSequence], Kept]:
    """Rows without their padding, and where that is not. Raises InvalidField."""
    ids = arrays[IDS]
    if ids.ndim != 2 or any(array.shape != ids.shape for array in arrays.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidField(f"inputs must have one shape of two dimensions; they have {shapes}", param="inputs")
    keeps = arrays[MASK] != 0 if MASK in arrays else np.ones(ids.shape, np.bool_)
    types = arrays.get(TYPES)
    rows = [
        TokenSequence(ids[row][keep], None if types is None else types[row][keep]) for row, keep in enumerate(keeps)
    ]
    return rows, keeps
