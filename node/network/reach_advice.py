"""How others reach a node, in one word, and what its owner could do about it, in sentences."""

from collections.abc import Iterator

from hansa.node.network.net import Reach

ANNOUNCED, DIRECTLY, BY_RELAY, NOT_KNOWN, ONLY_OUTGOING = (
    "announced",
    "directly",
    "by relay",
    "not known",
    "only outgoing",
)


def means_of(reach: Reach, *, announced: bool) -> str:
    """By which means others reach this node."""
    if announced:
        return ANNOUNCED
    if reach.verdict == "public":
        return DIRECTLY
    if reach.relays:
        return BY_RELAY
    return ONLY_OUTGOING if reach.verdict == "private" else NOT_KNOWN


def advise(reach: Reach, *, announced: bool, peers: int) -> Iterator[str]:
    """What could be done; nothing if all is well."""
    means = means_of(reach, announced=announced)
    if not peers:
        yield "no peer is connected: name a node under [network] bootstrap"
    if means == ANNOUNCED and reach.verdict == "private":
        yield "[network] announce says where to dial, but nobody who tried got through: is the port forwarded?"
    if means == ONLY_OUTGOING:
        yield "nobody can dial this node and no relay has a place for it: forward its port, or bootstrap from a relay"
    if means == NOT_KNOWN and peers:
        yield "too few others have tried to dial this node to say; two from different networks must agree"
    if means == BY_RELAY:
        yield "it works, through others' lines: forwarding the port in the router makes it faster"
    if means in (BY_RELAY, ONLY_OUTGOING) and reach.hides_ports:
        yield "the router gives each connection another port (symmetric NAT), so direct ways cannot be made through it"
    if reach.serves_as_relay and reach.verdict == "private" and not announced:
        yield "this node offers itself as a relay, but nobody can dial it: turn [network] relay off"
    if reach.restarts:
        yield f"the network's library fell {reach.restarts} times and was started again: the log says why"
