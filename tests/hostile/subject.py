"""The node under siege: a whole daemon in a process of its own, which says every second how it is.

    python tests/hostile/subject.py [--open-door]

One line of JSON when it serves, and then one a second, until its input ends.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio
from kit.whole_daemon import a_whole_daemon

from hansa.node.daemon.daemon import Daemon
from hansa.node.daemon.garbage import set_started_things_aside
from hansa.node.engine.logs import start_logging
from hansa.node.network.doorway import Doorway
from hansa.node.network.net import NetLimits

EVERY_S = 1.0
MANY = 1_000_000
WIDE = NetLimits(
    handshakes_per_s=MANY,
    handshakes_at_once=MANY,
    network_handshakes_per_s=MANY,
    network_handshakes_at_once=MANY,
)


def memory_bytes() -> int:
    """What this process has in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def figures(daemon: Daemon) -> dict[str, Any]:
    """How the daemon is."""
    connections = daemon.net._swarm.get_connections()
    return {
        "memory_bytes": memory_bytes(),
        "blocks": sys.getallocatedblocks(),
        "cpu_s": time.process_time(),
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "connections": len(connections),
        "streams": sum(len(each.streams) for each in connections),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "held_bytes": daemon.net._budget.held_bytes,
        "counters": daemon.counters(),
    }


async def main() -> None:
    """Serve and tell."""
    start_logging(as_json=True)
    async with a_whole_daemon() as daemon, trio.open_nursery() as nursery:
        if "--open-door" in sys.argv:
            daemon.net._swarm._doorway = Doorway(WIDE, lambda _reason: None)
        print(json.dumps({"addr": daemon.net.addrs()[0]}), flush=True)

        async def tell() -> None:
            while True:
                await trio.sleep(EVERY_S)
                print(json.dumps(figures(daemon)), flush=True)

        nursery.start_soon(tell)
        nursery.start_soon(set_started_things_aside)  # as the command does: this process is a node and nothing else
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
