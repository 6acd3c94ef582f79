"""The file of API keys, `server.api_keys`: who may ask, and for how much. It holds hashes: the keys themselves are
nobody's but their owners'.

    keys:
      - name: search
        hash: sha256:...          # of a random key, from: padless hash-key
        models: [all-MiniLM-L6-v2]
        tokens_per_minute: 200000

A hash without salt and stretching is enough for keys that are random, and is found in microseconds (they are no
passwords, which are guessed).
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator

from server.config import ConfigError, HttpConfig, Positive, Section
from server.config_file import check_document, read_yaml

KEY_VARIABLE = "PADLESS_API_KEY"
"""One key without limits, plain: for who has no file, or beside it."""
PREFIX = "sha256:"
MIN_KEY_CHARS = 16
"""Shorter ones are found by trying, by whoever sees the file."""
RESERVED_NAMES = frozenset({"anyone", "unknown", "environment", "supervisor"})


class KeyRights(Section):
    """What one key's holder may do. None: no limit. Each of `server.http_workers` takes an even part of every limit,
    and one concurrent request at least."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """In metrics and the access log."""
    models: tuple[str, ...] | None = None
    """Names of `models:`; others do not exist for this key."""
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    """Of prompts and answers, and of inputs. `/tokenize` asks nothing of a model, and counts as a request only."""
    concurrent_requests: Positive | None = None
    priority: bool = False
    """Whether requests may set `priority`."""
    cache: Literal["own", "shared"] = "own"
    """Whether beginnings of prompts are computed once for this key alone, or for all that say `shared`: how soon an
    answer begins, and `cached_tokens`, then tell what others have asked."""
    admin: bool = False
    """Whether it opens `/metrics` and `/info`, where these have no port of their own."""


class KeyConfig(KeyRights):
    """One entry of `keys:`."""

    hash: str
    """`sha256:` and 64 hexadecimal digits."""

    @field_validator("hash")
    @classmethod
    def check_hash(cls, value: str) -> str:
        if not re.fullmatch(f"{PREFIX}[0-9a-f]{{64}}", value):
            raise ValueError(f"must be {PREFIX} and 64 hexadecimal digits, as `padless hash-key` prints it for a key")
        return value


class KeyFile(Section):
    """A whole file. Who has written a key in plain into it finds none of it in a message."""

    model_config = ConfigDict(hide_input_in_errors=True)

    keys: tuple[KeyConfig, ...]


def hash_key(key: str) -> str:
    """As it stands in the file."""
    return PREFIX + sha256(key.encode("latin-1", "replace")).hexdigest()


def check_key(key: str) -> None:
    """What a header can carry. Raises ConfigError."""
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise ConfigError("an API key must be printable ASCII without blanks. Make one with: openssl rand -hex 32")


def load_keys(config: HttpConfig, models: Collection[str], environment: Mapping[str, str]) -> tuple[KeyConfig, ...]:
    """Of the file and of the environment; none: everybody may ask. `models`: the names there are.

    Raises ConfigError.
    """
    keys: list[KeyConfig] = []
    if config.api_keys is not None:
        path = Path(config.api_keys)
        if not path.is_file():
            raise ConfigError(f"server.api_keys {path}: there is no such file. Name one, or leave it out")
        keys += check_document(KeyFile, read_yaml(path, "keys"), str(path)).keys
        check_entries(keys, models, path)
    if KEY_VARIABLE in environment:
        keys.append(read_environment(environment[KEY_VARIABLE], allow_priority=config.allow_priority))
    return tuple(keys)


def check_entries(keys: Collection[KeyConfig], models: Collection[str], path: Path) -> None:
    """Raises ConfigError."""
    if not keys:
        raise ConfigError(f"{path}: keys: there is none, and nobody could ask. Add one, or leave server.api_keys out")
    for what, values in (("name", [key.name for key in keys]), ("hash", [key.hash for key in keys])):
        value, count = Counter(values).most_common(1)[0]
        if count > 1:
            raise ConfigError(f"{path}: keys: {count} have the {what} {value!r}. Give each its own")
    for key in keys:
        if key.name in RESERVED_NAMES:
            raise ConfigError(f"{path}: keys: the name {key.name!r} has a meaning of its own. Choose another")
        unknown = sorted(set(key.models or ()) - set(models))
        if unknown:
            raise ConfigError(
                f"{path}: keys: {key.name} has the model {unknown[0]!r}, and those served are {', '.join(models)}. "
                "Correct its name, or leave it out"
            )


def read_environment(key: str, *, allow_priority: bool) -> KeyConfig:
    """Raises ConfigError."""
    try:
        check_key(key)
    except ConfigError as error:
        raise ConfigError(f"{KEY_VARIABLE}: {error}; or unset it") from None
    return KeyConfig(name="environment", hash=hash_key(key), priority=allow_priority, admin=True)
