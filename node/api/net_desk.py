"""How this node stands in the network, as the local API tells it: how others reach it, what it thinks of each peer."""

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hansa.node.api.http_api import Json
from hansa.node.network.reach_advice import advise, means_of
from hansa.proto.signing import checksum_address

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon


class NetDesk:
    """Answers over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Speak of this daemon's network."""
        self._daemon = daemon

    def status(self) -> Json:
        """How others reach this node, by whose word, and what its owner could do."""
        reach = self._daemon.net.reach()
        peers = self._daemon.net.peers()
        announced = bool(self._daemon.config.network.announce)
        live = [peer for peer in peers if peer.phase == "live"]
        return {
            "peer_id": self._daemon.net.peer_id,
            "reached": means_of(reach, announced=announced),
            "autonat": reach.verdict,
            "opinions": [
                {
                    "peer_id": each.observer,
                    "network": each.network,
                    "seen_at": f"{each.seen_at[0]} port {each.seen_at[1]}" if each.seen_at is not None else None,
                    "dialled": each.reached_at is not None,
                    "reached_at": each.reached_at or None,
                }
                for each in reach.opinions
            ],
            "hides_ports": reach.hides_ports,
            "addresses": list(reach.addrs),
            "relays": [{"peer_id": each.peer_id, "left_s": each.left_s} for each in reach.relays],
            "upnp": reach.upnp or None,
            "relaying": {
                "places": reach.reservations,
                "circuits": reach.circuits,
                "bytes": reach.relayed_bytes,
            }
            if reach.serves_as_relay
            else None,
            "live_direct": sum(peer.path == "direct" for peer in live),
            "live_relayed": sum(peer.path == "relayed" for peer in live),
            "restarts": reach.restarts,
            "advice": list(advise(reach, announced=announced, peers=len(live))),
        }

    def peers(self) -> Json:
        """What this node thinks of each peer that it knows."""
        account_of = self._daemon.directory.account_of
        found = []
        for peer in self._daemon.net.peers():
            account = account_of(peer.peer_id)
            found.append(
                {
                    "peer_id": peer.peer_id,
                    "account": checksum_address(account) if account is not None else None,
                    "phase": peer.phase,
                    "path": peer.path if peer.phase == "live" else None,
                    "strikes": peer.strikes,
                    "whys": list(peer.whys),
                    "why": peer.why,
                    "barred_for_ms": peer.barred_for_ms,
                    "addresses": list(peer.addrs),
                }
            )
        return {"peers": found}


def net_routes(desk: NetDesk) -> list[Route]:
    """The routes, for ``hansa.node.api.http_api.build_api``."""

    async def status(_request: Request) -> Response:
        return JSONResponse(desk.status())

    async def peers(_request: Request) -> Response:
        return JSONResponse(desk.peers())

    return [Route("/v1/net", status), Route("/v1/net/peers", peers)]
