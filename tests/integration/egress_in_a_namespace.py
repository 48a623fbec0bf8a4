"""Run by test_egress_proxy.py in a network namespace of its own: a proxy here, a public host behind a wire.

Prints what the proxy answers when a job asks for that host, for this machine's own public address, for the local
network at the end of the wire, and for a cloud's metadata service. Nothing of the proxy's policy is widened.

The wire is two tap devices and a thread between them, since not every kernel has veth. Called with a descriptor, this
program is its far end.
"""

import fcntl
import os
import selectors
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import trio

from hansa.node.runs.egress import EgressProxy

PUBLIC, OWN = "11.22.33.44", "11.22.33.55"
ASKED = {"public": PUBLIC, "own": OWN, "lan": "10.9.9.2", "metadata": "169.254.169.254"}
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def make_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def carry(one: int, other: int) -> None:
    """Be the wire."""
    with selectors.DefaultSelector() as selector:
        for source, sink in ((one, other), (other, one)):
            selector.register(source, selectors.EVENT_READ, sink)
        while True:
            for key, _ in selector.select():
                os.write(key.data, os.read(key.fd, 65536))


def serve() -> None:
    """Greet whoever connects to port 443 of any address here."""
    with socket.create_server(("0.0.0.0", 443)) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"hello")
            connection.close()


def be_far_end(wire: int) -> None:
    tap = make_tap("there")
    for words in (
        "link set lo up",
        "address add 10.9.9.2/24 dev there",
        f"address add {PUBLIC}/32 dev lo",
        "address add 169.254.169.254/32 dev lo",
        "link set there up",
        "route add default via 10.9.9.1",
    ):
        ip(words)
    threading.Thread(target=carry, args=(wire, tap), daemon=True).start()
    serve()


async def ask(path: Path, host: str) -> str:
    os.chdir(path.parent)  # an address of a unix socket holds 108 bytes
    async with await trio.open_unix_socket(path.name) as stream:
        await stream.send_all(f"CONNECT {host}:443 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await stream.receive_some()).split(b" ")[1].decode()


async def ask_all(directory: Path) -> None:
    proxy = EgressProxy(directory, allow=["*"], say=lambda _run, text: sys.stderr.write(text))
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        path = proxy.open(bytes(32), wanted=["*"], limit_bytes=1 << 20)
        with trio.fail_after(30):
            for name, host in ASKED.items():
                print(name, await ask(path, host))
        nursery.cancel_scope.cancel()


def main() -> None:
    wire = make_tap("here")
    for words in (
        "link set lo up",
        "address add 10.9.9.1/24 dev here",
        f"address add {OWN}/32 dev lo",
        "link set here up",
        "route add default via 10.9.9.2",
    ):
        ip(words)
    threading.Thread(target=serve, daemon=True).start()
    far = subprocess.Popen(["unshare", "--net", sys.executable, __file__, str(wire)], pass_fds=(wire,), stdout=-1)
    try:
        assert far.stdout is not None
        assert far.stdout.readline() == b"ready\n"
        with tempfile.TemporaryDirectory() as directory:
            trio.run(ask_all, Path(directory))
    finally:
        far.kill()
        far.wait()


if len(sys.argv) > 1:
    be_far_end(int(sys.argv[1]))
else:
    main()
