"""What a job says to the proxy that is its way out: the head of one request, read with the strictness of an enemy.

``CONNECT host:port`` asks for a tunnel and ``GET http://host/path`` to be forwarded; there is nothing else. This module
only reads: any bytes give a request, the wish for more bytes, or an ``Unreadable`` that says what to answer.
"""

from dataclasses import dataclass, field
from http import HTTPStatus

import h11

from hansa.proto.egress import PrivateAddress, normalise_host, split_port

LARGEST_HEAD_BYTES = 32 << 10
HTTP_PORT = 80
# Between two neighbours only (RFC 9110, 7.6.1), and what proxies are told. Framing is h11's, on each side anew.
_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

Headers = list[tuple[bytes, bytes]]


class Unreadable(Exception):
    """A request that is not carried out.

    Attributes:
        status: what to answer.
        why: in words, without the request's own bytes.
        is_private: it names an address that no job may reach.
    """

    def __init__(self, status: HTTPStatus, why: str, *, is_private: bool = False) -> None:
        """Keep the facts as fields."""
        super().__init__(why)
        self.status = status
        self.why = why
        self.is_private = is_private


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One request that was understood.

    Attributes:
        host: normalised.
        port: where on it.
        forward: what to send there in plain HTTP; nothing for a tunnel.
    """

    host: str
    port: int
    forward: h11.Request | None = field(default=None)

    @property
    def name(self) -> str:
        """For logs; of plain ASCII without controls, since the host is normalised."""
        return f"{self.host}:{self.port}"


class RequestReader:
    """Reads the head of the one request that a connection may make.

    Attributes:
        client: the connection's state. A body that follows is read from it, and the answer written with it.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.client = h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD_BYTES)

    def feed(self, data: bytes) -> Wanted | None:
        """Take some bytes; no bytes mean that the job has closed. Gives the request once its head is complete.

        Raises:
            Unreadable: it will never be one.
        """
        try:
            self.client.receive_data(data)
            event = self.client.next_event()
        except h11.RemoteProtocolError as fault:
            raise Unreadable(HTTPStatus(fault.error_status_hint), "that is no HTTP request") from fault
        if event is h11.NEED_DATA:
            return None
        if not isinstance(event, h11.Request):
            raise Unreadable(HTTPStatus.BAD_REQUEST, "it closed before it asked for anything")
        return _tunnel(event) if event.method == b"CONNECT" else _forward(event)


def _tunnel(request: h11.Request) -> Wanted:
    host, port = _place(request.target, None)
    return Wanted(host=host, port=port)


def _forward(request: h11.Request) -> Wanted:
    scheme, _, rest = request.target.partition(b"://")
    if scheme.lower() == b"https":
        raise Unreadable(HTTPStatus.BAD_REQUEST, "https goes through CONNECT")
    if scheme.lower() != b"http":
        raise Unreadable(HTTPStatus.BAD_REQUEST, "this is a proxy: ask for http://host/path, or CONNECT host:port")
    if b"#" in rest:
        raise Unreadable(HTTPStatus.BAD_REQUEST, "a fragment is not sent")
    ends = [at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0]
    authority = rest[: min(ends, default=len(rest))]
    path = rest[len(authority) :]
    host, port = _place(authority, HTTP_PORT)
    said = host if port == HTTP_PORT else f"{host}:{port}"
    # The host that was checked, whatever its own header says.
    headers = [(b"Host", said.encode()), *(pair for pair in end_to_end(request) if pair[0].lower() != b"host")]
    target = path if path.startswith(b"/") else b"/" + path
    try:
        clean = h11.Request(method=request.method, target=target, headers=[*headers, (b"Connection", b"close")])
    except h11.LocalProtocolError as fault:
        raise Unreadable(HTTPStatus.BAD_REQUEST, "its headers contradict each other") from fault
    return Wanted(host=host, port=port, forward=clean)


def _place(authority: bytes, default: int | None) -> tuple[str, int]:
    try:
        host, port = split_port(authority.decode("ascii"), default=default)
        return normalise_host(host), port
    except PrivateAddress as fault:
        raise Unreadable(HTTPStatus.FORBIDDEN, str(fault), is_private=True) from fault
    except ValueError as fault:
        raise Unreadable(HTTPStatus.BAD_REQUEST, "it names no host and port") from fault


def end_to_end(message: h11.Request | h11.Response) -> Headers:
    """The headers that concern both ends; a body of unknown length is sent in chunks again."""
    headers = message.headers
    named = {word.strip().lower() for key, value in headers if key == b"connection" for word in value.split(b",")}
    chunked = any(key == b"transfer-encoding" for key, _ in headers)
    kept: Headers = [
        (name, value)
        for name, value in headers.raw_items()
        if name.lower() not in _HOP and (name.lower() not in named or name.lower() in (b"host", b"content-length"))
    ]
    if chunked:
        kept = [(name, value) for name, value in kept if name.lower() != b"content-length"]
        kept.append((b"Transfer-Encoding", b"chunked"))
    return kept


def refusal(status: HTTPStatus, why: str) -> bytes:
    """A whole answer that says no in words."""
    body = f"hansa: {why}\n".encode()
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
