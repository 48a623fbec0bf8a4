"""A node of a chain on loopback whose answers a test decides: bytes, results, or a real node's with a lie in them."""

import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[str, list[Any], int], bytes | tuple[int, bytes]]
"""Given method, params and id: the body, or status and body."""


def result(value: Any, number: int) -> bytes:
    """A well-formed answer."""
    return json.dumps({"jsonrpc": "2.0", "id": number, "result": value}).encode()


def error(code: int, message: str, number: int, data: Any = None) -> bytes:
    """A well-formed refusal."""
    said = {"code": code, "message": message, "data": data}
    return json.dumps({"jsonrpc": "2.0", "id": number, "error": said}).encode()


def forwarded(url: str, method: str, params: list[Any]) -> Any:
    """What a real node answers; its errors are answered as they are, in a table with the key ``error``."""
    question = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    request = urllib.request.Request(url, question, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.loads(answer.read())


def lying(url: str, lie: Callable[[str, list[Any], Any], Any]) -> Answer:
    """A real node's answers, but ``lie(method, params, result)`` has the last word on each result."""

    def answer(method: str, params: list[Any], number: int) -> bytes:
        real = forwarded(url, method, params)
        if "error" in real:
            return json.dumps({**real, "id": number}).encode()
        return result(lie(method, params, real["result"]), number)

    return answer


class StandIn:
    """What a test may look at and change while it runs.

    Attributes:
        url: where it listens, with what may be a secret in its path.
        answer: what it says.
        asked: the methods that it was asked for, in order.
        down: it refuses everything as a server that is broken.
        elsewhere: where it sends whoever asks; nowhere if empty.
    """

    def __init__(self, url: str, answer: Answer) -> None:
        self.url = url
        self.answer = answer
        self.asked: list[str] = []
        self.down = False
        self.elsewhere = ""


@contextmanager
def rpc_stand_in(answer: Answer) -> Iterator[StandIn]:
    """Serve on a free port of loopback until the block ends."""
    held: list[StandIn] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            held[0].asked.append(question["method"])
            said: bytes | tuple[int, bytes] = (503, b"down")
            if not held[0].down:
                said = held[0].answer(question["method"], question["params"], question["id"])
            status, body = said if isinstance(said, tuple) else (200, said)
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if held[0].elsewhere:
                    self.send_header("Location", held[0].elsewhere)
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # whoever asked had enough

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's own name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        held.append(StandIn(f"http://127.0.0.1:{server.server_address[1]}/v3/a-secret-key", answer))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield held[0]
        finally:
            server.shutdown()
            thread.join()
