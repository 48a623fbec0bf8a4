"""The command line's end of the local API: HTTP over the daemon's unix socket, every failure in words with a hint."""

import json
import os
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from hansa.node.api.daemon_lock import whose_lock
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.node.settings.config import LONGEST_SOCKET_PATH_BYTES, SOCKET_NAME
from hansa.proto.blob import CHUNK_BYTES, BlobRef

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "cancelled")
ANSWER_TIMEOUT_S = 30.0
SYNC_TIMEOUT_S = 1800.0
"""A large upload is hashed and written through to a disk that may be slow, before it is answered."""
RETRY_S = 0.5
ROOM_EVERY_S = 0.05
RETRIES = 5
"""Of a connection that could not be made, within eight seconds together: nothing was asked on it yet."""
LONGEST_PAUSE_S = 1.0
"""A connection on which nothing was asked for so long is not used again. The daemon hangs up after five seconds: a
request that comes as it does is lost, and it cannot be told whether it was heard."""


class Readable(Protocol):
    """What is uploaded: a file, or what reads from one."""

    def read(self, size_bytes: int, /) -> bytes:
        """The next piece; empty at the end."""


class DaemonAway(OperatorError):
    """No daemon answers, or it went in the middle of an answer."""


class DaemonClient:
    """A connection to the daemon of one data directory."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is dialled until the first request."""
        self.data_dir = data_dir
        self._socket_path = socket_path = data_dir / SOCKET_NAME
        self._start_it = f"start it: hansa node run --data {data_dir}"
        if len(os.fsencode(socket_path)) > LONGEST_SOCKET_PATH_BYTES:
            raise OperatorError(f"the path is too long for a socket: {plain(socket_path)}", "use a shorter --data DIR")
        limits = httpx.Limits(keepalive_expiry=LONGEST_PAUSE_S)
        transport = httpx.HTTPTransport(uds=str(socket_path), limits=limits, retries=RETRIES)
        # Whatever proxies the environment names, this socket is not behind them.
        self._http = httpx.Client(
            transport=transport, base_url="http://hansa", timeout=ANSWER_TIMEOUT_S, trust_env=False
        )

    def close(self) -> None:
        """Hang up."""
        self._http.close()

    def _reach(self) -> None:
        """Find out whether a daemon listens at all, and say in words why not."""
        try:
            self._wait_for_room()
        except TimeoutError:
            raise OperatorError("the daemon takes no more connections", "look at its log; it may be stuck") from None
        except PermissionError:
            owner = "run this as the user that the daemon runs as"
            raise OperatorError(f"no right to talk to the daemon of {plain(self.data_dir)}", owner) from None
        except OSError:
            if not self.data_dir.exists():
                missing = f"no node lives in {plain(self.data_dir)}"
                raise DaemonAway(missing, f"make one: hansa init --data {self.data_dir}") from None
            process = whose_lock(self.data_dir)
            if process is not None:
                named = f" (process {process})" if process else ""
                raise DaemonAway(
                    f"the daemon of {plain(self.data_dir)}{named} does not answer yet: it is starting, or about to end",
                    "try again in a few seconds; its log says what it is at",
                ) from None
            raise DaemonAway(f"no daemon is running for {plain(self.data_dir)}", self._start_it) from None

    def _wait_for_room(self) -> None:
        """Connect once. Where as many wait already as may, the system refuses a unix socket at once."""
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(ANSWER_TIMEOUT_S)
                try:
                    return probe.connect(str(self._socket_path))
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError from None
            time.sleep(ROOM_EVERY_S)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Turn the ways in which a request fails into the operator's errors."""
        self._reach()
        try:
            yield
        except httpx.TimeoutException:
            raise OperatorError("the daemon does not answer", "look at its log; it may be busy or stuck") from None
        except httpx.HTTPError:
            raise DaemonAway("the daemon went away while it answered", self._start_it) from None

    def get(self, path: str, **parameters: str) -> Json:
        """Ask for one JSON object."""
        with self._answered():
            return _checked(self._http.get(path, params=parameters))

    def post(self, path: str, body: Json | None = None) -> Json:
        """Order something; the answer is one JSON object."""
        with self._answered():
            return _checked(self._http.post(path, json={} if body is None else body))

    def post_bytes(self, path: str, content: bytes, **parameters: str) -> Json:
        """Hand in bytes; returns when they were taken, however long that takes."""
        patient = httpx.Timeout(ANSWER_TIMEOUT_S, read=None)
        with self._answered():
            return _checked(self._http.post(path, content=content, params=parameters, timeout=patient))

    def put_blob(self, content: Readable) -> Json:
        """Upload bytes; the answer names them, once they are on the daemon's disk."""
        patient = httpx.Timeout(ANSWER_TIMEOUT_S, read=SYNC_TIMEOUT_S)
        pieces = iter(lambda: content.read(CHUNK_BYTES), b"")
        with self._answered():
            return _checked(self._http.post("/v1/blobs", content=pieces, timeout=patient))

    def blob(self, blob: BlobRef) -> Iterator[bytes]:
        """The bytes of a blob, piece by piece. The caller checks them against the blob's name."""
        return self._pieces(f"/v1/blobs/{blob.root.hex()}", blob)

    def output(self, job: str, blob: BlobRef) -> Iterator[bytes]:
        """What a job wrote into an output, opened by the daemon where the job is sealed."""
        return self._pieces(f"/v1/jobs/{job}/outputs/{blob.root.hex()}", blob)

    def _pieces(self, url: str, blob: BlobRef) -> Iterator[bytes]:
        parameters = {"size_bytes": str(blob.size_bytes)}
        with self._answered(), self._http.stream("GET", url, params=parameters) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                _checked(answer)
            yield from answer.iter_bytes(CHUNK_BYTES)

    def lines(self, path: str, **parameters: str) -> Generator[Json, None, None]:
        """A stream of JSON lines, for as long as the daemon has some."""
        yield from self._stream("GET", path, params=parameters)

    def post_lines(self, path: str, body: Json) -> Generator[Json, None, None]:
        """Order something whose answer is a stream of JSON lines."""
        yield from self._stream("POST", path, json=body)

    def _stream(self, method: str, path: str, **what: Any) -> Generator[Json, None, None]:
        patient = httpx.Timeout(ANSWER_TIMEOUT_S, read=None)
        with self._answered(), self._http.stream(method, path, timeout=patient, **what) as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                _checked(answer)
            for line in answer.iter_lines():
                yield _object(line)

    def watch(self, job: str, patience_s: float = 0.0) -> Iterator[Json]:
        """A job's views until it has ended. A daemon that goes after the first is waited for up to ``patience_s``."""
        phase = ""
        gone_at: float | None = None
        while phase not in ENDED:
            try:
                for view in self.lines(f"/v1/jobs/{job}/watch"):
                    phase, gone_at = str(view.get("phase")), None
                    yield view
            except DaemonAway:
                if patience_s <= 0 or not phase:
                    raise
                gone_at = gone_at or time.monotonic()
                if time.monotonic() - gone_at > patience_s:
                    raise
            if phase not in ENDED:
                time.sleep(RETRY_S)


def _object(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise OperatorError("the daemon's answer is no JSON object", "use the hansa of the daemon's own version")
    return value


def _checked(answer: httpx.Response) -> Json:
    value = _object(answer.content)
    if answer.is_success:
        return value
    error = plain(value.get("error", f"the daemon answered {answer.status_code}"))
    raise OperatorError(error, plain(value.get("hint", "look at the daemon's log")))
