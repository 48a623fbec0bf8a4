"""A real daemon over the network that keeps to memory: everything of it but sockets and sandboxes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from kit.memory_net import MemoryHub
from kit.memory_party import key

from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon import chores
from hansa.node.daemon.daemon import Daemon
from hansa.node.network.net import NetConfig
from hansa.node.settings.config import FILE_NAME, parse_config
from hansa.proto.signing import checksum_address


@asynccontextmanager
async def a_daemon(
    directory: Path, hub: MemoryHub, number: int, *, lends: bool = False, settings: Callable[[str], str] = str
) -> AsyncIterator[Daemon]:
    """Serve until the context ends. One that lends serves the account of number 1, and has one CPU slot."""
    wishes = Wishes(provides=lends, cpu_slots=1 if lends else 0, cpu_cores_per_slot=1, gpus=(), metrics_port=0)
    text = config_text(wishes)
    if lends:
        # Without a sandbox a node serves those whom it knows.
        text = text.replace('tier = "sandbox"', 'tier = "none"').replace("require = true", "require = false")
        text = text.replace('accept_buyers = "any"', f'accept_buyers = ["{checksum_address(key(1).address)}"]')
    data = directory / f"node-{number}"
    data.mkdir(mode=0o700)
    daemon = Daemon(parse_config(settings(text), data / FILE_NAME), key(number), key(number + 1000), None)
    try:
        async with hub.open_net(NetConfig(), daemon.node.secret()) as net, trio.open_nursery() as nursery:
            daemon.net = net
            daemon.tasks = nursery
            daemon.tell(daemon.started())
            daemon.open_rooms()
            await nursery.start(daemon.outbox.serve)
            nursery.start_soon(daemon.serve_engine)
            nursery.start_soon(chores.greet_arrivals, daemon)
            nursery.start_soon(chores.advertise, daemon)
            while not daemon.engine.events:
                await daemon.changed.wait()
            yield daemon
            nursery.cancel_scope.cancel()
    finally:
        daemon.close()
