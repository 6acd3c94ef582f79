"""How an engine is to be built. Every option of the YAML's `engine:` section, its default and its meaning, once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

EngineKind = Literal["planned", "cuda_graphs", "onnxruntime", "reference", "null"]
Precision = Literal["fp32", "bf16", "fp16", "int8", "fp8", "int8_weights", "int4_weights"]
CUDA_PRECISIONS: tuple[Precision, ...] = ("fp16", "fp8", "int8_weights", "int4_weights")
"""Those that CPUs have no fast path for."""
FileInput = Literal["input_ids", "attention_mask", "token_type_ids", "position_ids"]
AccuracyLevel = Literal["strict", "balanced", "fast"]
CpuKernels = Literal["auto", "amx", "avx512_bf16", "avx512", "avx512_base", "avx_vnni", "avx2", "portable", "torch"]


class UnusableConfig(ValueError):
    """The configuration does not fit this machine or this model; the text names the key and the remedy."""


KVCacheDtype = Literal["fp32", "bf16", "fp16", "int8"]


class KVCacheConfig(BaseModel):
    """`engine.kv_cache:`, what a decoder keeps of the tokens it has seen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["auto", KVCacheDtype] = "auto"
    """`auto`: the type the engine computes in, and bf16 beside int8 weights. int8 has a scale per token and head."""
    budget_mb: Annotated[float, Field(gt=0)] | None = None
    """Of each replica: weights, activations of the largest step and the cache together; the cache gets what the others
    leave. None: the weights, and an even part of half the memory (nine tenths of a GPU's) that the budgets and weights
    of all engines leave at the server's start. Either way no more than max_batch_requests sequences of max_input_tokens
    could fill."""
    prefix_caching: bool = True
    """Prompts that begin alike share the blocks of their common beginning, also after the first one has ended."""


class ProviderConfig(BaseModel):
    """One of `engine.onnxruntime.providers:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """As ONNX Runtime has it: CPUExecutionProvider, CUDAExecutionProvider, OpenVINOExecutionProvider, ..."""
    options: Mapping[str, str] = {}
    """The provider's own."""


class OnnxRuntimeConfig(BaseModel):
    """`engine.onnxruntime:`, what ONNX Runtime is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str | None = None
    """An ONNX file that is served as it is, padded; relative to the model's directory, as `onnx/model_quantized.onnx`.
    None: the directory's weights, or where it has none the only ONNX file under a usual name."""
    inputs: Mapping[FileInput, str] = {}
    """What the file calls its inputs, where it has other names."""
    output: str | None = None
    """What it calls the output that the task reads, where that has another name."""

    providers: tuple[ProviderConfig, ...] = ()
    """In order of preference; none: the CPU's."""
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    """What it rewrites of the graph."""
    spinning: bool = False
    """Threads that wait for one another turn in circles: faster alone, slower beside anything else."""
    arena: bool = True
    """Memory of the CPU is kept from step to step."""
    session: Mapping[str, str] = {}
    """Further entries of its session's configuration."""


