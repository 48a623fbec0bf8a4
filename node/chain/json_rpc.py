"""JSON-RPC over HTTP(S), or a unix socket, to nodes of a chain and to signers. Every word of theirs is checked.

An answer is bounded in bytes and in time, is strict JSON (no floats, no key twice), has the id of its question, and
says either a result or an error. What a result means is read with the functions below, which take exactly the forms
that Ethereum's JSON-RPC has: ``0x`` and hex, quantities without leading zeros, data of whole bytes.

Only reads are tried again. An order (to take a transaction) goes out once: whoever gave it knows whether it may go
twice.

The address of a node may hold the owner's key for it (``https://…/v3/KEY``), so nothing here ever says more of it than
scheme and host.
"""

import json
import logging
import random
import re
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import trio

from hansa.node.plain_text import plain
from hansa.proto.errors import Malformed, ProtocolError
from hansa.proto.typed_json import TEXT_LIMIT_BYTES, parse_json

ANSWER_TIMEOUT_S: Final = 15.0
CONNECT_TIMEOUT_S: Final = 5.0
ATTEMPTS: Final = 3
MOST_AT_ONCE: Final = 8
FIRST_PAUSE_S: Final = 0.2
SHOWN_CHARS: Final = 200
PLAIN: Final = {"Accept-Encoding": "identity"}
LARGEST_ERROR_DATA_CHARS: Final = 8_192
SOCKET_SCHEME: Final = "unix:"
"""``unix:/run/clef/clef.ipc``: bare JSON over a unix socket, as Ethereum's programs speak it."""

_QUANTITY = re.compile(r"0x(?:0|[1-9a-f][0-9a-f]{0,63})", re.ASCII)
_DATA = re.compile(r"0x(?:[0-9a-f]{2})*", re.ASCII)


class RpcFault(Exception):
    """A node of the chain did not do what it was asked. ``where`` is its scheme and host, ``why`` is in words."""

    def __init__(self, where: str, why: str) -> None:
        """Keep both as fields."""
        super().__init__(f"{where}: {why}")
        self.where = where
        self.why = why


class RpcAway(RpcFault):
    """It cannot be reached, is too slow or too busy. To ask again later may help."""


class RpcMalformed(RpcFault):
    """It answered with something that is no answer. It is broken, or it lies."""


class RpcError(RpcFault):
    """It answered with an error of its own.

    Attributes:
        code: the error's number.
        message: its words, made plain and short.
        data: what it gave beside them, such as what a contract's revert said; empty where that is no data.
    """

    def __init__(self, where: str, code: int, message: str, data: bytes) -> None:
        """Keep what it said."""
        super().__init__(where, f"{message} (error {code})")
        self.code = code
        self.message = message
        self.data = data


def shown_url(url: str) -> str:
    """What may be said of a node's address: scheme, host and port. The rest may be a secret."""
    if url.startswith(SOCKET_SCHEME):
        return plain(url, SHOWN_CHARS)
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname or '?'}{port}"


