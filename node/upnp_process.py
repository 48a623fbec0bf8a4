"""The process that speaks to the router: ``python -m hansa.node.upnp_process PORT [OWN-ADDRESS]``. See ``upnp.py``."""

import json
import sys

import miniupnpc

DISCOVER_MS = 2_000
LEASE_S = 3_600
OTHER_PORTS = 3


def forward(port: int, interface: str) -> dict[str, object]:
    """Find the router, and have it forward this port, or one near it that is free."""
    router = miniupnpc.UPnP(multicastif=interface or None, discoverdelay=DISCOVER_MS)
    if not _quietly(router.discover):
        return {"host": "", "port": 0, "why": "no router that speaks UPnP was found"}
    router.selectigd()
    host = router.externalipaddress()
    for outside in (port, *(1024 + (port * 31 + each * 7919) % 60_000 for each in range(OTHER_PORTS))):
        try:
            if router.addportmapping(outside, "TCP", router.lanaddr, port, "hansa", "", LEASE_S):
                return {"host": host, "port": outside, "why": "forwarded"}
        except Exception as fault:  # noqa: BLE001  # the library raises its own kind and Exception itself
            why = str(fault)[:100]
    return {"host": "", "port": 0, "why": f"the router refused: {why}"}


def _quietly(discover: object) -> int:
    try:
        return int(discover())  # type: ignore[operator]
    except Exception as fault:  # noqa: BLE001  # it is known to raise "Success" where it found something
        return int(str(fault) == "Success")


def main() -> None:
    """One line of JSON."""
    try:
        answer = forward(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
    except Exception as fault:  # noqa: BLE001  # a router may send anything
        answer = {"host": "", "port": 0, "why": f"no router that can be asked was found ({str(fault)[:100]})"}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
