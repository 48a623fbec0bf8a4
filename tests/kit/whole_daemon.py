"""A whole daemon in this process on real sockets, serving every protocol that there is: it lends, and it relays."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from kit.memory_party import key

from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon.daemon import Daemon
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.proto.signing import checksum_address


@asynccontextmanager
async def a_whole_daemon() -> AsyncIterator[Daemon]:
    """Serve until the context ends."""
    wishes = Wishes(
        provides=True,
        listen=("/ip4/127.0.0.1/tcp/0",),
        cpu_slots=1,
        cpu_cores_per_slot=1,
        gpus=(),
        metrics_port=0,
    )
    text = config_text(wishes)
    text = text.replace('tier = "sandbox"', 'tier = "none"').replace("require = true", "require = false")
    text = text.replace('accept_buyers = "any"', f'accept_buyers = ["{checksum_address(key(1).address)}"]')
    text = text.replace("relay = false", "relay = true")
    # Not pytest's directory: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        data = Path(folder) / "node"
        data.mkdir(mode=0o700)
        daemon = Daemon(parse_config(text, data / FILE_NAME), key(7), key(1007), None)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.serve)
                while not hasattr(daemon, "shells") or not daemon.config.api_socket.exists():  # noqa: ASYNC110
                    await trio.sleep(0.05)
                yield daemon
                nursery.cancel_scope.cancel()
        finally:
            daemon.close()
