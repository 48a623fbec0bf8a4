"""An answer is strict, bounded and to the question, or it is refused in words that give no secret away."""

import contextlib
import http.server
import logging
import socket
import threading
import time
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from kit.rpc_stand_in import error, result, rpc_stand_in

from hansa.node.chain.json_rpc import (
    RpcAway,
    RpcError,
    RpcFault,
    RpcMalformed,
    RpcNode,
    data,
    quantity,
    rows,
    shown_url,
    table,
)
from hansa.proto.errors import Malformed


async def asked(answer: Any, *, timeout_s: float = 10.0) -> Any:
    with rpc_stand_in(answer) as there:
        node = RpcNode(there.url, timeout_s=timeout_s)
        try:
            return await node.order("eth_chainId")
        finally:
            await node.close()


@pytest.mark.trio
async def test_a_question_is_answered() -> None:
    assert await asked(lambda *question: result("0x7a69", question[2])) == "0x7a69"


@pytest.mark.trio
async def test_null_is_an_answer_too() -> None:
    assert await asked(lambda *question: result(None, question[2])) is None


@pytest.mark.trio
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":2,"result":"0x1"}',
        b'{"jsonrpc":"2.0","id":"1","result":"0x1"}',
        b'{"jsonrpc":"2.0","id":true,"result":"0x1"}',
        b'{"jsonrpc":"2.0","id":null,"result":"0x1"}',
        b'{"jsonrpc":"1.0","id":1,"result":"0x1"}',
        b'{"id":1,"result":"0x1"}',
        b'{"jsonrpc":"2.0","id":1,"result":1.5}',
        b'{"jsonrpc":"2.0","id":1,"result":NaN}',
        b'{"jsonrpc":"2.0","id":1,"result":"0x1","result":"0x2"}',
        b'{"jsonrpc":"2.0","id":1,"result":' + b"9" * 5_000 + b"}",
        b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":1,"error":"no"}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"no"}}',
        b'{"jsonrpc":"2.0","id":1,"error":{"code":1}}',
        b"\xff\xfe",
    ],
)
async def test_what_is_no_answer_is_malformed(body: bytes) -> None:
    with pytest.raises(RpcMalformed):
        await asked(lambda *_: body)


@pytest.mark.trio
async def test_an_answer_without_end_is_cut_off() -> None:
    with pytest.raises(RpcMalformed, match="more than"):
        await asked(lambda *question: result("0x" + "00" * (1 << 20), question[2]))


@pytest.mark.trio
async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    def slow(method: str, params: list[Any], number: int) -> bytes:
        time.sleep(1.5)
        return result("0x1", number)

    with pytest.raises(RpcAway, match="ReadTimeout"):
        await asked(slow, timeout_s=0.3)


@pytest.mark.trio
async def test_an_answer_that_comes_drop_by_drop_is_cut_off_too() -> None:
    class Drops(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.1)

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's own name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drops) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        node = RpcNode(f"http://127.0.0.1:{server.server_address[1]}/", timeout_s=0.5)
        with pytest.raises(RpcAway, match="more than"):
            await node.order("eth_chainId")
        await node.close()
        server.shutdown()
        thread.join()


@pytest.mark.trio
async def test_a_refusal_says_what_the_contract_said() -> None:
    with pytest.raises(RpcError) as caught:
        await asked(lambda *question: error(3, "execution reverted\x1b[2J", question[2], "0x08c379a0"))
    assert (caught.value.code, caught.value.data) == (3, bytes.fromhex("08c379a0"))
    assert "\x1b" not in str(caught.value)


@pytest.mark.trio
async def test_a_redirection_is_not_followed() -> None:
    with (
        rpc_stand_in(lambda *question: result("0x1", question[2])) as other,
        rpc_stand_in(lambda *_: (307, b"elsewhere")) as there,
    ):
        there.elsewhere = other.url
        node = RpcNode(there.url)
        with pytest.raises(RpcMalformed, match="307"):
            await node.order("eth_chainId")
        assert other.asked == []
        await node.close()


@pytest.mark.trio
async def test_reads_are_tried_again_and_orders_are_not() -> None:
    with rpc_stand_in(lambda *_: (503, b"busy")) as there:
        node = RpcNode(there.url)
        with pytest.raises(RpcAway):
            await node.order("eth_sendRawTransaction")
        assert there.asked == ["eth_sendRawTransaction"]
        with pytest.raises(RpcAway):
            await node.read("eth_chainId")
        assert there.asked.count("eth_chainId") == 3
        there.answer = lambda *question: result("0x1", question[2])
        assert await node.read("eth_chainId") == "0x1"
        assert (node.asked, node.failed) == (5, 4)
        await node.close()


