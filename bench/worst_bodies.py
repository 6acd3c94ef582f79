"""`python -m bench.worst_bodies [--rounds N]`: how long everybody else waits while the worst bodies arrive.

A server with the null engine and one HTTP process; of each kind of body several at once, plain and compressed, while
another connection asks /health without a pause. The longest of its waits is the event loop's longest standstill, and
what the machine adds: `nothing` shows that. It must stay below 100 ms.
"""

import argparse
import gzip
import http.client
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.minilm import DIRECTORY
from loadtest.server_process import serve

AT_ONCE = 8
LIMIT_MS = 100.0
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MAX_BYTES, MAX_ITEMS, CONTAINER_WEIGHT, TEXT_WEIGHT = 4_000_000, 300_000, 20, 2
"""As the server has them by default: the worst that is parsed is just below."""


def repeat(item: bytes, count: int) -> bytes:
    return b",".join([item] * count)


def fill(head: bytes, item: bytes, tail: bytes) -> bytes:
    """A text of the largest size there may be."""
    return head + item * ((MAX_BYTES - len(head) - len(tail)) // len(item)) + tail


def build_bodies() -> dict[str, tuple[str, bytes]]:
    """Route and body of each kind: first those that are refused, then those that are read to the end."""
    containers = MAX_ITEMS // (CONTAINER_WEIGHT + 1) - 100
    return {
        "messages of a million numbers": (CHAT, b'{"messages":[' + repeat(b"1", 1_000_000) + b"]}"),
        "300,000 wrong biases": (CHAT, b'{"messages":[],"logit_bias":{' + repeat(b'"x":"y"', 300_000) + b"}}"),
        "a stop of 4 MB": (COMPLETIONS, fill(b'{"prompt":"a","stop":"', b"a", b'"}')),
        "a million lists": (COMPLETIONS, b'{"prompt":[' + repeat(b"[1]", 1_000_000) + b"]}"),
        "16 MB of numbers": (EMBEDDINGS, b'{"input":[' + repeat(b"12345", 2_666_000) + b"]}"),
        "messages of numbers": (CHAT, b'{"messages":[' + repeat(b"1", MAX_ITEMS - 100) + b"]}"),
        "messages of objects": (CHAT, b'{"messages":[' + repeat(b"{}", containers) + b"]}"),
        "members of a message": (
            CHAT,
            b'{"messages":[{' + members(MAX_ITEMS // (CONTAINER_WEIGHT + TEXT_WEIGHT + 1) - 100) + b"}]}",
        ),
        "lists of ids": (COMPLETIONS, b'{"prompt":[' + repeat(b"[1]", containers) + b"]}"),
        "ids": (EMBEDDINGS, b'{"input":[' + repeat(b"12345", MAX_ITEMS - 100) + b"]}"),
        "texts": (EMBEDDINGS, b'{"input":[' + repeat(b'"a"', MAX_ITEMS // (TEXT_WEIGHT + 1) - 100) + b"]}"),
        "a text of escapes": (EMBEDDINGS, fill(b'{"input":"', rb"\u4f60", b'"}')),
        "a text of brackets": (EMBEDDINGS, fill(b'{"input":"', b"[{,:", b'"}')),
        "long numbers": (EMBEDDINGS, fill(b'{"input":[1', b"," + b"1" * 4000, b"]}")),
        "blanks": (EMBEDDINGS, fill(b'{"input":"a"', b" ", b"}")),
    }


def members(count: int) -> bytes:
    return b",".join(b'"%x":1' % index for index in range(count))


class Prober:
    """Asks /health all the time, on a thread. Mutable: the longest wait since it was last asked for."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._longest_s, self._must_stop = 0.0, False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self._url).netloc)
        while not self._must_stop:
            begin_s = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self._longest_s = max(self._longest_s, time.perf_counter() - begin_s)
            time.sleep(0.002)
        connection.close()

    def take_longest_ms(self) -> float:
        longest_s, self._longest_s = self._longest_s, 0.0
        return longest_s * 1000

    def stop(self) -> None:
        self._must_stop = True
        self._thread.join()


def post(url: str, path: str, body: bytes, *, is_packed: bool) -> int:
    headers = {"content-type": "application/json"} | ({"content-encoding": "gzip"} if is_packed else {})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request("POST", path, body, headers)
        return connection.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return 0  # refused, and closed while we were still sending
    finally:
        connection.close()


@contextmanager
def start_server() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        model = {"name": "null", "source": {"path": str(DIRECTORY)}, "engine": {"kind": "null"}}
        config.write_text(json.dumps({"models": [model]}))  # YAML is a superset of JSON
        with serve(str(config), log=Path(folder) / "server.log") as url:
            yield url


def measure(url: str, rounds: int) -> float:
    """Prints a line for each kind; gives the longest wait of all in ms."""
    prober, worst_ms = Prober(url), 0.0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        time.sleep(1.0)
        print(f"{'nothing':32} {'':7} {prober.take_longest_ms():6.0f} ms", flush=True)
        for name, (path, body) in build_bodies().items():
            for is_packed in (False, True):
                sent = gzip.compress(body, 1) if is_packed else body
                prober.take_longest_ms()
                calls = [pool.submit(post, url, path, sent, is_packed=is_packed) for _ in range(AT_ONCE * rounds)]
                statuses = sorted({call.result() for call in calls})
                longest_ms = prober.take_longest_ms()
                worst_ms = max(worst_ms, longest_ms)
                kind = "gzip" if is_packed else "plain"
                print(f"{name:32} {kind:7} {longest_ms:6.0f} ms  {statuses}", flush=True)
    prober.stop()
    return worst_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help=f"of {AT_ONCE} bodies each (default: %(default)s)")
    with start_server() as url:
        worst_ms = measure(url, parser.parse_args().rounds)
    print(f"the longest wait: {worst_ms:.0f} ms, and the limit is {LIMIT_MS:.0f} ms")


if __name__ == "__main__":
    main()
