"""The routes of the local API for shells: one stream of what a program writes, and requests beside it that type.

``POST /v1/shells`` answers with lines of JSON: ``{"shell"}`` first, then ``{"output"}`` in base64, and at last
``{"ended"}`` with the exit status or ``{"error", "hint"}``. Whoever leaves the stream closes the shell.
"""

from collections.abc import Mapping
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.node.api.http_api import Flow, Json, json_body, stream_lines
from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.frames import MAX_TERMINAL_SIDE
from hansa.proto.shell_messages import MAX_TYPED_BYTES
from hansa.proto.typed_json import read_exact_keys

KEYS = ("job", "shard", "argv", "piped", "columns", "rows")


class Shells(Protocol):
    """What the routes ask of the daemon."""

    async def open(
        self, job: bytes, shard: int | None, argv: tuple[str, ...], *, piped: bool, columns: int, rows: int
    ) -> str:
        """Start a program in a run and name the shell. Raises ``OperatorError`` to refuse it."""

    async def enter(self, shell: str, data: bytes, columns: int, rows: int) -> None:
        """Type; return when it was taken."""

    def said(self, shell: str) -> Flow[Json]:
        """Its lines for the stream."""

    async def close(self, shell: str) -> None:
        """Hang up."""


def shell_routes(shells: Shells) -> list[Route]:
    """The routes, for ``hansa.node.api.http_api.build_api``."""

    async def open_shell(request: Request) -> Response:
        body = read_exact_keys(await json_body(request), KEYS, "shell")
        argv, shard = body["argv"], body["shard"]
        if type(argv) is not list or not all(type(one) is str and "\0" not in one for one in argv):
            raise Malformed("shell.argv", "is not a list of texts")
        if shard is not None and (type(shard) is not int or shard < 0):
            raise Malformed("shell.shard", "is not a number")
        if type(body["piped"]) is not bool:
            raise Malformed("shell.piped", "is not true or false")
        columns, rows = _side(body, "columns"), _side(body, "rows")
        job = _job(body["job"])
        name = await shells.open(job, shard, tuple(argv), piped=body["piped"], columns=columns, rows=rows)
        return stream_lines(shells.said(name))

    async def type_into(request: Request) -> Response:
        sides = {name: _number(request.query_params.get(name, "")) for name in ("columns", "rows")}
        columns, rows = _side(sides, "columns"), _side(sides, "rows")
        data = bytearray()
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > MAX_TYPED_BYTES:
                    raise TooLarge("shell input", f"more than {MAX_TYPED_BYTES} bytes at once")
        await shells.enter(request.path_params["shell"], bytes(data), columns, rows)
        return JSONResponse({"taken": True})

    async def close(request: Request) -> Response:
        await shells.close(request.path_params["shell"])
        return JSONResponse({"closed": True})

    return [
        Route("/v1/shells", open_shell, methods=["POST"]),
        Route("/v1/shells/{shell}/input", type_into, methods=["POST"]),
        Route("/v1/shells/{shell}/close", close, methods=["POST"]),
    ]


def _job(text: Any) -> bytes:
    try:
        job = bytes.fromhex(text) if type(text) is str else b""
    except ValueError:
        job = b""
    if len(job) != 32:
        raise Malformed("shell.job", "is not 64 hex digits")
    return job


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 9 else 0


def _side(body: Mapping[str, Any], name: str) -> int:
    side: Any = body[name]
    if type(side) is not int or not 1 <= side <= MAX_TERMINAL_SIDE:
        raise Malformed(f"shell.{name}", f"is not a number from 1 to {MAX_TERMINAL_SIDE}")
    return side
