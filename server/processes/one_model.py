"""The configuration of a server that was given a model instead of a file: what it needs is found out from the model."""

import re
from collections.abc import Sequence
from pathlib import Path

from server.config import ConfigError, ServerConfig
from server.config_file import SHIPPED, settle

HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@\w[\w./-]*)?")


def configure_model(model: str, name: str | None = None, overrides: Sequence[str] = ()) -> ServerConfig:
    """`model`: a directory, or `org/name[@revision]` on a hub. `name`: what clients call it; None: the directory's, or
    the hub's. Raises ConfigError.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        source, found = {"path": str(path.absolute())}, path.resolve().name
    elif (match := HUB_NAME.fullmatch(model)) is not None and not path.exists():
        source, found = {"hub": model}, match["name"]
    else:
        raise ConfigError(explain(path, model))
    return settle({"models": [{"name": found if name is None else name, "source": source}]}, overrides, model)


def explain(path: Path, model: str) -> str:
    """Why this is no model."""
    if path.exists():
        return f"{model} is no directory. A configuration is read with --config {model}"
    if len(path.parts) == 1 and (SHIPPED / path.with_suffix(".yaml")).exists():
        return f"{model}: there is no such directory. The configuration of that name is served with --config {model}"
    return f"{model}: there is no such directory. Name one that is there, or a model on a hub: org/name[@revision]"
