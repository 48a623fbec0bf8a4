"""What a job may say to its way out: any bytes are a request, half of one, or refused."""

from contextlib import suppress

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hansa.node.runs.egress_request import RequestReader, Unreadable, Wanted, refusal
from hansa.proto.egress import is_literal, normalise_host


def read(data: bytes) -> Wanted | None:
    return RequestReader().feed(data)


def refused(data: bytes) -> Unreadable:
    with pytest.raises(Unreadable) as caught:
        read(data)
    return caught.value


def sent(data: bytes) -> bytes:
    wanted = read(data)
    assert wanted is not None
    assert wanted.forward is not None
    return h11.Connection(h11.CLIENT).send(wanted.forward) or b""


def test_a_tunnel_names_a_host_and_a_port() -> None:
    wanted = read(b"CONNECT Data.Example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert wanted == Wanted(host="data.example.org", port=443)


def test_half_a_request_waits_for_the_rest() -> None:
    reader = RequestReader()
    assert reader.feed(b"CONNECT data.example.org:4") is None
    assert reader.feed(b"43 HTTP/1.1\r\nHost: x\r\n") is None
    assert reader.feed(b"\r\n") == Wanted(host="data.example.org", port=443)


def test_what_follows_a_tunnels_request_is_kept_for_the_tunnel() -> None:
    reader = RequestReader()
    reader.feed(b"CONNECT data.example.org:443 HTTP/1.1\r\nHost: x\r\n\r\nhello")
    assert reader.client.trailing_data[0] == b"hello"


def test_a_forwarded_request_is_written_anew() -> None:
    head = sent(
        b"GET http://Data.Example.org/a?b=c HTTP/1.1\r\nHost: internal.example\r\nUser-Agent: u\r\n"
        b"Proxy-Authorization: secret\r\nProxy-Connection: keep-alive\r\nConnection: keep-alive, X-Private\r\n"
        b"X-Private: 1\r\nTE: trailers\r\nUpgrade: h2c\r\n\r\n"
    )
    assert head == (b"GET /a?b=c HTTP/1.1\r\nHost: data.example.org\r\nUser-Agent: u\r\nConnection: close\r\n\r\n")


def test_a_query_without_a_path_is_asked_of_the_root() -> None:
    assert sent(b"GET http://data.example.org:8080?q HTTP/1.1\r\nHost: x\r\n\r\n").startswith(
        b"GET /?q HTTP/1.1\r\nHost: data.example.org:8080\r\n"
    )


def test_a_body_has_one_length_only() -> None:
    both = (
        b"POST http://data.example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    assert b"content-length" not in sent(both).lower()
    assert b"transfer-encoding: chunked" in sent(both).lower()
    refused(b"POST http://data.example.org/ HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n")


def test_a_header_that_is_named_as_private_to_the_hop_cannot_take_the_length_away() -> None:
    head = sent(
        b"POST http://data.example.org/ HTTP/1.1\r\nHost: x\r\nConnection: content-length, host\r\n"
        b"Content-Length: 4\r\n\r\n"
    )
    assert b"Content-Length: 4\r\n" in head


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT /var/run/docker.sock HTTP/1.1",
        b"CONNECT unix:/var/run/docker.sock HTTP/1.1",
        b"CONNECT data.example.org HTTP/1.1",
        b"CONNECT data.example.org:0 HTTP/1.1",
        b"CONNECT http://data.example.org:443/ HTTP/1.1",
        b"CONNECT *.example.org:443 HTTP/1.1",
        b"CONNECT *:443 HTTP/1.1",
        b"CONNECT localhost:443 HTTP/1.1",
        b"CONNECT a@data.example.org:443 HTTP/1.1",
        b"CONNECT data.example.org:443@10.0.0.1:80 HTTP/1.1",
        b"CONNECT 0x7f.1:443 HTTP/1.1",
        b"CONNECT 2130706433:443 HTTP/1.1",
        b"GET / HTTP/1.1",
        b"GET https://data.example.org/ HTTP/1.1",
        b"GET ftp://data.example.org/ HTTP/1.1",
        b"GET file:///etc/passwd HTTP/1.1",
        b"GET http:///etc/passwd HTTP/1.1",
        b"GET http://user:word@data.example.org/ HTTP/1.1",
        b"GET http://data.example.org\\@10.0.0.1/ HTTP/1.1",
        b"GET http://data.example.org#@10.0.0.1/ HTTP/1.1",
        b"GET http://data.example.org%00.evil.example/ HTTP/1.1",
        b"GET http://[::1/ HTTP/1.1",
        b"GET http://data.example.org/ x HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2",
    ],
)
def test_what_is_no_request_of_a_proxy_is_refused(line: bytes) -> None:
    assert 400 <= refused(line + b"\r\nHost: x\r\n\r\n").status < 600


