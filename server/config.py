"""The YAML file: one frozen model per section, each option written once with its default and its meaning.

Unknown keys are errors that suggest the nearest one; contradictions are refused here, before anything is loaded.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from runtime.config import EngineConfig

Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]

SHIPPED = Path(__file__).parents[1] / "configs"
"""The files that come with Padless, in a checkout and in an installed wheel alike."""


class ConfigError(ValueError):
    """The configuration cannot be used; the text names the key and the remedy."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Whole = TypeVar("Whole", bound=Section)


class HttpConfig(Section):
    """`server:`, what all models share."""

    host: str = "127.0.0.1"
    port: Port = 8000
    admin_host: str = "127.0.0.1"
    admin_port: Port | None = None
    """`/metrics` and `/info` are only here, in plain HTTP and for whoever reaches it; None: they are on `port`. 0, here
    and there: a free one."""
    api_keys: str | None = None
    """The file of those who may ask, see `server/api_keys.py`; None: everybody may."""
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
    max_body_items: Positive = 300_000
    """Most values in one body: items of lists; objects, lists and members of objects count 20 each."""
    max_bodies_mb: Annotated[float, Field(gt=0)] = 256.0
    """What an HTTP process holds of bodies at one time; beyond that 429. The first 64 KiB of each do not count."""
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
    """Which requests get a line of JSON in the log, with their id, what became of them and how long they took."""
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
        return self


class SourceConfig(Section):
    """Where the model directory comes from: exactly one of the three."""

    path: str | None = None
    """A directory with config.json, tokenizer.json and weights; relative to the working directory."""
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
    engine: EngineConfig = EngineConfig()
    limits: LimitsConfig = LimitsConfig()
    chat: ChatConfig = ChatConfig()
    """Generation only."""
    speculative: SpeculativeConfig | None = None
    """Generation only."""

    @model_validator(mode="after")
    def check_contradictions(self) -> "ModelConfig":
        limits, engine = self.limits, self.engine
        if limits.max_client_batch_size > limits.max_concurrent_requests:
            raise ValueError(
                f"limits.max_client_batch_size ({limits.max_client_batch_size}) is over "
                f"limits.max_concurrent_requests ({limits.max_concurrent_requests}): such a request would always be "
                "refused. Lower max_client_batch_size or raise max_concurrent_requests"
            )
        if engine.precision == "fp16" and engine.device == "cpu":
            raise ValueError(
                "engine.precision fp16 has no fast path with engine.device cpu. Set precision to bf16, fp32 or auto"
            )
        check_engine_options(engine)
        if engine.kind == "reference" and engine.precision not in ("auto", "fp32"):
            raise ValueError(
                f"engine.kind reference computes in fp32 only, and engine.precision is {engine.precision}. "
                "Set precision to fp32 or auto, or kind to planned"
            )
        if engine.inline and engine.replicas > 1:
            raise ValueError("engine.inline runs one engine in the HTTP process. Set replicas to 1 or inline to false")
        return self


