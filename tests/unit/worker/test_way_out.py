"""The loopback port in front of a provider's proxy."""

import gc
import socket
import threading
import time

import pytest

from hansa.worker.way_out import HOST, start_way_out


@pytest.fixture
def proxy(tmp_path):
    """A socket that answers everything with itself in capitals, until the other side is done."""
    path = tmp_path / "egress.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen(200)

    def answer(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())
            time.sleep(0.1)
            connection.sendall(b"!")

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield path
    server.close()


def ask(port, data):
    with socket.create_connection((HOST, port), timeout=10) as connection:
        sender = threading.Thread(target=lambda: (connection.sendall(data), connection.shutdown(socket.SHUT_WR)))
        sender.start()
        said = b""
        while piece := connection.recv(65536):
            said += piece
        sender.join()
        return said


def test_bytes_go_both_ways_and_so_does_their_end(proxy):
    port = start_way_out(proxy, 0)
    assert ask(port, b"connect example.org:443") == b"CONNECT EXAMPLE.ORG:443!"
    assert ask(port, b"x" * 3_000_000) == b"X" * 3_000_000 + b"!"


def test_many_may_speak_at_once_and_none_is_collected_with_the_garbage(proxy):
    port = start_way_out(proxy, 0)
    said = []
    threads = [threading.Thread(target=lambda n=n: said.append(ask(port, b"%d" % n))) for n in range(150)]
    gc.freeze()  # what the whole suite has left in memory is not what may be collected here
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        gc.collect()
        time.sleep(0.01)
    assert sorted(said) == sorted(b"%d!" % n for n in range(150))


def test_without_anything_behind_it_a_connection_just_ends(tmp_path):
    port = start_way_out(tmp_path / "nothing", 0)
    with socket.create_connection((HOST, port), timeout=10) as connection:
        assert connection.recv(1) == b""
