"""What this node shows others of its dealings, and how it learns of theirs.

Asked about an account, a node shows what it had with that account itself; asked about its own account, what it had with
anybody. It never passes on what it heard. A new counterparty is asked for its own dealings, and those whom this node
trusts most are asked about it; nothing waits for the answers.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import trio

from hansa.market.receipts import receipt_digest
from hansa.market.reputation import Dealt, Heard, read_dealing
from hansa.node.engine.events import DealingsHeard
from hansa.node.engine.standings import own_dealings, worth_keeping
from hansa.node.engine.state import NodeState
from hansa.node.messaging.directory import Directory, Stranger
from hansa.node.network.net import Context, Net, NetError, Refused
from hansa.proto.codec import decode, encode
from hansa.proto.currency import currency_of
from hansa.proto.documents import Voucher
from hansa.proto.errors import ProtocolError
from hansa.proto.history import HISTORY, MAX_DEALINGS, MAX_HISTORY_BYTES, Dealing, HistoryRequested, HistorySent
from hansa.proto.network import DOMAIN
from hansa.proto.signing import Signed, SigningKey, sign

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

ASK_EVERY_S = 30.0
ASK_AGAIN_MS = 15 * 60_000
MOST_ASKED_ABOUT = 16
"""In one turn; the others come in the next."""
MOST_TELLERS = 4
MOST_REMEMBERED = 4_096
MAX_REQUEST_BYTES = 256


def shown_dealing(state: NodeState, key: bytes, account_key: SigningKey) -> Dealing | None:
    """One of this node's own channels as a dealing that anybody can check; nothing where nothing was metered yet.

    What this node said itself is signed again: the same words under the same key give the same signature.
    """
    paying, earning = state.paying.get(key), state.earning.get(key)
    if paying is not None and paying.accepted is not None:
        receipt = paying.accepted.receipt
        voucher = Voucher(channel_id=key, cumulative=receipt.amount_total, statement=receipt_digest(receipt))
        return Dealing(
            currency=paying.currency,
            config=paying.config,
            receipt=Signed(document=receipt, signature=paying.receipt_signature),
            voucher=sign(currency_of(paying.currency).domain, voucher, account_key),
            unpaid=None,
        )
    if earning is None or (earning.vouched is None and earning.out is None):
        return None
    return Dealing(
        currency=earning.currency,
        config=earning.config,
        receipt=sign(DOMAIN, earning.vouched.receipt, account_key) if earning.vouched else None,
        voucher=earning.voucher if earning.vouched else None,
        unpaid=sign(DOMAIN, earning.out.receipt, account_key) if earning.out else None,
    )


def shown_about(state: NodeState, account: bytes, account_key: SigningKey) -> tuple[Dealing, ...]:
    """What this node shows of an account, the most valuable dealings first, as many as go into one answer."""
    ours = account == state.account
    about = [dealt for dealt in own_dealings(state) if ours or account in (dealt.buyer, dealt.provider)]
    about.sort(key=lambda dealt: (-dealt.value - dealt.unpaid, dealt.channel_id))
    dealings = (shown_dealing(state, dealt.channel_id, account_key) for dealt in about[:MAX_DEALINGS])
    return tuple(dealing for dealing in dealings if dealing is not None)


def checked(dealings: Iterable[Dealing], about: bytes) -> tuple[Heard, ...]:
    """Those of the dealings that are about the account and whose every signature is sound. Takes CPU time: a thread's.

    Raises:
        ProtocolError: one of them is not sound. Who shows such a thing is not listened to at all.
    """
    heard = tuple(Heard(dealing=dealing, dealt=read_dealing(dealing)) for dealing in dealings)
    return tuple(entry for entry in heard if about in (entry.dealt.buyer, entry.dealt.provider))


class Histories:
    """Serves ``/hansa/history/1`` and asks others there."""

    def __init__(
        self,
        net: Net,
        directory: Directory,
        *,
        state: NodeState,
        account_key: SigningKey,
        share: bool,
        now_ms: Callable[[], int],
        take: Callable[[DealingsHeard], Awaitable[None]],
    ) -> None:
        """``take`` brings what was heard into the engine."""
        self._net = net
        self._directory = directory
        self._state = state
        self._account_key = account_key
        self._share = share
        self._now_ms = now_ms
        self._take = take
        self._asked_ms: dict[bytes, int] = {}

    def serve(self) -> None:
        """Answer from now on."""
        self._net.serve(
            HISTORY, self._answer, max_request_bytes=MAX_REQUEST_BYTES, timeout_ms=10_000, per_peer=1, total=8
        )

    async def _answer(self, _context: Context, data: bytes) -> bytes:
        wanted: HistoryRequested = decode(data, HistoryRequested, limit_bytes=MAX_REQUEST_BYTES)
        if not self._share:
            raise Refused("this node does not show its dealings")
        return encode(HistorySent(dealings=shown_about(self._state, wanted.account, self._account_key)))

    async def ask(self, teller: bytes, about: bytes) -> int:
        """Ask one account's node about an account, and keep what can count. Answers how many dealings that were."""
        try:
            peer_id = await self._directory.reach(teller)
            request = encode(HistoryRequested(account=about))
            answer = await self._net.request(peer_id, HISTORY, request, max_response_bytes=MAX_HISTORY_BYTES)
        except (Stranger, NetError):
            return 0
        try:
            sent: HistorySent = decode(answer, HistorySent, limit_bytes=MAX_HISTORY_BYTES)
            heard = await trio.to_thread.run_sync(checked, sent.dealings, about)
        except ProtocolError:
            self._net.strike(peer_id, "a history that is not what was signed")
            return 0
        heard = worth_keeping(self._state, heard)
        if heard:
            await self._take(DealingsHeard(heard=heard, at_ms=self._now_ms()))
        return len(heard)

    def due(self, subjects: Iterable[bytes]) -> list[bytes]:
        """Whom to ask about in this turn: who was not asked about lately. They count as asked about from now on."""
        now_ms = self._now_ms()
        wanted = [
            subject
            for subject in dict.fromkeys(subjects)
            if subject != self._state.account and now_ms - self._asked_ms.get(subject, -ASK_AGAIN_MS) >= ASK_AGAIN_MS
        ][:MOST_ASKED_ABOUT]
        for subject in wanted:
            self._asked_ms.pop(subject, None)
            self._asked_ms[subject] = now_ms
        while len(self._asked_ms) > MOST_REMEMBERED:
            del self._asked_ms[next(iter(self._asked_ms))]
        return wanted

    async def ask_about(self, subject: bytes) -> None:
        """Ask a subject for its own dealings, and those whom this node dealt with most about it."""
        dealt_with: dict[bytes, int] = {}
        for dealt in own_dealings(self._state):
            other = _other(dealt, self._state.account)
            dealt_with[other] = dealt_with.get(other, 0) + dealt.value
        for account in (subject, self._state.account):
            dealt_with.pop(account, None)
        if not dealt_with:
            # Nobody's word would count yet.
            return
        tellers = sorted(dealt_with, key=lambda account: (-dealt_with[account], account))[:MOST_TELLERS]
        for teller in (subject, *tellers):
            await self.ask(teller, subject)


def _other(dealt: Dealt, account: bytes) -> bytes:
    return dealt.provider if dealt.buyer == account else dealt.buyer


async def ask_around(daemon: "Daemon") -> None:
    """Learn, now and then, about whoever advertises, and whoever tendered here lately."""
    while True:
        await trio.sleep(ASK_EVERY_S)
        providers = [known.advert.signer for known in daemon.book.standing()]
        buyers = [sale.buyer for _, sale in daemon.state.sales.all()]
        for subject in daemon.histories.due([*reversed(buyers), *providers]):
            await daemon.histories.ask_about(subject)
