"""All engines of a comparison: their environments made once, and their workers loaded for a model and thread count."""

import hashlib
import sys
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from bench.peers.catalogue import BF16_FLAGS, Peer, Variant
from bench.peers.environments import InstallError, prepare_environment
from bench.peers.processes import WorkerError, WorkerProcess, build_environment, convert
from bench.report import read_cpu_flags


def keep_variants(peer: Peer, engines: Collection[str]) -> Peer:
    return replace(peer, variants=tuple(each for each in peer.variants if peer.name_row(each) in engines))


class Fleet:
    """Peers by their key in the catalogue. Those that cannot be installed stay, and fail to load with the reason."""

    def __init__(self, peers: Mapping[str, Peer], cache: Path, engines: Collection[str] = ()) -> None:
        """`engines`: the names of the rows that are wanted; all of these peers where there are none."""
        self.peers = {key: keep_variants(peer, engines) for key, peer in peers.items()} if engines else dict(peers)
        self.peers = {key: peer for key, peer in self.peers.items() if peer.variants}
        self.cache = cache
        self.pythons: dict[str, Path | InstallError] = {key: self.install(peer) for key, peer in self.peers.items()}

    def install(self, peer: Peer) -> Path | InstallError:
        if not peer.requirements:
            return Path(sys.executable)
        try:
            return prepare_environment(peer.requirements, self.cache)
        except InstallError as error:
            print(f"{peer.name} cannot be installed: {error}", flush=True)
            return error

    def load(self, model: Path, threads: int, stack: ExitStack) -> tuple[dict[str, WorkerProcess], dict[str, str]]:
        """Loaded workers and the reasons of those that failed, by the name of their row. `stack` ends the workers."""
        workers, failures = {}, {}
        for key, peer in self.peers.items():
            for variant in peer.variants:
                if variant.min_threads > threads:
                    continue
                name = peer.name_row(variant)
                print(f"loading {name}, {threads} threads", flush=True)
                try:
                    workers[name] = self.load_variant(key, variant, model, threads, stack)
                except (InstallError, WorkerError) as error:
                    failures[name] = str(error)
        return workers, failures

    def load_variant(self, key: str, variant: Variant, model: Path, threads: int, stack: ExitStack) -> WorkerProcess:
        """Raises InstallError or WorkerError."""
        peer, python = self.peers[key], self.find_python(key)
        if variant.needs_bf16 and not BF16_FLAGS & read_cpu_flags():
            raise WorkerError("not run: this CPU has no bf16 instructions")
        if variant.needs_avx512 and "avx512f" not in read_cpu_flags():
            raise WorkerError(f"not run: without AVX-512 {peer.name} optimises nothing")
        converted = self.convert(key, python, model) if peer.converts else model
        log = self.cache / "logs" / peer.folder.name / f"{peer.name_row(variant)}, {threads} threads.log"
        environment = build_environment(threads, self.cache, peer.environment)
        worker = WorkerProcess(
            python, peer.folder / peer.worker, environment, log.with_name(log.name.replace(" ", "-"))
        )
        stack.callback(worker.close)
        paths = {"model": str(model), "converted": str(converted)}
        worker.ask("load", **paths, options=variant.options, threads=threads)
        return worker

    def find_python(self, key: str) -> Path:
        """Raises InstallError."""
        python = self.pythons[key]
        if isinstance(python, InstallError):
            raise InstallError(f"not installed: {python}")
        return python

    def convert(self, key: str, python: Path, model: Path) -> Path:
        """The peer's own form of a model, made anew when its environment, its worker or the model's place changes."""
        peer = self.peers[key]
        worker = peer.folder / peer.worker
        helpers = [peer.folder / name for name in peer.converts_with]
        parts = [str(python), str(model), *(path.read_text() for path in (worker, *helpers))]
        out = self.cache / "converted" / f"{key}-{hashlib.sha256(''.join(parts).encode()).hexdigest()[:12]}"
        convert(python, worker, model, out, self.cache, peer.environment)
        return out