class EngineConfig(BaseModel):
    """The YAML's `engine:` section."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: EngineKind = "planned"
    """`planned`: fused graph in planned memory. `cuda_graphs`: the same, its small steps recorded at warm-up and
    replayed (device cuda). `onnxruntime`: the same graph in ONNX Runtime, or an ONNX file as it is. `reference`: the
    module op by op. `null`: computes nothing."""
    precision: Literal["auto", "auto_per_bucket", Precision] = "auto"
    """`auto`: one precision for all batches of all replicas, the fastest here that `accuracy` admits, measured at the
    first start. `auto_per_bucket`: the same for each size of batch, so that a text's numbers depend on how many tokens
    it is computed with. Generators: `auto` is the fastest float type. `int8`, `fp8`: weights and activations.
    `int8_weights`, `int4_weights`: weights alone, beside bf16. The last three and fp16 with device cuda only."""
    quantization: Path | None = None
    """`int8` and `auto`: the file that `padless quantize` wrote; without it INT8 takes each row's range as it comes."""
    accuracy: AccuracyLevel = "balanced"
    """What `auto` may give up of fp32's accuracy: judged on the texts of the calibration where there is one, else on
    sample texts. `strict`: no more than bf16's rounding. `balanced`: searches find the same, 95 of 100 nearest texts at
    least, or 99 of 100 labels. `fast`: 90 of 100 nearest texts, 97 of 100 labels."""
    device: Literal["cpu", "cuda"] = "cpu"
    devices: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """`cuda` only: the devices that the replicas are spread over, as many on each: numbers as torch counts them, from
    0, among those that CUDA_VISIBLE_DEVICES names. None: the first one alone."""
    cpu_kernels: CpuKernels = "auto"
    """`auto`: the compiled kernels for this CPU, or torch's where they cannot be had. Others: these and no others."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one replica; 0: the cores of the machine divided by the replicas."""
    replicas: int = Field(
        default_factory=lambda given: max(1, len(given.get("devices", ()))), ge=1, le=64, validate_default=True
    )
    """Engine processes, each with its own copy of the weights. Left out: one, or one on each of `devices`."""
    pin_cores: bool = True
    """Give each of several engines cores of its own, of whatever model, and where there are not enough let those that
    share cores take turns by step. False: leave both to the kernel."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """This model's part of the cores that it shares with other models, beside their `share`."""
    inline: bool = False
    """Run the engine inside the HTTP process: for tests and debugging only, one HTTP worker."""
    memory_cap_mb: Annotated[float, Field(gt=0)] | None = None
    """The activations of a step never take more than this; the token budget shrinks to what fits. None: no cap."""
    kv_cache: KVCacheConfig = KVCacheConfig()
    onnxruntime: OnnxRuntimeConfig = OnnxRuntimeConfig()
    warmup: bool = True
    """Run batches of several sizes before serving: touches memory, fits the cost model."""
    null_step_ms: Annotated[float, Field(ge=0)] = 0.0
    """`null` only: how long a step takes."""
    null_step_us_per_token: Annotated[float, Field(ge=0)] = 0.0
    """`null` only: added per token."""
    null_fail_token_id: Annotated[int, Field(ge=0)] | None = None
    """`null` only: a step that holds this token fails."""
    null_nan_token_id: Annotated[int, Field(ge=0)] | None = None
    """`null` only: what holds this token (generation: ends in it) has no number for an answer."""
    null_failing_replica: Annotated[int, Field(ge=0)] | None = None
    """`null` only: every step of this replica fails, but the first, by which it gets ready."""

    @model_validator(mode="before")
    @classmethod
    def refuse_removed(cls, values: Any) -> Any:
        if isinstance(values, dict) and "min_cosine" in values:
            raise ValueError(
                "min_cosine is no key any more. Leave it out, and set accuracy to strict, balanced or fast"
            )
        return values

    @property
    def device_names(self) -> tuple[str, ...]:
        """Of all devices that the replicas are spread over: `cpu`, or `cuda:0` and so on."""
        return ("cpu",) if self.device == "cpu" else tuple(f"cuda:{index}" for index in self.devices or (0,))

    def keep_device(self, replica: int) -> "EngineConfig":
        """What one replica is told: they take turns on the devices. A process sees no others, and its own is the first
        to it (`server.processes.visible_devices`)."""
        if self.device == "cpu":
            return self
        devices = self.devices or (0,)
        return self.model_copy(update={"devices": (devices[replica % len(devices)],)})

    @property
    def is_compiled(self) -> bool:
        """Whether models are compiled before any engine of this kind starts."""
        return self.kind in ("planned", "cuda_graphs", "onnxruntime")

    @property
    def named_precision(self) -> Precision | None:
        """None: it is left to measurement, or with generators to the device."""
        return None if self.precision == "auto" or self.precision == "auto_per_bucket" else self.precision


def check_precision(config: EngineConfig) -> None:
    """Raises UnusableConfig where nothing computes in it, on whatever machine."""
    precision = config.precision
    if config.kind == "onnxruntime" and precision in ("bf16", *CUDA_PRECISIONS):
        raise UnusableConfig(
            f"engine.kind onnxruntime has no operators for {precision}. Set engine.precision to fp32, int8 or auto"
        )
    if config.is_compiled and config.device == "cpu" and precision in CUDA_PRECISIONS:
        raise UnusableConfig(
            f"engine.precision {precision} has no kernels with engine.device cpu. Set precision to bf16, fp32 or auto, "
            "or device to cuda"
        )


def explain_missing(precision: str) -> str:
    """Where a device does not compute in it."""
    return (
        f"engine.precision {precision} has no instructions or kernels on this device: fp8 wants a GPU of compute "
        "capability 8.9 or newer, int8_weights and int4_weights one of 8.0 or newer"
    )
