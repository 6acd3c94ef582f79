"""What Whisper's generation_config.json says of languages, tasks and times, and its config.json of what it hears.

Knows no torch.
"""

from dataclasses import dataclass, field
from pathlib import Path

from models.defaults import Keys
from models.generation_keys import is_token, read_count, read_token
from models.keys import ModelDirectoryError, require_number


@dataclass(frozen=True, slots=True)
class SpeechInfo:
    """Names are those of the files."""

    num_mel_bins: int
    """Numbers of a frame, of which a row of `features` has two."""
    lang_to_id: dict[str, int] = field(default_factory=dict)
    """Tokens of languages, by what they are called: `<|en|>`. Empty where there is but one."""
    task_to_id: dict[str, int] = field(default_factory=dict)
    """Tokens of `transcribe` and `translate`."""
    no_timestamps_token_id: int | None = None
    """The tokens of times come behind it, 20 ms after one another."""
    max_initial_timestamp_index: int | None = None
    """The last of them that may come first."""
    prev_sot_token_id: int | None = None
    """What was said before stands behind it."""
    alignment_heads: tuple[tuple[int, int], ...] = ()
    """(layer, head) of cross-attention from which times of words can be told."""
    median_filter_width: int = 7
    """Of frames, by which those heads are smoothed."""


def read_speech(path: Path, given: Keys, config_path: Path, keys: Keys) -> SpeechInfo:
    """`given`: the keys of the file `path`; `keys`: of config.json, completed. Raises ModelDirectoryError."""
    return SpeechInfo(
        num_mel_bins=require_number(config_path, keys, "num_mel_bins"),
        lang_to_id=read_ids(path, given, "lang_to_id"),
        task_to_id=read_ids(path, given, "task_to_id"),
        no_timestamps_token_id=read_token(path, given, "no_timestamps_token_id"),
        max_initial_timestamp_index=read_token(path, given, "max_initial_timestamp_index"),
        prev_sot_token_id=read_token(path, given, "prev_sot_token_id"),
        alignment_heads=read_heads(path, given),
        median_filter_width=read_width(config_path, keys),
    )


def read_ids(path: Path, given: Keys, name: str) -> dict[str, int]:
    ids = given.get(name) or {}
    if not isinstance(ids, dict) or not all(map(is_token, ids.values())):
        raise ModelDirectoryError(f"{path}: {name} is {ids!r}; it must map words to token ids")
    return ids


def read_width(path: Path, keys: Keys) -> int:
    width = read_count(path, keys, "median_filter_width", 7, least=1)
    if width % 2 == 0:
        raise ModelDirectoryError(f"{path}: median_filter_width is {width}; it must be odd")
    return width


def read_heads(path: Path, given: Keys) -> tuple[tuple[int, int], ...]:
    heads = given.get("alignment_heads") or []
    if not isinstance(heads, list) or not all(
        isinstance(head, list) and len(head) == 2 and all(map(is_token, head)) for head in heads
    ):
        raise ModelDirectoryError(f"{path}: alignment_heads is {heads!r}; it must be a list of [layer, head]")
    return tuple((layer, head) for layer, head in heads)
