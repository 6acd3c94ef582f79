"""The YAML file: one frozen model per section, each option written once with its default and its meaning.

Contradictions are refused here, before anything is loaded; `config_file` reads the file.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from runtime.config import EngineConfig, OnnxRuntimeConfig, check_precision

Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]


class ConfigError(ValueError):
    """The configuration cannot be used; the text names the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class HttpConfig(Section):
    """`server:`, what all models share."""

    host: str = "127.0.0.1"
    port: Port = 8000
    admin_host: str = "127.0.0.1"
    admin_port: Port | None = None
    """`/metrics` and `/info` are only here, in plain HTTP and for whoever reaches it; None: they are on `port`. 0, here
    and there: a free one."""
    grpc_port: Port | None = None
    """The same models over gRPC, on `host`; None: not at all. With `ssl_certfile` it speaks TLS as well."""
    api_keys: str | None = None
    """The file of those who may ask, see `server/api_keys.py`; None: everybody may. Paths are relative to the
    working directory, here and everywhere, not to this file."""
    allow_priority: bool = False
    """Whether requests may set `priority` where no file of keys says who may."""
    cors_origins: tuple[Annotated[str, Field(pattern=r"^(\*|https?://[^/?#\s]+)$")], ...] = ()
    """Whose web pages may ask, as `https://example.org`; `*`: all. Without an entry only pages of this server's own."""
    ssl_certfile: str | None = None
    """PEM, with the chain. With it `port` speaks HTTPS and nothing else."""
    ssl_keyfile: str | None = None
    """PEM; None: it is in the certificate's file."""
    ssl_keyfile_password: SecretStr | None = None
    http_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """HTTP processes; all of them share the engines."""
    tokenizer_threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Threads per HTTP process that turn text into tokens, off the event loop."""
    max_body_mb: Annotated[float, Field(gt=0)] = 4.0
    """Largest request body, counted after decompression."""
    max_audio_mb: Annotated[float, Field(gt=0)] = 25.0
    """The same of a request that brings a sound file; at most `max_bodies_mb`."""
    max_body_items: Positive = 300_000
    """Most values in one body: items of lists (texts count 3); objects, lists and members of objects count 20 each, and
    fields of gRPC's messages 10."""
    max_bodies_mb: Annotated[float, Field(gt=0)] = 256.0
    """What an HTTP process holds of bodies, and of what they said, at one time; beyond that 429. The first 64 KiB of
    each do not count."""
    max_connections: Positive = 4096
    """Of one HTTP process; further ones are answered 503 and closed."""
    header_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    """A request's line and headers must be there so long after its first byte, or after the connection's start."""
    body_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """A request's body must be there so long after its headers, and go on by 1 KiB in every 5 s."""
    write_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """A client that has not read what was sent to it for so long is cut off, and its request cancelled."""
    idle_timeout_s: Annotated[int, Field(ge=1)] = 75
    """A connection is closed after so long without a request."""
    sse_ping_s: Annotated[float, Field(gt=0)] = 15.0
    """A stream that has nothing to say sends a comment this often, so that no proxy takes it for dead."""
    unhealthy_after_s: Annotated[float, Field(gt=0)] = 60.0
    """`/health` fails once a model that could be served has had no ready replica for so long."""
    default_timeout_ms: Annotated[float, Field(gt=0)] = 30_000.0
    """Deadline of requests without an `x-request-timeout-ms` header."""
    generation_timeout_ms: Annotated[float, Field(gt=0)] = 600_000.0
    """The same for requests that generate text."""
    drain_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """After SIGTERM accepted requests have this long to finish."""
    canary_interval_s: Annotated[float, Field(gt=0)] = 5.0
    """An idle engine proves itself with a forward pass this often; `/ready` fails after three missed ones."""
    access_log: Literal["all", "failures", "none"] = "failures"
    """Which requests get a line of JSON in the log, with their id, what became of them and how long they took. Where
    `/health` and `/ready` say no they have not failed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def check_contradictions(self) -> "HttpConfig":
        if self.max_bodies_mb < self.max_body_mb:
            raise ValueError(
                f"max_bodies_mb ({self.max_bodies_mb:g}) is below max_body_mb ({self.max_body_mb:g}): the largest "
                "bodies would always be refused. Raise max_bodies_mb or lower max_body_mb"
            )
        if self.ssl_certfile is None and (self.ssl_keyfile is not None or self.ssl_keyfile_password is not None):
            raise ValueError("ssl_keyfile and ssl_keyfile_password need ssl_certfile. Add it, or leave them out")
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(f"admin_port and port are both {self.port}. Choose another admin_port, or leave it out")
        if self.grpc_port and self.grpc_port in (self.port, self.admin_port):
            raise ValueError(f"grpc_port {self.grpc_port} is another one's port. Choose another, or leave it out")
        if self.grpc_port is not None and self.ssl_keyfile_password is not None:
            raise ValueError(
                "grpc_port cannot be had with ssl_keyfile_password: gRPC reads keys without one only. Name such a "
                "key in ssl_keyfile, or leave grpc_port out"
            )
        return self


class SourceConfig(Section):
    """Where the model directory comes from: exactly one of the three."""

    path: str | None = None
    """A directory with config.json, a tokenizer's files and weights; relative to the working directory."""
    package: str | None = None
    """`module:folder`, a directory inside an installed Python package."""
    hub: str | None = None
    """`org/name` or `org/name@revision` on a Hugging Face hub."""

    @model_validator(mode="after")
    def check_one(self) -> "SourceConfig":
        given = [key for key in ("path", "package", "hub") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of path, package, hub; has {', '.join(given) or 'none'}")
        if self.package is not None and not all(self.package.partition(":")[::2]):
            raise ValueError("package must be written as 'module:folder'")
        return self


class LimitsConfig(Section):
    """`limits:` of one model."""

    max_batch_tokens: Positive = 4096
    """Token budget of one step."""
    max_batch_requests: Positive = 512
    """Most sequences in one step."""
    prefill_chunk_tokens: Annotated[int, Field(ge=0)] = 128
    """Generation: the most prompt tokens of a step while other answers wait for their next token; 0: no limit."""
    max_wait_ms: Annotated[float, Field(ge=0)] = 0.0
    """How long a free engine waits for a fuller batch; 0 starts at once."""
    max_concurrent_requests: Positive = 4096
    """Inputs admitted and not yet answered, over all HTTP workers; beyond that 429."""
    max_client_batch_size: Positive = 2048
    """Most inputs in one HTTP request."""
    max_input_tokens: Positive | None = None
    """Longest input, special tokens included; None: the model's own limit."""
    truncation: Literal["error", "right", "left"] = "error"
    """What happens to longer inputs: refused, or cut at that end."""
    max_audio_s: Annotated[float, Field(gt=0)] = 1800.0
    """Transcription: the longest sound, in seconds. While a file is read, an hour of it takes 350 MB of an HTTP process
    (as many files at a time as `server.tokenizer_threads`), and 115 MB until its answer's end, which count among
    `server.max_bodies_mb`."""


class SpeculativeConfig(Section):
    """`speculative:`, tokens guessed ahead and checked several at a time. Answers are the same as without."""

    method: Literal["ngram", "draft"]
    """`ngram`: what followed the same words earlier in the prompt or the answer. `draft`: a small model's guess."""
    num_tokens: Annotated[int, Field(ge=1, le=16)] = 4
    """Guessed at a time."""
    draft: SourceConfig | None = None
    """`draft`: where the small model is; it must have the same vocabulary."""

    @model_validator(mode="after")
    def check_draft(self) -> "SpeculativeConfig":
        if (self.method == "draft") != (self.draft is not None):
            raise ValueError("draft is the small model's source: needed with method draft, and only there")
        return self


class ChatConfig(Section):
    """`chat:` of a model that generates."""

    template: str | None = None
    """One of the directory's chat templates by name, or the text of another one; None: the directory's default."""
    template_kwargs: dict[str, Any] = {}
    """Further variables for the template, such as `enable_thinking`; a request's `chat_template_kwargs` win."""


class HeadConfig(Section):
    """One entry of `heads:`, a further head on a model's encoder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Clients put MODEL/NAME into `model`, or MODEL where no other head has the task."""
    source: SourceConfig
    """Its own directory, with config.json and weights: of the head alone, or with those of the very same encoder."""
    task: str = "auto"
    """As the model's."""


class ModelConfig(Section):
    """One entry of `models:`."""

    name: Annotated[str, Field(min_length=1)]
    """What clients put into `model`."""
    source: SourceConfig
    task: str = "auto"
    """A task's name, see `server/tasks`; `auto`: what the checkpoint has a head for, embeddings where it has none."""
    pooling: Literal["auto", "mean", "cls", "max", "last", "mean_sqrt_len", "weighted_mean"] = "auto"
    """`auto`: what the directory's sentence-transformers files say, else mean."""
    normalize: bool | None = None
    """Scale embeddings to length 1; None: what the directory's sentence-transformers files say."""
    heads: tuple[HeadConfig, ...] = ()
    """Encoders: more of them, computed in the same pass as the directory's own."""
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    coverage_penalty: bool = False
    """Translators and their like: requests may ask for a `coverage_penalty`, which costs every step a little."""
    chat: ChatConfig = ChatConfig()
    """Generation only."""
    speculative: SpeculativeConfig | None = None
    """Generation only."""

    @model_validator(mode="after")
    def check_contradictions(self) -> "ModelConfig":
        limits, engine = self.limits, self.engine
        names = [head.name for head in self.heads]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"heads: two have the name {sorted(twice)[0]!r}. Give each its own name")
        if limits.max_client_batch_size > limits.max_concurrent_requests:
            raise ValueError(
                f"limits.max_client_batch_size ({limits.max_client_batch_size}) is over "
                f"limits.max_concurrent_requests ({limits.max_concurrent_requests}): such a request would always be "
                "refused. Lower max_client_batch_size or raise max_concurrent_requests"
            )
        check_precision(engine)
        check_engine_options(engine)
        if engine.kind == "reference" and engine.precision not in ("auto", "fp32"):
            raise ValueError(
                f"engine.kind reference computes in fp32 only, and engine.precision is {engine.precision}. "
                "Set precision to fp32 or auto, or kind to planned"
            )
        check_devices(engine)
        if engine.inline and engine.replicas > 1:
            raise ValueError("engine.inline runs one engine in the HTTP process. Set replicas to 1 or inline to false")
        return self


