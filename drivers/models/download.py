"""https:// sources: one GGUF file from a web server, in as many goes as it takes.

What has come stays (`part`) and the next go asks for the rest, in this run or the next: Range, with
If-Range so that a file that has changed meanwhile is sent whole, and then begun anew. What fails
for a moment is tried again with growing pauses; a server that sends nothing for STALL_S counts as
that. The file is whole when it has the length that the server said first.

A redirect leads to https only, and to no address of a private network or of this machine, unless
it stays on the host that was asked for: a server elsewhere is not to make this machine ask those.
Plain http has nothing that proves the bytes, so it is for this machine, or with a sha256. Proxies
and certificates are those of the environment (HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE).
"""

import ipaddress
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from drivers.models.errors import ModelError, short
from drivers.models.job import Got, Job, names_of, refuse_offline, refuse_pickle
from drivers.models.part import Origin, Part

if TYPE_CHECKING:
    import httpx2

STALL_S = 15.0
CONNECT_S = 10.0
MAX_TRIES = 5
"""In a row, without a byte that is new."""
PAUSE_S, MAX_PAUSE_S = 1.0, 60.0
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""What a server says that may be otherwise in a moment."""


@dataclass(frozen=True, slots=True)
class HttpsSource:
    """The URL of a GGUF file."""

    text: str
    name: str
    tag: str
    sha256: str = ""

    def fetch(self, job: Job) -> Got:
        refuse_offline(self.text)
        part = Part(job.part)
        origin = _Download(self.text, part, job).run()
        return Got(part.file, True, revision=origin.etag or origin.modified)


def https_source(url: str, sha256: str = "") -> HttpsSource:
    """Return the source for a URL; EINVAL."""
    parts = urlsplit(url)
    if not parts.hostname:
        raise ModelError("EINVAL", f"{short(url)} names no host", "https://host/path/model.gguf")
    if parts.username or parts.password:
        what = f"the address of {parts.hostname} has a password in it, which would be kept"
        raise ModelError("EINVAL", what, "fetch it by other means, then pull its path")
    if parts.scheme == "http" and not (sha256 or _of_this_machine(parts.hostname)):
        what = f"http://{parts.hostname} proves nothing of what it sends"
        raise ModelError("EINVAL", what, "take https://, or say the file's sum with --sha256")
    file = PurePosixPath(unquote(parts.path))
    if file.suffix.lower() != ".gguf":
        refuse_pickle(file.name)
        what = f"{short(url)} is not the address of a .gguf file"
        raise ModelError("EINVAL", what, "https://host/path/model.gguf")
    return HttpsSource(url, *names_of(file.stem), sha256)


class _Busy(Exception):
    """The server asks for patience; `pause_s` is how much, 0 if it does not say."""

    def __init__(self, what: str, pause_s: float = 0.0) -> None:
        super().__init__(what)
        self.pause_s = pause_s


class _Download:
    """One file, from the first request to its last byte."""

    def __init__(self, url: str, part: Part, job: Job) -> None:
        self._url, self._part, self._job = url, part, job
        self._host = urlsplit(url).hostname or ""
        self._answered = False

    def run(self) -> Origin:
        """Fetch what is missing; return what the file is."""
        import httpx2

        timeout = httpx2.Timeout(STALL_S, connect=CONNECT_S)
        with httpx2.Client(timeout=timeout, headers={"Accept-Encoding": "identity"}) as client:
            failed = 0
            while True:
                before = self._part.size
                try:
                    return self._go(client)
                except httpx2.ReadTimeout:
                    why, pause = f"stalled for {STALL_S:g} s", 0.0
                except (httpx2.TransportError, _Busy) as error:
                    if not self._answered:
                        raise self._unreachable(error) from None
                    why, pause = str(error) or type(error).__name__, getattr(error, "pause_s", 0.0)
                failed = 1 if self._part.size > before else failed + 1
                if failed == MAX_TRIES:
                    what = f"{self._host} failed {MAX_TRIES} times in a row: {why}"
                    hint = f"pull again later: {self._part.size / 1e6:.1f} MB are kept"
                    raise ModelError("EIO", what, hint)
                self._job.say(f"{why}, retrying")
                time.sleep(min(max(pause, PAUSE_S * 2 ** (failed - 1)), MAX_PAUSE_S))

    def _go(self, client: "httpx2.Client") -> Origin:
        """Ask once, and write what comes."""
        origin = self._part.origin()
        if origin is not None and origin.url == self._url:
            if self._part.size == origin.total:
                return origin
        else:
            origin = None
        start = self._part.size if origin and origin.validator else 0
        headers = {}
        if origin and start:
            headers = {"Range": f"bytes={start}-", "If-Range": origin.validator}
        with self._response(client, headers) as response:
            if response.status_code == 206 and origin is not None:
                self._check_range(response, start, origin.total)
            else:
                if start:
                    self._say_anew(origin, response)
                origin, start = self._begin(response), 0
            self._write(response, start, origin.total)
        return origin

    def _begin(self, response: "httpx2.Response") -> Origin:
        length = response.headers.get("content-length", "")
        if not length.isdecimal() or not int(length):
            what = f"{self._host} does not say how long the file is"
            raise ModelError("ENOTSUP", what, "fetch it by other means, then pull its path")
        origin = Origin(
            self._url, int(length), response.headers.get("etag", "")[:1000],
            response.headers.get("last-modified", "")[:100],
        )  # fmt: skip
        self._part.remove()
        self._job.check_disk(PurePosixPath(urlsplit(self._url).path).name, origin.total)
        self._part.begin(origin)
        return origin

    def _say_anew(self, origin: Origin | None, response: "httpx2.Response") -> None:
        etag = response.headers.get("etag", "")
        why = f"{self._host} cannot send the rest alone"
        if origin is not None and origin.etag != etag:
            why = f"the file at {self._host} has changed since {self._part.size / 1e6:.1f} MB of it"
            why = f"{why} were fetched"
        self._job.say(f"{why}: starting over")

    def _check_range(self, response: "httpx2.Response", start: int, total: int) -> None:
        """Refuse a part that is not the one asked for; what is kept is of no use then."""
        said = response.headers.get("content-range", "")
        if said != f"bytes {start}-{total - 1}/{total}":
            self._part.remove()
            what = f"{self._host} sent {short(said)} where bytes {start} to {total - 1} were asked"
            raise ModelError("EIO", what, "pull again: nothing was kept, so it starts over")

    def _write(self, response: "httpx2.Response", done: int, total: int) -> None:
        with self._part.append() as file:
            for chunk in response.iter_raw():  # as it comes: what is gathered first can be lost
                done += len(chunk)
                if done > total:
                    what = f"{self._host} sends more than the {total} bytes that it said"
                    raise ModelError("EIO", what, "pull again, or fetch it by other means")
                file.write(chunk)
                file.flush()
                self._job.progress("download", done, total)
        if done < total:
            raise _Busy(f"{self._host} ended after {done} of {total} bytes")

    @contextmanager
    def _response(
        self, client: "httpx2.Client", headers: dict[str, str]
    ) -> "Iterator[httpx2.Response]":
        """Ask, follow redirects that may be followed, and give the answer that has the file."""
        url = self._url
        for _ in range(MAX_REDIRECTS + 1):
            with client.stream("GET", url, headers=headers) as response:
                self._answered = True
                if response.status_code in REDIRECTS:
                    url = self._redirect(url, response.headers.get("location", ""))
                    continue
                self._check_answer(response)
                yield response
                return
        raise ModelError("EIO", f"{self._host} redirects more than {MAX_REDIRECTS} times")

    def _check_answer(self, response: "httpx2.Response") -> None:
        status = response.status_code
        if status in (200, 206):
            if response.headers.get("content-encoding", "identity") != "identity":
                raise ModelError("ENOTSUP", f"{self._host} sends the file in an encoding")
            return
        said = f"{self._host} answers {status} {response.reason_phrase}"
        if status in AGAIN:
            pause = response.headers.get("retry-after", "")
            raise _Busy(said, float(pause) if pause.isdecimal() else 0.0)
        if status == 416:  # the file is shorter than what is kept of it
            self._part.remove()
            raise _Busy(f"{said}: starting over")
        code = {401: "EPERM", 403: "EPERM", 404: "ENOENT", 410: "ENOENT"}.get(status, "EIO")
        raise ModelError(code, said, "check the address")

    def _redirect(self, url: str, location: str) -> str:
        target = urljoin(url, location)
        parts = urlsplit(target)
        host = parts.hostname or ""
        what = f"{self._host} redirects to {parts.scheme}://{host:.100}"
        if parts.scheme != "https" and parts.scheme != urlsplit(self._url).scheme:
            raise ModelError("EPERM", f"{what}, which is not https")
        if host != self._host and not _is_public(host):
            raise ModelError("EPERM", f"{what}, which is no public address", f"llmos pull {target}")
        return target

    def _unreachable(self, error: Exception) -> ModelError:
        why = str(error) or type(error).__name__
        what = f"{self._host} cannot be reached from here: {why}"
        return ModelError("ENETUNREACH", what, "llmos pull file:///path/to/model.gguf")


def _is_public(host: str) -> bool:
    """Return whether all addresses of a host are public; one that has none is nobody's."""
    try:
        found = {row[4][0] for row in socket.getaddrinfo(host, None)}
    except OSError:  # behind a proxy this machine may know no names; connecting says so otherwise
        return True
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in found)


def _of_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