def check_engine_options(engine: EngineConfig) -> None:
    """Options that this kind of engine would ignore. Raises ValueError."""
    if engine.kind != "planned" and engine.memory_cap_mb is not None:
        raise ValueError(f"engine.memory_cap_mb is for kind planned, and engine.kind is {engine.kind}. Leave it out")
    if engine.quantization is not None and (engine.kind != "planned" or engine.precision not in ("int8", "auto")):
        raise ValueError(
            f"engine.quantization is for kind planned with precision int8 or auto; kind is {engine.kind} and precision "
            f"is {engine.precision}. Set precision to int8, or leave quantization out"
        )
    if engine.device == "cuda" and (engine.precision == "int8" or engine.cpu_kernels != "auto"):
        raise ValueError(
            "engine.precision int8 and engine.cpu_kernels are for engine.device cpu. Set precision to bf16 or auto and "
            "leave cpu_kernels out, or set device to cpu"
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


def load_config(path: Path, overrides: Sequence[str] = ()) -> ServerConfig:
    """Read a YAML file, or one of those that come with Padless by its name, and apply `key=value` overrides.

    Raises ConfigError.
    """
    path = find_config(path)
    return settle(read_yaml(path, "models"), overrides, str(path))


def settle(document: dict[str, Any], overrides: Sequence[str], origin: str) -> ServerConfig:
    """Check what a file has, changed by the overrides, in place. `origin`: for messages. Raises ConfigError."""
    for override in overrides:
        apply_override(document, override)
    return check_document(ServerConfig, document, origin)


def read_yaml(path: Path, key: str) -> dict[str, Any]:
    """A mapping, in which `key` is expected. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: the file must be a mapping with the key {key!r}")
    return document


def check_document(schema: type[Whole], document: dict[str, Any], origin: str) -> Whole:
    """Raises ConfigError, with a line for each mistake."""
    try:
        return schema.model_validate(document)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {line}" for line in explain_errors(error, schema))) from None


def find_config(path: Path) -> Path:
    """`minilm` and `minilm.yaml` are the file of that name that comes with Padless, where there is none here.

    Raises ConfigError.
    """
    if path.exists():
        return path
    shipped = SHIPPED / path.with_suffix(".yaml")
    if len(path.parts) == 1 and path.suffix in ("", ".yaml") and shipped.exists():
        return shipped
    names = ", ".join(sorted(each.stem for each in SHIPPED.glob("*.yaml")))
    raise ConfigError(f"{path}: No such file. Name a file that is there, or one that comes with Padless: {names}")


def dump_config(config: ServerConfig) -> str:
    """The effective configuration as YAML, every default spelt out, passwords hidden."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_secrets(config: ServerConfig) -> dict[str, Any]:
    """For JSON, passwords as they are: for processes of ours, and nobody else."""
    document = config.model_dump(mode="json")
    password = config.server.ssl_keyfile_password
    document["server"]["ssl_keyfile_password"] = None if password is None else password.get_secret_value()
    return document


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set a value in the parsed file, in place: `server.port=9000`, `models.0.engine.precision=bf16`.

    A model's key without the prefix is set in every model of the file: `engine.precision=bf16`.
    """
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: must be written as key=value")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    parts = key.split(".")
    if parts[0] in ServerConfig.model_fields:
        set_value(document, parts, parsed, override)
        return
    models = document.get("models")
    if not isinstance(models, list) or not models:
        raise ConfigError(
            f"--set {override}: {parts[0]!r} is a key of models, and the file has none. Add one to models"
        )
    for index in range(len(models)):
        set_value(document, ["models", str(index), *parts], parsed, override)


def set_value(document: dict[str, Any], parts: list[str], value: Any, override: str) -> None:
    target: Any = document
    for part in parts[:-1]:
        target = descend(target, part, override)
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override}: {'.'.join(parts[:-1])} has no keys")
    target[parts[-1]] = value


def descend(target: Any, part: str, override: str) -> Any:
    if isinstance(target, list):
        if not part.isdigit() or int(part) >= len(target):
            raise ConfigError(f"--set {override}: there is no entry {part!r}; entries are 0 to {len(target) - 1}")
        return target[int(part)]
    if not isinstance(target, dict):
        raise ConfigError(f"--set {override}: {part!r} is below a plain value")
    if target.get(part) is None:
        target[part] = {}
    return target[part]


def explain_errors(error: ValidationError, schema: type[BaseModel]) -> Iterator[str]:
    """One line per error: where it is, what is wrong, and the nearest key for a misspelt one. What stands there is
    shown, unless the schema hides it."""
    is_hidden = schema.model_config.get("hide_input_in_errors", False)
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"{where}: unknown key{suggest_key(item['loc'], schema)}"
        elif item["type"] == "value_error":
            yield f"{where}: {item['ctx']['error']}" if where else str(item["ctx"]["error"])
        else:
            yield f"{where}: {item['msg']}" + ("" if is_hidden else f" (got {item['input']!r})")


def suggest_key(loc: tuple[str | int, ...], schema: type[BaseModel]) -> str:
    """The nearest existing key to the last part of `loc`, or the list of those there are."""
    fields = list(find_section(loc[:-1], schema).model_fields)
    near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; the keys here are {', '.join(fields)}"


def find_section(loc: tuple[str | int, ...], schema: type[BaseModel]) -> type[BaseModel]:
    section = schema
    for part in loc:
        if isinstance(part, int):  # an entry of the list that was the part before
            continue
        annotation = section.model_fields[part].annotation
        sections = [each for each in (annotation, *get_args(annotation)) if is_section(each)]
        assert len(sections) == 1, "A key with keys of its own is of one kind. This is a bug."
        section = sections[0]
    return section


def is_section(annotation: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
