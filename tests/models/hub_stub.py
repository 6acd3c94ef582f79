"""The few routes of a Hugging Face hub that downloading a model takes, over a folder: {root}/{org}/{name}/files."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REVISIONS = ("main", "v1", COMMIT)


class Hub(ThreadingHTTPServer):
    """Mutable: `downloaded`, the files that were asked for with GET."""

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.root = root
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self.answer_api("/".join(parts[2:4]), *parts[4:6])
        elif len(parts) > 4 and parts[2] == "resolve":
            self.answer_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.fail("EntryNotFound")

    def answer_api(self, name: str, what: str, revision: str) -> None:
        """/api/models/{name}/revision/{revision} and /api/models/{name}/tree/{commit}"""
        folder = self.server.root / name
        if not folder.is_dir():
            return self.fail("RepoNotFound")
        if revision not in REVISIONS:
            return self.fail("RevisionNotFound")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        paths = [str(path.relative_to(folder)) for path in files]
        if what == "tree":
            entries = zip(files, paths, strict=True)
            rows = [{"type": "file", "path": p, "size": f.stat().st_size, "oid": make_etag(f)} for f, p in entries]
            return self.send(json.dumps(rows).encode(), {"Content-Type": "application/json"})
        siblings = [{"rfilename": path} for path in paths]
        body = json.dumps({"_id": "1", "id": name, "sha": COMMIT, "siblings": siblings}).encode()
        return self.send(body, {"Content-Type": "application/json"})

    def answer_file(self, name: str, revision: str, path: str) -> None:
        """/{name}/resolve/{revision}/{path}"""
        file = self.server.root / name / path
        if revision not in REVISIONS or not file.is_file():
            return self.fail("EntryNotFound")
        if self.command == "GET":
            self.server.downloaded.append(path)
        return self.send(file.read_bytes(), {"ETag": f'"{make_etag(file)}"', "X-Repo-Commit": COMMIT})

    def send(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def fail(self, code: str) -> None:
        self.send(b"{}", {"X-Error-Code": code, "X-Error-Message": f"{code} at {self.path}"}, 404)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: what goes wrong shows in the client."""


def make_etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@contextmanager
def run_hub(root: Path) -> Iterator[Hub]:
    with Hub(root) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
