"""Finds the file that `--prompts` means; how it is read is left to `workloads`."""

from pathlib import Path

from loadtest.sharegpt import NotAvailable, find_sharegpt
from loadtest.workloads import WorkloadError

SHAREGPT = "sharegpt"


def find_prompts(name: str) -> Path:
    """A file given by its path, or what people wrote to a chat bot, fetched once and kept in the user's cache."""
    if name != SHAREGPT:
        return Path(name)
    try:
        return find_sharegpt()
    except NotAvailable as error:
        raise WorkloadError(
            f"no prompts of {SHAREGPT}: {error}; give a file of prompts or leave --prompts out"
        ) from error
