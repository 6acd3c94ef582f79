"""docs/models.md has a line for each family of the registry, in the words of its file.

`PADLESS_UPDATE_SNAPSHOTS=1 pytest tests/snapshots` writes it anew.
"""

import inspect
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from models import registry
from models.defaults import DEFAULTS
from models.family import DecoderFamily, Family, Seq2SeqFamily
from tests.snapshots.test_snapshots import UPDATE_VARIABLE

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
AnyFamily = Family | DecoderFamily | Seq2SeqFamily
TABLES: dict[str, Mapping[str, AnyFamily]] = {
    "encoders": registry.FAMILIES,
    "decoders": registry.DECODERS,
    "encoder-decoders": registry.SEQ2SEQ,
}
BEGIN, END = "<!-- generated from models/registry.py: {} -->", "<!-- end of {} -->"


def find_module(family: AnyFamily) -> ModuleType:
    """The file that the family is in."""
    modules = [value for value in vars(registry).values() if inspect.ismodule(value)]
    return next(module for module in modules if any(value is family for value in vars(module).values()))


def describe(family: AnyFamily) -> str:
    paragraphs = (find_module(family).__doc__ or "").strip().split("\n\n")
    return " ".join(" ".join(paragraphs).split()).replace("|", "\\|")


def list_lengths(family: AnyFamily) -> str:
    lengths = {DEFAULTS[name].get("max_position_embeddings") for name in family.model_types}
    return ", ".join(f"{length:,}" for length in sorted(length for length in lengths if length is not None)) or "any"


def build_table(families: Mapping[str, AnyFamily]) -> str:
    """Architectures of one family are one line."""
    names: dict[int, list[str]] = {}
    for name, family in families.items():
        names.setdefault(id(family), []).append(name)
    by_id = {id(family): family for family in families.values()}
    lines = ["| Architectures | `model_type` | Positions | Fills in words | What is its own |", "|---|---|---|---|---|"]
    for key, own in names.items():
        family = by_id[key]
        types = ", ".join(f"`{each}`" for each in family.model_types)
        words = "yes" if getattr(family, "word_head_renames", ()) else ""
        lines.append(f"| {', '.join(own)} | {types} | {list_lengths(family)} | {words} | {describe(family)} |")
    return "\n".join(lines)


def write_page(page: str) -> str:
    """The page with all tables as they should be."""
    for name, families in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        assert begin in page and end in page, f"{PAGE.name} has lost its place for {name}"
        table = f"{begin}\n{build_table(families)}\n{end}"
        page = re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _, table=table: table, page, flags=re.DOTALL)
    return page


def test_page_says_what_the_registry_has() -> None:
    page = PAGE.read_text()
    expected = write_page(page)
    if os.environ.get(UPDATE_VARIABLE):
        PAGE.write_text(expected)
    else:
        assert page == expected, f"run {UPDATE_VARIABLE}=1 pytest tests/snapshots, and read what has changed"
