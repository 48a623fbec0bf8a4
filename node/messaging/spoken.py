"""Which number of a protocol each peer speaks: the newest is asked for, and older ones of who does not speak that.

Numbers and what each holds are in ``docs/decisions/0024-versions-of-the-protocol.md``. What a peer answered is
remembered for a while, so that only the first request to it waits for an answer to the negotiation.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from hansa.node.network.net import Net, NotSpoken, Refused, RemoteFault

REMEMBERED_MS = 10 * 60_000
"""Somebody that has been upgraded since is asked with the newest number again after so long at the latest."""
MOST_REMEMBERED = 4096


class NotInOlder(Exception):
    """The peer speaks a number only in which there is nothing to say this with."""


class Spoken:
    """Asks with the newest number that a peer speaks."""

    def __init__(self, net: Net, protocols: Sequence[str], now_ms: Callable[[], int]) -> None:
        """``protocols`` are the numbers of one protocol, the newest first."""
        self._net, self._protocols, self._now_ms = net, tuple(protocols), now_ms
        self._known: OrderedDict[str, tuple[str, int]] = OrderedDict()

    async def request(
        self,
        peer_id: str,
        write: Callable[[str], bytes | None],
        *,
        timeout_ms: int = 10_000,
        max_response_bytes: int = 1 << 20,
    ) -> bytes:
        """Ask one peer. ``write`` gives the request as it is said under a number, None where it cannot be.

        Raises:
            NotInOlder: what the peer speaks has no words for it.
            NotSpoken: it speaks none of the numbers.
            NetError: as ``Net.request``.
        """
        known = self._remembered(peer_id)
        for protocol_id in sorted(self._protocols, key=lambda each: each != known):
            data = write(protocol_id)
            if data is None:
                self._remember(peer_id, protocol_id, known)
                raise NotInOlder
            try:
                answer = await self._net.request(
                    peer_id,
                    protocol_id,
                    data,
                    timeout_ms=timeout_ms,
                    max_response_bytes=max_response_bytes,
                    agree_first=protocol_id != known,
                )
            except NotSpoken:
                self._known.pop(peer_id, None)
                continue
            except Refused:
                self._remember(peer_id, protocol_id, known)
                raise
            except RemoteFault:
                # It may be another program by now: one that ended the stream over what it does not speak.
                self._known.pop(peer_id, None)
                raise
            self._remember(peer_id, protocol_id, known)
            return answer
        raise NotSpoken(peer_id)

    def _remembered(self, peer_id: str) -> str | None:
        protocol_id, until_ms = self._known.get(peer_id, ("", 0))
        return protocol_id if self._now_ms() < until_ms else None

    def _remember(self, peer_id: str, protocol_id: str, known: str | None) -> None:
        if protocol_id == known:
            # Not for longer by being used: it may speak a newer one in the meantime.
            return
        self._known[peer_id] = (protocol_id, self._now_ms() + REMEMBERED_MS)
        self._known.move_to_end(peer_id)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
