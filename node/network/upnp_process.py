"""The process that speaks to the router; see ``upnp.py``.

``python -m hansa.node.network.upnp_process forward PORT OWN-ADDRESS``, or ``… withdraw OUTSIDE PORT OWN-ADDRESS``; an
empty address lets the system choose from where to ask.

Whoever is in the same network may answer in the router's place, with a description that never ends: the library takes
it as fast as it comes, hundreds of mebibytes a second. So this process may have little of the machine.
"""

import json
import resource
import sys

import miniupnpc

DISCOVER_MS = 2_000
FIND_AGAIN_MS = 1_000
"""Whoever stops waits for this, and the router was there before."""
LEASE_S = 3_600
OTHER_PORTS = 3
MEMORY_BYTES = 128 << 20
"""It takes 15 MiB to speak to a router."""
CPU_S = 10
OPEN_FILES = 64


def forward(port: int, interface: str) -> dict[str, object]:
    """Find the router, and have it forward this port, or one near it that is free."""
    router = miniupnpc.UPnP(multicastif=interface or None, discoverdelay=DISCOVER_MS)
    if not _quietly(router.discover):
        return {"host": "", "port": 0, "why": "no router that speaks UPnP was found"}
    router.selectigd()
    host, why = router.externalipaddress(), "it gives no reason"
    for outside in (port, *(1024 + (port * 31 + each * 7919) % 60_000 for each in range(OTHER_PORTS))):
        try:
            if router.addportmapping(outside, "TCP", router.lanaddr, port, "hansa", "", LEASE_S):
                return {"host": host, "port": outside, "why": "forwarded"}
        except Exception as fault:  # noqa: BLE001  # the library raises its own kind and Exception itself
            why = str(fault)[:100]
    return {"host": "", "port": 0, "why": f"the router refused: {why}"}


def withdraw(outside: int, port: int, interface: str) -> dict[str, object]:
    """Have it forward that port no longer, unless it is another machine's meanwhile."""
    router = miniupnpc.UPnP(multicastif=interface or None, discoverdelay=FIND_AGAIN_MS)
    if not _quietly(router.discover):
        return {"withdrawn": False}
    router.selectigd()
    standing = router.getspecificportmapping(outside, "TCP")
    if standing is None or tuple(standing[:2]) != (router.lanaddr, port):
        return {"withdrawn": False}
    return {"withdrawn": bool(router.deleteportmapping(outside, "TCP"))}


def _quietly(discover: object) -> int:
    try:
        return int(discover())  # type: ignore[operator]
    except Exception as fault:  # noqa: BLE001  # it is known to raise "Success" where it found something
        return int(str(fault) == "Success")


def stint() -> None:
    """Have little memory and time from here on, write no file, start nothing and leave no dump."""
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def main() -> None:
    """One line of JSON."""
    stint()
    what, *words = sys.argv[1:]
    try:
        if what == "forward":
            answer = forward(int(words[0]), words[1])
        else:
            answer = withdraw(int(words[0]), int(words[1]), words[2])
    except Exception as fault:  # noqa: BLE001  # a router may send anything
        answer = {"host": "", "port": 0, "why": f"no router that can be asked was found ({str(fault)[:100]})"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