@pytest.mark.trio
async def test_a_no_is_not_asked_for_again() -> None:
    with rpc_stand_in(lambda *question: error(-32000, "no", question[2])) as there:
        node = RpcNode(there.url)
        with pytest.raises(RpcError):
            await node.read("eth_call")
        assert len(there.asked) == 1
        await node.close()


@pytest.mark.trio
async def test_nobody_there_is_said_in_words() -> None:
    node = RpcNode("http://127.0.0.1:1/v3/a-secret-key", timeout_s=5)
    with pytest.raises(RpcAway, match="cannot be reached"):
        await node.order("eth_chainId")
    await node.close()


@pytest.mark.trio
async def test_secrets_in_logs_an_address_with_a_key_in_it_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with rpc_stand_in(lambda *question: result("0x1", question[2])) as there:
        node = RpcNode(there.url)
        await node.read("eth_chainId")
        there.answer = lambda *_: (500, b"")
        with pytest.raises(RpcFault) as caught:
            await node.order("eth_chainId")
        said += [str(caught.value), repr(caught.value), repr(node), node.name]
        await node.close()
    for url in ("http://127.0.0.1:1/v3/a-secret-key", "http://a-secret-key:1/", "foo://a-secret-key"):
        node = RpcNode(url, timeout_s=5)
        with pytest.raises(RpcFault) as caught:
            await node.order("eth_chainId")
        said.append(str(caught.value).replace(shown_url(url), ""))
        assert caught.value.__cause__ is None
        await node.close()
    said += [record.getMessage() for record in caplog.records]
    assert [line for line in said if "a-secret-key" in line] == []


def test_only_scheme_host_and_port_of_an_address_are_shown() -> None:
    assert shown_url("https://user:secret@rpc.example:8545/v3/KEY?x=KEY#KEY") == "https://rpc.example:8545"


@pytest.mark.parametrize("value", ["0x0", "0x1", "0xff", "0x" + "f" * 64])
def test_a_quantity_is_read(value: str) -> None:
    assert quantity(value, "it") == int(value, 16)


@pytest.mark.parametrize(
    "value",
    [1, 1.0, None, True, "", "0x", "1", "0x01", "0X1", "0xFF", "-0x1", "0x-1", "0x1_0", "0x\uff11", "0x1" + "0" * 64],
)
def test_what_is_no_quantity_is_malformed(value: object) -> None:
    with pytest.raises(Malformed):
        quantity(value, "it")


def test_a_quantity_above_its_width_is_malformed() -> None:
    assert quantity("0x" + "f" * 32, "it", 128) == 2**128 - 1
    with pytest.raises(Malformed, match="128 bits"):
        quantity("0x1" + "0" * 32, "it", 128)


def test_data_is_of_whole_bytes_and_of_its_length() -> None:
    assert data("0x", "it") == b""
    assert data("0xaBcd", "it", 2) == b"\xab\xcd"
    for value in ("", "0xa", "ab", "0xzz", 5, None, b"0x00"):
        with pytest.raises(Malformed):
            data(value, "it")
    with pytest.raises(Malformed, match="exactly 20 bytes"):
        data("0x" + "00" * 21, "it", 20)


def test_tables_and_rows_are_what_they_should_be() -> None:
    assert table({"a": 1, "b": 2}, "it", "a") == {"a": 1, "b": 2}
    assert list(rows([1], "it")) == [1]
    for value in ({}, {"a": None}, [], None):
        with pytest.raises(Malformed):
            table(value, "it", "a")
    with pytest.raises(Malformed):
        rows({}, "it")


@given(st.text() | st.integers() | st.none() | st.lists(st.integers()))
def test_any_value_is_read_or_malformed(value: object) -> None:
    for read in (quantity, data, table, rows):
        with contextlib.suppress(Malformed):
            read(value, "it")


def test_the_library_for_http_is_the_one_that_was_looked_at() -> None:
    # The node's addresses are kept out of its log by the names of its loggers.
    assert httpx._client.logger.name == "httpx"


@pytest.mark.trio
async def test_a_node_that_drips_its_header_is_left() -> None:
    def drip(taken: socket.socket) -> None:
        with contextlib.suppress(OSError), taken:
            taken.recv(65_536)
            taken.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.1):
                taken.sendall(b"a")

    def serve() -> None:
        with contextlib.suppress(OSError):
            drip(listening.accept()[0])

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        node = RpcNode(f"http://127.0.0.1:{listening.getsockname()[1]}", timeout_s=0.5)
        with trio.fail_after(30), pytest.raises(RpcAway):
            await node.order("eth_chainId")
        ended.set()
        await node.close()
