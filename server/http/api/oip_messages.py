"""The messages of the Open Inference Protocol's `inference.GRPCInferenceService`, with the fields that are used here.

Numbers and names are the protocol's (KServe's open-inference-protocol, and Triton's for its extensions); fields that
are left out are skipped where they come in.
"""

from dataclasses import dataclass

from server.http.protobuf import (
    BOOL,
    BYTES,
    DOUBLE,
    ENUM,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT32,
    UINT64,
    Message,
    Numbers,
    optional,
    repeated,
    scalar,
)


@dataclass(slots=True, eq=False)
class Nothing(Message):
    """Of ServerLive, ServerReady and ServerMetadata."""


@dataclass(slots=True, eq=False)
class NamedModel(Message):
    """Of ModelReady, ModelMetadata, ModelConfig and ModelStatistics."""

    name: str = scalar(1, STRING)
    version: str = scalar(2, STRING)


@dataclass(slots=True, eq=False)
class Truth(Message):
    """Of ServerLive, ServerReady and ModelReady."""

    is_true: bool = scalar(1, BOOL)


@dataclass(slots=True, eq=False)
class ServerMetadata(Message):
    name: str = scalar(1, STRING)
    version: str = scalar(2, STRING)
    extensions: list[str] = repeated(3, STRING)


@dataclass(slots=True, eq=False)
class TensorMetadata(Message):
    name: str = scalar(1, STRING)
    datatype: str = scalar(2, STRING)
    shape: Numbers = repeated(3, INT64)


@dataclass(slots=True, eq=False)
class ModelMetadata(Message):
    name: str = scalar(1, STRING)
    versions: list[str] = repeated(2, STRING)
    platform: str = scalar(3, STRING)
    inputs: list[TensorMetadata] = repeated(4, TensorMetadata)
    outputs: list[TensorMetadata] = repeated(5, TensorMetadata)


@dataclass(slots=True, eq=False)
class Parameter(Message):
    """One of its fields."""

    bool_param: bool | None = optional(1, BOOL)
    int64_param: int | None = optional(2, INT64)
    string_param: str | None = optional(3, STRING)
    double_param: float | None = optional(4, DOUBLE)
    uint64_param: int | None = optional(5, UINT64)


@dataclass(slots=True, eq=False)
class NamedParameter(Message):
    """An entry of a map."""

    key: str = scalar(1, STRING)
    value: Parameter | None = optional(2, Parameter)


@dataclass(slots=True, eq=False)
class TensorContents(Message):
    bool_contents: Numbers = repeated(1, BOOL)
    int_contents: Numbers = repeated(2, INT32)
    int64_contents: Numbers = repeated(3, INT64)
    uint_contents: Numbers = repeated(4, UINT32)
    uint64_contents: Numbers = repeated(5, UINT64)
    fp32_contents: Numbers = repeated(6, FLOAT)
    fp64_contents: Numbers = repeated(7, DOUBLE)
    bytes_contents: list[bytes | memoryview] = repeated(8, BYTES)


@dataclass(slots=True, eq=False)
class Tensor(Message):
    """Of a request or an answer."""

    name: str = scalar(1, STRING)
    datatype: str = scalar(2, STRING)
    shape: Numbers = repeated(3, INT64)
    parameters: list[NamedParameter] = repeated(4, NamedParameter)
    contents: TensorContents | None = optional(5, TensorContents)


@dataclass(slots=True, eq=False)
class RequestedOutput(Message):
    name: str = scalar(1, STRING)
    parameters: list[NamedParameter] = repeated(2, NamedParameter)


@dataclass(slots=True, eq=False)
class ModelInferRequest(Message):
    model_name: str = scalar(1, STRING)
    model_version: str = scalar(2, STRING)
    id: str = scalar(3, STRING)
    parameters: list[NamedParameter] = repeated(4, NamedParameter)
    inputs: list[Tensor] = repeated(5, Tensor)
    outputs: list[RequestedOutput] = repeated(6, RequestedOutput)
    raw_input_contents: list[memoryview] = repeated(7, BYTES)


@dataclass(slots=True, eq=False)
class ModelInferResponse(Message):
    model_name: str = scalar(1, STRING)
    model_version: str = scalar(2, STRING)
    id: str = scalar(3, STRING)
    outputs: list[Tensor] = repeated(5, Tensor)
    raw_output_contents: list[bytes] = repeated(6, BYTES)


@dataclass(slots=True, eq=False)
class ModelStreamInferResponse(Message):
    """Of Triton's streams; with an error the answer has the id of the request at most."""

    error_message: str = scalar(1, STRING)
    infer_response: ModelInferResponse | None = optional(2, ModelInferResponse)


@dataclass(slots=True, eq=False)
class RequestId(Message):
    """Of a ModelInferRequest."""

    id: str = scalar(3, STRING)


@dataclass(slots=True, eq=False)
class TensorConfig(Message):
    """Of an input; `dims` is 4 there, and 3 of an output."""

    name: str = scalar(1, STRING)
    data_type: int = scalar(2, ENUM)
    dims: Numbers = repeated(4, INT64)
    optional: bool = scalar(8, BOOL)


@dataclass(slots=True, eq=False)
class OutputConfig(Message):
    name: str = scalar(1, STRING)
    data_type: int = scalar(2, ENUM)
    dims: Numbers = repeated(3, INT64)


@dataclass(slots=True, eq=False)
class ModelConfig(Message):
    name: str = scalar(1, STRING)
    platform: str = scalar(2, STRING)
    max_batch_size: int = scalar(4, INT32)
    input: list[TensorConfig] = repeated(5, TensorConfig)
    output: list[OutputConfig] = repeated(6, OutputConfig)
    backend: str = scalar(17, STRING)


@dataclass(slots=True, eq=False)
class ModelConfigResponse(Message):
    config: ModelConfig | None = optional(1, ModelConfig)


@dataclass(slots=True, eq=False)
class Duration(Message):
    count: int = scalar(1, UINT64)
    ns: int = scalar(2, UINT64)


@dataclass(slots=True, eq=False)
class InferStatistics(Message):
    success: Duration | None = optional(1, Duration)
    fail: Duration | None = optional(2, Duration)
    queue: Duration | None = optional(3, Duration)
    compute_input: Duration | None = optional(4, Duration)
    compute_infer: Duration | None = optional(5, Duration)
    compute_output: Duration | None = optional(6, Duration)
    cache_hit: Duration | None = optional(7, Duration)
    cache_miss: Duration | None = optional(8, Duration)


@dataclass(slots=True, eq=False)
class ModelStatistics(Message):
    name: str = scalar(1, STRING)
    version: str = scalar(2, STRING)
    inference_count: int = scalar(4, UINT64)
    execution_count: int = scalar(5, UINT64)
    inference_stats: InferStatistics | None = optional(6, InferStatistics)


@dataclass(slots=True, eq=False)
class ModelStatisticsResponse(Message):
    model_stats: list[ModelStatistics] = repeated(1, ModelStatistics)


@dataclass(slots=True, eq=False)
class RepositoryIndexRequest(Message):
    ready: bool = scalar(2, BOOL)


@dataclass(slots=True, eq=False)
class ModelIndex(Message):
    name: str = scalar(1, STRING)
    version: str = scalar(2, STRING)
    state: str = scalar(3, STRING)
    reason: str = scalar(4, STRING)


@dataclass(slots=True, eq=False)
class RepositoryIndexResponse(Message):
    models: list[ModelIndex] = repeated(1, ModelIndex)
