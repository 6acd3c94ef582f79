"""Single keys of generation_config.json, checked. Knows no torch."""

from pathlib import Path

from models.defaults import Keys
from models.keys import ModelDirectoryError


def read_token(path: Path, keys: Keys, name: str) -> int | None:
    """A token id; None where the file has none, or null. Raises ModelDirectoryError."""
    value = keys.get(name)
    if value is not None and not is_token(value):
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a token id")
    return value


def read_tokens(path: Path, keys: Keys, name: str) -> tuple[int, ...]:
    """One token id, or a list of them; empty where the file has none. Raises ModelDirectoryError."""
    given = keys.get(name)
    values = given if isinstance(given, list) else [] if given is None else [given]
    if not all(map(is_token, values)):
        raise ModelDirectoryError(f"{path}: {name} is {given!r}; it must be a token id or a list of them")
    return tuple(values)


def is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def read_count(path: Path, keys: Keys, name: str, default: int, *, least: int = 0) -> int:
    """Raises ModelDirectoryError."""
    value = default if keys.get(name) is None else keys[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a whole number of at least {least}")
    return value


def read_factor(path: Path, keys: Keys, name: str) -> float:
    """1 where the file has none. Raises ModelDirectoryError."""
    value = 1.0 if keys.get(name) is None else keys[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ModelDirectoryError(f"{path}: {name} is {value!r}; it must be a number")
    return float(value)
