"""A web server that a test holds the strings of: what it sends, how far, and what it was asked.

It serves files with etags and byte ranges as servers do, an index of packages as pip reads it, and
the few answers of a model hub that its client needs. `cut` and `hold` make the next body stop
somewhere; a held one goes on, or ends, when the test says so.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

PATIENCE_S = 30
COMMIT = "c0ffee" + "0" * 34


class Asked(NamedTuple):
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]


class Site:
    """What the server has. Files by path; `etags` may differ from those made of the bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.extra: dict[str, dict[str, str]] = {}
        """Headers of a path, in place of those that there would be; "" leaves one out."""
        self.statuses: list[tuple[int, dict[str, str]]] = []
        """Answers to give first, with their headers, one a request."""
        self.ranges = True
        self.asked: list[Asked] = []
        self.held = threading.Event()
        self.released = threading.Event()
        self.url = ""
        self._cuts: list[int] = []
        self._hold = -1

    def cut(self, *sizes: int) -> None:
        """End the next bodies after so many bytes."""
        self._cuts += sizes

    def hold(self, size: int) -> None:
        """Stop the next body after so many bytes, until `released`."""
        self.held.clear()
        self.released.clear()
        self._hold = size

    def etag(self, path: str) -> str:
        return self.etags.get(path, f'"{hashlib.sha256(self.files[path]).hexdigest()}"')

    def gets(self, path: str) -> list[str]:
        """Return the Range of each request for a path, "" where there was none."""
        return [a.headers.get("Range", "") for a in self.asked if a[:2] == ("GET", path)]

    def add_package(self, name: str, file: str, data: bytes) -> None:
        """Add a wheel to the index at /simple."""
        self.files[f"/files/{file}"] = data
        page = f'<!DOCTYPE html><a href="/files/{file}">{file}</a>'
        self.files[f"/simple/{name}/"] = page.encode()
        self.extra[f"/simple/{name}/"] = {"Content-Type": "text/html"}

    def add_repository(self, repo: str, files: Mapping[str, bytes], licence: str = "mit") -> None:
        """Add a repository of the hub."""
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        info = {
            "id": repo, "sha": COMMIT, "tags": [f"license:{licence}"],
            "siblings": [
                {"rfilename": name, "size": len(data), "blobId": "b" * 40,
                 "lfs": {"size": len(data), "sha256": sums[name], "pointerSize": 1}}
                for name, data in files.items()
            ],
        }  # fmt: skip
        for path in (f"/api/models/{repo}", f"/api/models/{repo}/revision/main"):
            self.files[path] = json.dumps(info).encode()
            self.extra[path] = {"Content-Type": "application/json"}
        for name, data in files.items():
            for revision in (COMMIT, "main"):
                path = f"/{repo}/resolve/{revision}/{name}"
                self.files[path] = data
                self.extra[path] = {"X-Repo-Commit": COMMIT}

    def body(self, send: Any, data: bytes) -> None:
        """Send a body as far as it is to go."""
        size, hold = len(data), -1
        if self._cuts:
            size = self._cuts.pop(0)
        elif 0 <= self._hold < len(data):
            hold, self._hold = self._hold, -1
        if hold < 0:
            send(data[:size])
            return
        send(data[:hold])
        self.held.set()
        if self.released.wait(PATIENCE_S):
            send(data[hold:])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, with_body: bool) -> None:
        site, path = self.site, self.path.partition("?")[0]
        site.asked.append(Asked(self.command, path, dict(self.headers)))
        if site.statuses:
            status, headers = site.statuses.pop(0)
            self._head(status, {"Content-Length": "0"} | headers)
            return
        if path not in site.files:
            self._head(404, {"Content-Length": "0"})
            return
        data, status, more = site.files[path], 200, {}
        wanted = self.headers.get("Range", "")
        if wanted and site.ranges and self.headers.get("If-Range", "") in ("", site.etag(path)):
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(data):
                self._head(416, {"Content-Length": "0"})
                return
            status, more = 206, {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"}
            data = data[first:]
        headers = {"Content-Length": str(len(data)), "ETag": site.etag(path)} | more
        self._head(status, headers | site.extra.get(path, {}))
        if with_body:
            try:
                site.body(self.wfile.write, data)
            except OSError:
                pass  # whoever asked has gone

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")  # a body that was cut ends with it
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Not on stderr."""


@contextmanager
def serving() -> Iterator[Site]:
    """Run a site on this machine."""
    site = Site()
    handler = type("Handler", (_Handler,), {"site": site})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield site
        finally:
            site.released.set()
            server.shutdown()
            thread.join()