def check_engine_options(engine: EngineConfig) -> None:
    """Options that this kind of engine would ignore. Raises ValueError."""
    if engine.kind == "cuda_graphs" and engine.device != "cuda":
        raise ValueError("engine.kind cuda_graphs needs engine.device cuda. Set device to cuda, or kind to planned")
    if engine.kind not in ("planned", "cuda_graphs") and engine.memory_cap_mb is not None:
        raise ValueError(
            f"engine.memory_cap_mb is for kind planned or cuda_graphs, and engine.kind is {engine.kind}. Leave it out"
        )
    if engine.quantization is not None and (not engine.is_compiled or engine.named_precision not in ("int8", None)):
        raise ValueError(
            "engine.quantization is for kinds planned, cuda_graphs and onnxruntime with precision int8 or auto; kind "
            f"is {engine.kind} and precision is {engine.precision}. Set precision to int8, or leave quantization out"
        )
    if engine.kind == "onnxruntime" and (engine.device != "cpu" or engine.cpu_kernels != "auto"):
        raise ValueError(
            "engine.device and engine.cpu_kernels are for kind planned: engine.kind onnxruntime computes where its "
            "providers do. Name them in engine.onnxruntime.providers, and leave device and cpu_kernels out"
        )
    if engine.kind != "onnxruntime" and engine.onnxruntime != OnnxRuntimeConfig():
        raise ValueError(f"engine.onnxruntime is for kind onnxruntime, and engine.kind is {engine.kind}. Leave it out")
    if engine.device == "cuda" and (engine.precision == "auto_per_bucket" or engine.cpu_kernels != "auto"):
        raise ValueError(
            "engine.precision auto_per_bucket and engine.cpu_kernels are for engine.device cpu. Set precision to bf16, "
            "int8 or auto and leave cpu_kernels out, or set device to cpu"
        )
    if engine.share != 1.0 and (engine.device != "cpu" or engine.inline or not engine.pin_cores):
        raise ValueError(
            "engine.share is for engines that take turns on cores: those on the CPU, with pin_cores and not inline. "
            "Leave share out"
        )
    null_keys = [
        key
        for key, field in EngineConfig.model_fields.items()
        if key.startswith("null_") and getattr(engine, key) != field.default
    ]
    if engine.kind != "null" and null_keys:
        raise ValueError(f"engine.{null_keys[0]} is for kind null, and engine.kind is {engine.kind}. Leave it out")
    if engine.kind == "null" and engine.precision != "auto":
        raise ValueError("engine.kind null computes nothing, in no precision. Leave engine.precision out")


