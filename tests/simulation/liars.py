"""Nodes that lie: a real engine inside, and a tongue that says something else. They sign with their own keys."""

from dataclasses import replace
from typing import Any

from simulation.sim_node import SimNode

from hansa.market.effects import Send, unsigned
from hansa.market.funding import FundingWanted
from hansa.market.receipts import root_of
from hansa.proto import messages
from hansa.proto.blob import blob_ref
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.scheduler.job_events import FetchWanted

LATER_MS = 3_600_000
JUMP_MS = 90_000
BLOB = blob_ref(b"a lie")


def _ended(lease: bytes, *, outcome: str, kind: str = "", reason: str = "", outputs: int = 0) -> messages.RunEnded:
    return messages.RunEnded(
        lease=lease, outcome=outcome, kind=kind, reason=reason, outputs=outputs, line=None, paid=0, vouched=0
    )


class LyingNode(SimNode):
    """One of the lies below, told whenever the occasion comes."""

    honest = False
    lie = ""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """A node that has never lied yet."""
        super().__init__(*arguments, **named)
        self._said: list[Send] = []

    def send(self, order: Send) -> None:
        """Let the lie look at everything that is said."""
        told = getattr(self, f"_{self.lie}")(order)
        for each in told:
            super().send(each)

    def _say(self, to: bytes, message: Any) -> Send:
        return Send(to=to, message=message, keep_until_ms=self.now_ms() + LATER_MS)

    def _changed_receipt(self, order: Send, **changes: Any) -> list[Send]:
        message: messages.ReceiptSent = order.message
        receipt = replace(message.receipt.document, **changes)
        return [replace(order, message=replace(message, receipt=unsigned(receipt)))]

    # Lying providers.

    def _inflated(self, order: Send) -> list[Send]:
        """More device time than there was, its amounts and roots quite consistent."""
        if not isinstance(order.message, messages.ReceiptSent):
            return [order]
        factor = self.world.random.choice((2, 1_000))
        lines = tuple(
            replace(line, device_ms=line.device_ms * factor, amount=line.amount * factor)
            for line in order.message.lines
        )
        total = sum(line.amount for line in lines)
        changed = replace(order, message=replace(order.message, lines=lines))
        return self._changed_receipt(changed, amount_total=total, lines_root=root_of(lines))

    def _forged_total(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.ReceiptSent):
            return [order]
        return self._changed_receipt(order, amount_total=order.message.receipt.document.amount_total + 1_000)

    def _out_of_order(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.ReceiptSent) or self.world.chance(0.5):
            return [order]
        seq = self.world.random.choice((0, 2, 7, (1 << 64) - 1))
        return self._changed_receipt(order, seq=seq)

    def _free_of_evidence(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.ReceiptSent):
            return [order]
        proofs = tuple(replace(proof, steps=0) for proof in order.message.evidence)
        changed = replace(order, message=replace(order.message, evidence=proofs))
        return self._changed_receipt(changed, evidence=root_of(proofs))

    def _boastful(self, order: Send) -> list[Send]:
        """Devices that computed for longer than they were there, or behind walls that were never promised."""
        if not isinstance(order.message, messages.ReceiptSent):
            return [order]
        change: dict[str, Any] = self.world.random.choice(({"busy_ms": (1 << 60)}, {"tier": "vault"}))
        proofs = tuple(replace(proof, **change) for proof in order.message.evidence)
        changed = replace(order, message=replace(order.message, evidence=proofs))
        return self._changed_receipt(changed, evidence=root_of(proofs))

    def _fickle(self, order: Send) -> list[Send]:
        """It takes back whatever it has leased, for ever, and calls that a promise kept."""
        if isinstance(order.message, messages.RunReported):
            lease = order.message.lease
            end = _ended(lease, outcome="failed", kind="reclaimed", reason="mine again")
            word = messages.LeaseReclaimed(lease=lease, by_ms=self.now_ms() + LATER_MS, reason="mine again")
            return [self._say(order.to, word), self._say(order.to, end)]
        return [order]

    def _dear(self, order: Send) -> list[Send]:
        """Bids above the ceiling, or with a limit that is no product of time and price."""
        if not isinstance(order.message, messages.BidSent):
            return [order]
        bid = order.message.bid.document
        change: dict[str, int] = self.world.random.choice(
            ({"price_e18_per_device_ms": bid.price_e18_per_device_ms * 1_000}, {"max_total": bid.max_total * 50})
        )
        return [replace(order, message=messages.BidSent(bid=unsigned(replace(bid, **change))))]

    def _phantom(self, order: Send) -> list[Send]:
        """Many bids, and no lease ever confirmed."""
        if isinstance(order.message, messages.LeaseConfirmed):
            return []
        if not isinstance(order.message, messages.BidSent):
            return [order]
        bid = order.message.bid.document
        cheap = [
            replace(bid, price_e18_per_device_ms=1, max_total=1, nonce=self.world.random.randbytes(32))
            for _ in range(40)
        ]
        return [replace(order, message=messages.BidSent(bid=unsigned(each))) for each in cheap]

    def _silent(self, order: Send) -> list[Send]:
        """It bids and confirms, and then nothing is heard of it."""
        talks = (messages.BidSent, messages.LeaseConfirmed, messages.DeclineSent)
        return [order] if isinstance(order.message, talks) else []

    def _alive_only(self, order: Send) -> list[Send]:
        """It says that it lives, for ever, and does nothing."""
        talks = (messages.BidSent, messages.LeaseConfirmed, messages.DeclineSent, messages.RunReported)
        if isinstance(order.message, messages.LeaseConfirmed):
            self.world.after(1_000, self._go_on_living, order.to, order.message.lease, 0)
        return [order] if isinstance(order.message, talks) else []

    def _go_on_living(self, to: bytes, lease: bytes, number: int) -> None:
        if self.engine is not None and number < 2_000:
            sign = messages.RunReported(lease=lease, step=number, metrics=(), started=True)
            super().send(self._say(to, sign))
        if number < 2_000:
            self.world.after(5_000, self._go_on_living, to, lease, number + 1)

    def _poison(self, order: Send) -> list[Send]:
        """Checkpoints from the far future, and reasons that are as long as they may be."""
        if isinstance(order.message, messages.CheckpointStored):
            return [replace(order, message=replace(order.message, round=(1 << 32) - 1))]
        if isinstance(order.message, messages.RunEnded):
            return [replace(order, message=replace(order.message, outcome="failed", kind="lost", reason="é" * 4_000))]
        return [order]

    def _takes_and_leaves(self, order: Send) -> list[Send]:
        """It takes what is paid ahead, and then nothing is heard of it but that its channels are to stay open."""
        assert self.engine is not None
        paid = any(channel.cumulative > channel.earned for channel in self.engine.state.earning.live.values())
        if paid and not isinstance(order.message, messages.BidSent | messages.LeaseConfirmed | messages.DeclineSent):
            self.market.auditor.moves["words kept back by who was paid ahead"] += 1
            return []
        return [order]

    def _nosy(self, order: Send) -> list[Send]:
        """News of other people's leases, channels and tenders, beside its own."""
        leases = [lease for node in self.market.nodes.values() if node.engine for lease in node.engine.state.sale_of]
        theirs = self.world.random.choice([*sorted(leases), bytes(32)])
        strangers = [
            _ended(theirs, outcome="failed", kind="lost", reason="gone"),
            messages.LeaseConfirmed(lease=theirs),
            messages.LeaseReclaimed(lease=theirs, by_ms=0, reason="mine"),
            messages.RunKept(lease=theirs, kind="lost", reason="look", until_ms=(1 << 63) - 1),
            messages.LeaseRefused(lease=theirs, kind="mismatch", reason="no"),
            messages.RunStopOrdered(lease=theirs, reason="stop"),
            messages.RunOrdered(lease=theirs, round=0, checkpoint=None, mirrors=()),
            messages.DeliveryAccepted(lease=theirs),
            messages.ReceiptRefused(channel_id=theirs, seq=1, reason="no"),
            messages.BidReleased(bid=theirs, reason="no"),
        ]
        whom = self.world.random.choice(sorted(self.market.nodes))
        return [order, self._say(whom, self.world.random.choice(strangers))]

    def _meddle(self, order: Send) -> list[Send]:
        """Beside every word another about the same lease or channel: sound in form, and at quite the wrong time."""
        chance, lease = self.world.random, getattr(order.message, "lease", None)
        sum_of = chance.choice((0, 1, 1_000, (1 << 128) - 1))
        number = chance.choice((0, 1, 2, (1 << 32) - 1))
        strays: list[Any] = []
        if lease is not None:
            strays += [
                _ended(lease, outcome=chance.choice(("succeeded", "")), outputs=number),
                messages.RunReported(lease=lease, step=number, metrics=(), started=chance.random() < 0.5),
                messages.RoundContributed(lease=lease, round=number, weight_milli=0, state=BLOB),
                messages.CheckpointStored(lease=lease, round=number, step=number, checkpoint=BLOB),
                messages.OutputStored(lease=lease, path=str(chance.random()), blob=BLOB),
                messages.LeaseConfirmed(lease=lease),
                messages.LeaseRefused(lease=lease, kind="mismatch", reason="no, after all"),
                messages.LeaseReclaimed(lease=lease, by_ms=number, reason="mine again"),
                messages.RunKept(lease=lease, kind="lost", reason="look", until_ms=(1 << 63) - 1),
                messages.LeaseCancelled(lease=lease, reason="no, after all"),
                messages.RunOrdered(lease=lease, round=number, checkpoint=chance.choice((None, BLOB)), mirrors=()),
                messages.RunStopOrdered(lease=lease, reason="stop"),
                messages.RoundPublished(lease=lease, round=number, state=BLOB),
                messages.DeliveryAccepted(lease=lease),
            ]
        state = self.engine.state if self.engine else None
        for key in sorted([*state.paying.live, *state.earning.live]) if state else []:
            close = unsigned(CooperativeClose(channel_id=key, cumulative=sum_of))
            voucher = unsigned(Voucher(channel_id=key, cumulative=sum_of, statement=chance.randbytes(32)))
            strays += [
                messages.CloseProposed(currency=self.market.currency, close=close),
                messages.CloseAccepted(currency=self.market.currency, close=close),
                messages.VoucherSent(currency=self.market.currency, voucher=voucher),
                messages.ReceiptRefused(channel_id=key, seq=number, reason="no"),
            ]
        self._said.append(order)
        again = chance.choice(self._said)
        told = [order, again] if chance.random() < 0.3 else [order]
        return [*told, self._say(order.to, chance.choice(strays))] if strays else told

    def _garbage(self, order: Send) -> list[Send]:
        """Bytes that are no message."""
        noise = self.world.random.randbytes(self.world.random.randint(0, 60))
        self.post(order.to, noise, self.now_ms() + 1_000)
        return [order]

    def _jumps(self, order: Send) -> list[Send]:
        """No lie, but a clock that is set ahead while a run lives. It stays there."""
        if isinstance(order.message, messages.ReceiptSent) and self.skew_ms < JUMP_MS:
            self.skew_ms += JUMP_MS
        return [order]

    # Lying buyers.

    def _disputes(self, order: Send) -> list[Send]:
        """It would pay for half of each receipt only, or for what nobody said, and says so before it pays."""
        if not isinstance(order.message, messages.VoucherSent) or self.engine is None:
            return [order]
        channel = self.engine.state.paying.get(order.message.voucher.document.channel_id)
        if channel is None or channel.accepted is None:
            return [order]
        factor = self.world.random.choice((0, 1, 2, 4))
        payable = tuple(
            replace(line, device_ms=line.device_ms * factor // 2, amount=line.amount * factor // 2)
            for line in channel.accepted.lines
        )
        seq = channel.accepted.receipt.seq
        word = messages.ReceiptDisputed(channel_id=channel.channel_id, seq=seq, payable=payable, reason="not here")
        return [self._say(order.to, word), *([order] if self.world.chance(0.5) else [])]

    def _never_prepay(self, order: Send) -> list[Send]:
        """It pays for receipts, and never what it agreed to pay ahead of them."""
        if not isinstance(order.message, messages.VoucherSent):
            return [order]
        assert self.engine is not None
        channel = self.engine.state.paying.get(order.message.voucher.document.channel_id)
        if channel is None or channel.accepted is None:
            return []
        voucher = replace(order.message.voucher.document, cumulative=channel.metered)
        return [replace(order, message=replace(order.message, voucher=unsigned(voucher)))]

    def _never_vouch(self, order: Send) -> list[Send]:
        return [] if isinstance(order.message, messages.VoucherSent) else [order]

    def _vouch_less(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.VoucherSent):
            return [order]
        voucher = order.message.voucher.document
        changed = replace(voucher, cumulative=voucher.cumulative // 2)
        return [replace(order, message=messages.VoucherSent(currency=self.market.currency, voucher=unsigned(changed)))]

    def _vanish(self, order: Send) -> list[Send]:
        """Nothing more after the first start of a run."""
        if isinstance(order.message, messages.RunOrdered):
            self.lie = "gone"
            return [order]
        return [order]

    def _gone(self, _: Send) -> list[Send]:
        return []

    def _never_fund(self, order: Send) -> list[Send]:
        """It buys, and puts no money where its channels are."""
        return [order]

    def _award_twice(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.AwardSent):
            return [order]
        other = replace(order.message.award.document, nonce=self.world.random.randbytes(32))
        return [order, replace(order, message=replace(order.message, award=unsigned(other)))]

    def _other_channel(self, order: Send) -> list[Send]:
        if not isinstance(order.message, messages.AwardSent):
            return [order]
        other = replace(order.message.channel, salt=self.world.random.randbytes(32))
        return [replace(order, message=replace(order.message, channel=other))]

    def _hoard(self, order: Send) -> list[Send]:
        """Tenders and awards that would keep a provider's devices for ever."""
        far = (1 << 63) - 1
        if isinstance(order.message, messages.TenderSent) and self.world.chance(0.5):
            tender = replace(order.message.tender.document, bids_close_ms=far, expires_ms=far)
            return [order, replace(order, message=messages.TenderSent(tender=unsigned(tender)))]
        if isinstance(order.message, messages.TenderSent):
            needs = replace(order.message.tender.document.requirements, devices=0, cores_milli=0, memory_bytes=0)
            tender = replace(order.message.tender.document, requirements=needs)
            return [order, replace(order, message=messages.TenderSent(tender=unsigned(tender)))]
        if isinstance(order.message, messages.AwardSent):
            award = replace(order.message.award.document, start_by_ms=far, ends_ms=far)
            return [replace(order, message=replace(order.message, award=unsigned(award)))]
        return [order]

    def _close_early(self, order: Send) -> list[Send]:
        """It would have the channel closed at nothing, before and after every voucher."""
        if not isinstance(order.message, messages.VoucherSent | messages.RunOrdered):
            return [order]
        assert self.engine is not None
        told = [order]
        for key, channel in sorted(self.engine.state.paying.live.items()):
            close = messages.CloseProposed(
                currency=self.market.currency, close=unsigned(CooperativeClose(channel_id=key, cumulative=0))
            )
            told.append(self._say(channel.config.payee, close))
        return told

    def perform(self, effect: Any) -> None:
        """A liar need not fetch what it does not want."""
        if isinstance(effect, FetchWanted) and self.lie == "never_vouch":
            return
        if isinstance(effect, FundingWanted) and self.lie == "never_fund":
            return
        super().perform(effect)


PROVIDERS_LIES = (
    "inflated",
    "forged_total",
    "out_of_order",
    "free_of_evidence",
    "boastful",
    "fickle",
    "dear",
    "phantom",
    "takes_and_leaves",
    "silent",
    "alive_only",
    "poison",
    "meddle",
    "nosy",
    "garbage",
)
BUYERS_LIES = (
    "never_vouch",
    "never_prepay",
    "never_fund",
    "vouch_less",
    "vanish",
    "award_twice",
    "other_channel",
    "hoard",
    "close_early",
    "meddle",
    "nosy",
    "garbage",
)