class RpcNode:
    """One node of a chain at one address.

    Attributes:
        name: what may be said of the address.
        asked: how many requests went out.
        failed: how many of them came to nothing.
    """

    def __init__(self, url: str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Nothing is dialled until the first question."""
        self.name = shown_url(url)
        self.asked = 0
        self.failed = 0
        self._url = url
        self._ids = count(1)
        self._timeout_s = timeout_s
        # httpx writes every address that it asks into its log, whole.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        logging.getLogger("httpcore").setLevel(logging.WARNING)
        timeout = httpx.Timeout(timeout_s, connect=min(CONNECT_TIMEOUT_S, timeout_s))
        # Neither a proxy nor a .netrc of the environment has a say in who is asked about money.
        self._transport = httpx.HTTPTransport(trust_env=False)
        self._http = httpx.Client(transport=self._transport, timeout=timeout, trust_env=False, follow_redirects=False)
        self._hung_up = False
        self._limiter = trio.CapacityLimiter(MOST_AT_ONCE)

    def __repr__(self) -> str:
        return f"RpcNode({self.name})"

    async def close(self) -> None:
        """Hang up."""
        self.hang_up()

    def hang_up(self) -> None:
        """Hang up, where nothing can be waited for."""
        self._hung_up = True
        self._http.close()

    async def read(self, method: str, *params: Any) -> Any:
        """Ask for something that changes nothing; a node that cannot be reached is asked again a few times.

        Raises:
            RpcAway: it could not be reached, or was too slow or too busy, every time.
            RpcMalformed: its answer is none.
            RpcError: it said no.
        """
        pause_s = FIRST_PAUSE_S
        for _ in range(ATTEMPTS - 1):
            try:
                return await self.order(method, *params)
            except RpcAway:
                # Not all in step: a node that comes back is not met by everybody at once.
                await trio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - nothing secret about a pause
                pause_s *= 3
        return await self.order(method, *params)

    async def order(self, method: str, *params: Any) -> Any:
        """Ask once.

        Raises:
            RpcAway: it could not be reached, or was too slow or too busy. Whether it heard is not known.
            RpcMalformed: its answer is none.
            RpcError: it said no.
        """
        number = next(self._ids)
        self.asked += 1
        try:
            body = await self._exchange({"jsonrpc": "2.0", "id": number, "method": method, "params": list(params)})
            return self._result(body, number)
        except RpcFault:
            self.failed += 1
            raise

    async def _exchange(self, question: dict[str, Any]) -> bytes:
        """One request, and the bytes of its answer: never more than the limit, never for longer than the timeout."""
        if self._url.startswith(SOCKET_SCHEME):
            return await self._over_socket(question)
        try:
            # In a thread: httpx on trio leaves half-run generators behind wherever it is cancelled. A thread that
            # nobody waits for any more ends by itself, at the timeout.
            # Bounded as a whole from here: httpx's timeout begins anew with every byte of a header.
            with trio.fail_after(1.5 * self._timeout_s):
                status, body = await trio.to_thread.run_sync(  # type: ignore[call-arg]  # its stubs are older than trio
                    self._exchange_blocking, question, abandon_on_cancel=True, limiter=self._limiter
                )
        except trio.TooSlowError:
            raise RpcAway(self.name, f"took more than {self._timeout_s:g} s to answer") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RuntimeError) as fault:
            # Only the kind of the fault: its text may repeat the address.
            raise RpcAway(self.name, f"cannot be reached ({type(fault).__name__})") from None
        if status == httpx.codes.TOO_MANY_REQUESTS or httpx.codes.is_server_error(status):
            raise RpcAway(self.name, f"is busy or broken (HTTP {status})")
        if not httpx.codes.is_success(status) and not body.lstrip().startswith(b"{"):
            raise RpcMalformed(self.name, f"answered with HTTP {status}")
        return body

    def _exchange_blocking(self, question: dict[str, Any]) -> tuple[int, bytes]:
        try:
            return self._ask(question)
        finally:
            if self._hung_up:
                # Nobody waited for this thread: what it dialled since then is closed by itself.
                self._transport.close()

    def _ask(self, question: dict[str, Any]) -> tuple[int, bytes]:
        body, deadline = bytearray(), time.monotonic() + self._timeout_s
        with self._http.stream("POST", self._url, json=question, headers=PLAIN) as answer:
            # Raw: what a compressed piece unfolds to has no bound. Of no size: one would be waited for.
            for piece in answer.iter_raw():
                body += piece
                if len(body) > TEXT_LIMIT_BYTES:
                    raise RpcMalformed(self.name, f"answered with more than {TEXT_LIMIT_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise RpcAway(self.name, f"took more than {self._timeout_s:g} s to answer")
        return answer.status_code, bytes(body)

    async def _over_socket(self, question: dict[str, Any]) -> bytes:
        """As ``_exchange``. There is no length and no end of line to rely on: an answer ends where its JSON does."""
        body = bytearray()
        try:
            with trio.fail_after(self._timeout_s):
                async with await trio.open_unix_socket(self._url.removeprefix(SOCKET_SCHEME)) as stream:
                    await stream.send_all(json.dumps(question).encode() + b"\n")
                    while piece := await stream.receive_some(64 << 10):
                        body += piece
                        if len(body) > TEXT_LIMIT_BYTES:
                            raise RpcMalformed(self.name, f"answered with more than {TEXT_LIMIT_BYTES} bytes")
                        if piece.rstrip().endswith(b"}") and _is_whole(bytes(body)):
                            break
        except trio.TooSlowError:
            raise RpcAway(self.name, f"did not answer within {self._timeout_s:g} s") from None
        except (OSError, ValueError, trio.BrokenResourceError) as fault:
            raise RpcAway(self.name, f"cannot be reached ({type(fault).__name__})") from None
        return bytes(body)

    def _result(self, body: bytes, number: int) -> Any:
        try:
            answer = parse_json(body)
        except ProtocolError as fault:
            raise RpcMalformed(self.name, f"answered with what is no strict JSON: {fault}") from None
        if type(answer) is not dict or answer.get("jsonrpc") != "2.0":
            raise RpcMalformed(self.name, "answered with what is no JSON-RPC 2.0")
        error = answer.get("error")
        if error is not None:
            raise self._error(error)
        if type(answer.get("id")) is not int or answer["id"] != number:
            raise RpcMalformed(self.name, "answered another question than the one it was asked")
        if "result" not in answer:
            raise RpcMalformed(self.name, "answered with neither a result nor an error")
        return answer["result"]

    def _error(self, error: Any) -> RpcFault:
        if type(error) is not dict or type(error.get("code")) is not int or type(error.get("message")) is not str:
            return RpcMalformed(self.name, "answered with an error that is none")
        raw = error.get("data")
        if type(raw) is dict:
            # Some nodes wrap what a contract said once more.
            raw = raw.get("data")
        found = raw if type(raw) is str and len(raw) <= LARGEST_ERROR_DATA_CHARS else ""
        data = bytes.fromhex(found[2:]) if _DATA.fullmatch(found) else b""
        return RpcError(self.name, error["code"], plain(error["message"], SHOWN_CHARS), data)


def _is_whole(body: bytes) -> bool:
    try:
        parse_json(body)
    except ProtocolError as fault:
        # What is whole and wrong is the reader's to refuse.
        return "well-formed" not in fault.why
    return True


# What results are made of. Each raises Malformed, naming what it looked at, and never repeats what was there.


def quantity(value: object, what: str, bits: int = 256) -> int:
    """A number: ``0x`` and lower-case hex without leading zeros, below 2 to the power of ``bits``."""
    if type(value) is not str or _QUANTITY.fullmatch(value) is None:
        raise Malformed(what, "is no hex quantity")
    number = int(value, 16)
    if number >> bits:
        raise Malformed(what, f"does not fit {bits} bits")
    return number


def data(value: object, what: str, length: int | None = None) -> bytes:
    """Bytes: ``0x`` and hex of whole bytes; exactly ``length`` of them where that is given."""
    lowered = value.lower() if type(value) is str else ""
    if _DATA.fullmatch(lowered) is None:
        raise Malformed(what, "is no hex data")
    found = bytes.fromhex(lowered[2:])
    if length is not None and len(found) != length:
        raise Malformed(what, f"is not exactly {length} bytes long")
    return found


def table(value: object, what: str, *needed: str) -> dict[str, Any]:
    """An object that has at least these keys: nodes may say more than the standard asks for."""
    if type(value) is not dict:
        raise Malformed(what, "is no object")
    for name in needed:
        if value.get(name) is None:
            raise Malformed(f"{what}.{name}", "is missing")
    return value


def rows(value: object, what: str) -> Sequence[Any]:
    """A list."""
    if type(value) is not list:
        raise Malformed(what, "is no list")
    return value


def hex_quantity(number: int) -> str:
    """A number as nodes want it."""
    return hex(number)


def hex_data(content: bytes) -> str:
    """Bytes as nodes want them."""
    return "0x" + content.hex()