def check_devices(engine: EngineConfig) -> None:
    """Raises ValueError where replicas cannot be spread over the devices. Whether those are there a server's start
    says."""
    devices, replicas = engine.devices, engine.replicas
    if not devices:
        return
    if engine.kind == "onnxruntime":
        raise ValueError(
            "engine.devices is for engine.device cuda, and engine.kind onnxruntime computes where its providers do. "
            "Name the device among their options, as device_id of CUDAExecutionProvider, and leave devices out"
        )
    if engine.device != "cuda":
        raise ValueError(
            f"engine.devices is for engine.device cuda, and engine.device is {engine.device}. Set device to cuda, or "
            "leave devices out"
        )
    if twice := [index for index in devices if devices.count(index) > 1]:
        raise ValueError(
            f"engine.devices names {twice[0]} twice. Name each device once; engine.replicas says how many engines run "
            "on all of them"
        )
    if engine.inline:
        raise ValueError(
            "engine.devices is for engines in processes of their own, and engine.inline has none. Leave devices out, "
            "or set inline to false"
        )
    if replicas % len(devices):
        fitting = max(replicas // len(devices), 1) * len(devices)
        raise ValueError(
            f"engine.replicas is {replicas}, and engine.devices names {len(devices)}, which get as many each. Set "
            f"replicas to {fitting}, or leave it out for one on each device"
        )


class ServerConfig(Section):
    """A whole file."""

    server: HttpConfig = HttpConfig()
    models: tuple[ModelConfig, ...]

    @model_validator(mode="after")
    def check_contradictions(self) -> "ServerConfig":
        if not self.models:
            raise ValueError("models: there is none. Add one with a name and a source")
        names = [model.name for model in self.models]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"models: two have the name {sorted(twice)[0]!r}. Give each its own name")
        for model in self.models:
            if model.engine.inline and self.server.http_workers > 1:
                raise ValueError(
                    f"models: {model.name} has engine.inline, which needs the only HTTP process. "
                    "Set server.http_workers to 1 or inline to false"
                )
        return self