@pytest.mark.parametrize("host", [b"127.0.0.1", b"169.254.169.254", b"10.0.0.1", b"[::1]", b"[::ffff:8.8.8.8]"])
def test_a_private_address_is_refused_as_that(host: bytes) -> None:
    for line in (b"CONNECT " + host + b":80", b"GET http://" + host + b"/"):
        fault = refused(line + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert fault.is_private
        assert fault.status == 403


def test_a_head_without_an_end_is_refused() -> None:
    reader = RequestReader()
    for _ in range(32):
        assert reader.feed(b"A" * 1024) is None
    with pytest.raises(Unreadable):
        reader.feed(b"A" * 1024)


def test_closing_before_asking_is_no_request() -> None:
    refused(b"")


def test_a_refusal_is_an_answer_of_http() -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="http://a.example/", headers=[("Host", "a.example")]))
    client.receive_data(refusal(refused(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").status, "no"))
    answer = client.next_event()
    assert isinstance(answer, h11.Response)
    assert answer.status_code == 400
    assert client.next_event().data == b"hansa: no\n"


METHODS = st.sampled_from([b"CONNECT", b"GET", b"POST", b"connect", b""])
TARGETS = st.one_of(
    st.binary(max_size=40),
    st.text("abc.:/@[]%#?*0127xh tp\\", max_size=40).map(str.encode),
    st.text("abc.:/@[]%#?*0127x\\", max_size=40).map(lambda text: b"http://" + text.encode()),
)
HEADERS = st.lists(
    st.sampled_from(
        [b"Host: a", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close, host", b"X: \x00", b": "]
    ),
    max_size=5,
)


@given(METHODS, TARGETS, HEADERS, st.binary(max_size=20))
@example(b"CONNECT", b"a.b:443\r\nHost: x\r\n\r\nGET http://c.d/", [], b"")
def test_any_head_is_a_request_for_one_normalised_place_or_is_refused(
    method: bytes, target: bytes, headers: list[bytes], rest: bytes
) -> None:
    data = method + b" " + target + b" HTTP/1.1\r\n" + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + rest
    with suppress(Unreadable):
        wanted = read(data)
        if wanted is None:
            return
        assert normalise_host(wanted.host) == wanted.host
        assert 0 < wanted.port < 65536
        assert wanted.name.isascii()
        assert wanted.name.isprintable()
        if wanted.forward is not None:
            head = h11.Connection(h11.CLIENT).send(wanted.forward) or b""
            lines = head.split(b"\r\n")
            assert lines[0].split(b" ")[1].startswith(b"/")
            hosts = [line for line in lines[1:] if line.lower().startswith(b"host:")]
            expected = wanted.host if wanted.port == 80 else wanted.name
            assert hosts == [b"Host: " + expected.encode()]


@given(st.lists(st.binary(max_size=200), max_size=10))
def test_any_bytes_in_any_pieces_are_a_request_or_refused(pieces: list[bytes]) -> None:
    reader = RequestReader()
    with suppress(Unreadable):
        for piece in pieces:
            if (wanted := reader.feed(piece)) is not None:
                assert not is_literal(wanted.host) or normalise_host(wanted.host)
                return
