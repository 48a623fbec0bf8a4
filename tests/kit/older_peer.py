"""A node of the time before: it speaks ``/hansa/market/1`` alone, and strikes for whatever was not in its set.

The set is that of ``tests/unit/proto/golden_frames_4.json``; what has come since is taken out of today's here.
"""

import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Union

from hansa.node.messaging.book import Book
from hansa.node.network.net import Context, Net, Verdict
from hansa.proto import messages
from hansa.proto.codec import decode, encode
from hansa.proto.market_documents import Advert
from hansa.proto.protocols import MAX_ADVERT_BYTES, MAX_MARKET_BYTES, OLDER_ADVERT_TOPIC, OLDER_MARKET
from hansa.proto.signing import Signed
from hansa.proto.units import Bytes32, Note


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseRefused:
    """As it was."""

    lease: Bytes32
    reason: Note


SINCE_THEN = (messages.LeaseRefused, messages.ProofSent, messages.ReceiptDisputed)
OLDER_DIRECT: Any = Union[  # of what is found out at run time
    (*(kind for kind in typing.get_args(messages.Direct) if kind not in SINCE_THEN), LeaseRefused)
]


def read_as_before(data: bytes) -> Any:
    """A message as that node read it, with exactly the fields that it knew."""
    return decode(data, OLDER_DIRECT, limit_bytes=MAX_MARKET_BYTES)


class OlderPeer:
    """Serves the market as that node did."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.heard: list[Any] = []
        net.serve(OLDER_MARKET, self._take, max_request_bytes=MAX_MARKET_BYTES)

    async def _take(self, _context: Context, data: bytes) -> bytes:
        self.heard.append(read_as_before(data))
        return b""

    def strikes_against(self, peer_id: str) -> int:
        """How often it was wronged."""
        return sum(peer.strikes for peer in self.net.peers() if peer.peer_id == peer_id)


class OlderReader:
    """Adverts as that node heard and said them: on one topic for all, and in answer to who asks for the whole book."""

    def __init__(self, net: Net, now_ms: Callable[[], int]) -> None:
        self.net = net
        self.book = Book(net, now_ms, lambda advert: net.learn(advert.peer_id, advert.addresses))
        self.book.serve()
        self.gossip = net.subscribe(OLDER_ADVERT_TOPIC, self._validate)

    def _validate(self, _context: Context, data: bytes) -> Verdict:
        return self.book.take(decode(data, messages.AdvertPublished, limit_bytes=MAX_ADVERT_BYTES).advert)

    @property
    def accounts(self) -> set[bytes]:
        """Whose adverts stand here."""
        return {known.advert.signer for known in self.book.standing()}

    async def publish(self, signed: Signed[Advert]) -> None:
        """Say an advert."""
        self.book.take(signed)
        await self.net.publish(OLDER_ADVERT_TOPIC, encode(messages.AdvertPublished(advert=signed)))
