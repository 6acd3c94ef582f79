"""Configuration files: found, read, changed by overrides, checked against their sections, and written out again.

Unknown keys are errors that suggest the nearest one.
"""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from server.config import ConfigError, Section, ServerConfig

SHIPPED = Path(__file__).parents[1] / "configs"
"""The files that come with Padless, in a checkout and in an installed wheel alike."""

Whole = TypeVar("Whole", bound=Section)


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
        if item["type"] == "default_factory_not_called":
            continue  # for another key is wrong, which is told
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            yield f"{where}: unknown key{suggest_key(item['loc'], schema)}"
        elif item["type"] == "value_error":
            yield f"{where}: {item['ctx']['error']}" if where else str(item["ctx"]["error"])
        elif item["type"] == "missing":
            yield f"{where}: is missing"
        else:
            problem = explain_shape(item["type"], item["loc"], schema) or item["msg"]
            yield f"{where}: {problem}" + ("" if is_hidden else f" (got {item['input']!r})")


def explain_shape(kind: str, loc: tuple[str | int, ...], schema: type[BaseModel]) -> str | None:
    """In the words of YAML, where pydantic has those of Python: which would show no way out. None: it has not."""
    if kind == "model_type":
        return f"must be a mapping, with keys out of {', '.join(find_section(loc, schema).model_fields)}"
    return "must be a list" if kind == "tuple_type" else None


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
