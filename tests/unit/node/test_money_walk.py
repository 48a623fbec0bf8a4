"""Random walks of a provider whose buyer says whatever it may say of its leases, at any time and in any order.

Beside what its engine says, of which some is lost, it refuses, disputes, pays, and calls leases over.
"""

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from kit.filed_ledger import records
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.market.effects import sealed, unsigned
from hansa.market.ledger_check import check_ledger
from hansa.market.receipts import receipt_digest
from hansa.node.engine.state import snapshot
from hansa.proto import messages
from hansa.proto.codec import encode
from hansa.proto.documents import CooperativeClose, Voucher
from hansa.proto.keccak import keccak256
from hansa.scheduler import run

SEEDS, STEPS, LEASES = range(60, 100), 60, 3
ENDED = ("settled", "stopped", "unpaid", "lapsed")
PENALTY_MS = 700
RARELY, OFTEN = 0.2, 0.5


class Walk:
    """One walk."""

    def __init__(self, seed):
        self.chance = chance = Random(seed)
        self.made = made = SmallMarket()
        self.rules = {
            "leases": chance.choice((("spot",), ("firm",), ("firm",))),
            "penalty_ms": chance.choice((1, PENALTY_MS, 10**9)),
            "max_unpaid": chance.choice((3_000, 10**9)),
            "voucher_timeout_ms": chance.choice((5_000, 10**8)),
            "prepay_ms": chance.choice((0, 0, 5_000)),
            "prepay_everybody": True,
        }
        made.add(BUYER_KEY)
        made.add(PROVIDER_KEY, devices=LEASES, **self.rules)
        made.submit(BUYER, of=spec(shards=LEASES, budget=10**8, max_prepay_ms=60_000))
        made.tender(BUYER, (PROVIDER,), shards=tuple(range(LEASES)))
        self.leases = list(self.state.sale_of)
        assert len(self.leases) == LEASES
        ((self.channel_id, _),) = self.state.earning.all()
        for lease in self.leases:
            made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
        loss = chance.choice((0.2, 0.5, 1))
        made.lost = lambda _to, _message: chance.random() < loss
        self.steps = 0

    @property
    def state(self):
        return self.made.engines[PROVIDER].state

    @property
    def channel(self):
        return self.state.earning.get(self.channel_id)

    def sales(self) -> Iterator:
        for lease in self.leases:
            yield self.state.sale_on(lease)

    def step(self):
        kinds = (self.work, self.work, self.pay, self.pay, self.end_a_run, self.dispute, self.talk, self.talk)
        self.chance.choice((*kinds, self.pass_time, self.restart))()
        self.check()

    def work(self):
        """A run reports a step, perhaps at once."""
        self.made.now_ms += self.chance.choice((0, 1, 800, 2_000))
        if self.state.runs.live:
            self.steps += 1
            lease = self.chance.choice(list(self.state.runs.live))
            news = run.RunProgressed(run=lease, step=self.steps, metrics=(), at_ms=self.made.now_ms)
            self.made.take(PROVIDER, news)

    def end_a_run(self):
        """One ends by itself, or because it was told to."""
        lease = self.chance.choice(self.leases)
        if lease in self.state.runs.live and self.chance.random() < OFTEN:
            failed = {"kind": self.chance.choice(("user-exception", "sandbox-lost")), "reason": ""}
            kinds = ((run.RunFinished, {}), (run.RunStopped, {}), (run.RunFailed, failed))
            kind, more = self.chance.choice(kinds)
            self.made.take(PROVIDER, kind(run=lease, at_ms=self.made.now_ms, **more))

    def say(self, message):
        self.made.tell(BUYER, PROVIDER, sealed(message, BUYER_KEY))

    def pay(self):
        """A voucher for the receipt that is out or the last one, and perhaps for more."""
        for of in (self.channel.out, self.channel.vouched):
            if of is not None and self.chance.random() < 0.5:
                cumulative = max(0, of.receipt.amount_total + self.chance.choice((0, 0, 0, -1, 1, 4_000)))
                voucher = Voucher(
                    channel_id=self.channel_id, cumulative=cumulative, statement=receipt_digest(of.receipt)
                )
                self.say(messages.VoucherSent(currency="USD", voucher=unsigned(voucher)))

    def dispute(self):
        """Of some lines a part, at the price with the penalty or without; of others what was vouched for."""
        out, before = self.channel.out, self.channel.vouched
        if out is None:
            return
        least = {line.lease: line for line in before.lines} if before else {}
        payable = []
        for line in out.lines:
            known = least.get(line.lease, replace(line, end_ms=line.start_ms, device_ms=0, amount=0))
            terms = self.channel.terms[line.lease]
            device_ms = self.chance.randint(self.chance.choice((0, known.device_ms)), line.device_ms)
            amount = self.chance.choice((terms.amount, terms.withholding))(device_ms)
            part = replace(line, device_ms=device_ms, amount=amount)
            payable.append(self.chance.choice((line, line, known, part)))
        words = {"channel_id": self.channel_id, "seq": out.receipt.seq, "reason": "clocks"}
        self.say(messages.ReceiptDisputed(payable=tuple(payable), **words))

    def talk(self):
        lease = self.chance.choice(self.leases)
        out = self.channel.out
        close = CooperativeClose(
            channel_id=self.channel_id, cumulative=self.chance.choice((self.channel.earned, self.channel.cumulative))
        )
        words = [
            messages.PenaltyReleased(lease=lease),
            messages.PenaltyReleased(lease=lease),
            messages.DeliveryAccepted(lease=lease),
            messages.DeliveryAccepted(lease=lease),
            messages.CloseProposed(currency="USD", close=unsigned(close)),
        ]
        if self.chance.random() < RARELY:
            words.append(messages.RunStopOrdered(lease=lease, reason="enough"))
        if out is not None:
            refused = messages.ReceiptRefused(channel_id=self.channel_id, seq=out.receipt.seq, reason="no")
            words += [refused, refused]
        self.say(self.chance.choice(words))

    def pass_time(self):
        self.made.pass_time(self.chance.choice((10, 1_000, 1_000, 1_000, 12_000, 700_000)), PROVIDER)

    def restart(self):
        engine = self.made.engines[PROVIDER]
        before = encode(snapshot(engine.state))
        if self.chance.random() < 0.5:
            engine.write_snapshot_if_due(now=True)
        self.made.engines[PROVIDER] = type(engine)(self.made.journals[PROVIDER])
        assert encode(snapshot(self.state)) == before, "the journal says what the daemon knew"
        self.made.start(PROVIDER, devices=LEASES, **self.rules)

    def check(self):
        """What must hold at every instant."""
        assert self.state.ledger.total() == 0
        assert -self.state.ledger.total("earned:") == self.channel.earned <= self.channel.cumulative
        vouched = {line.lease: line.amount for line in self.channel.vouched.lines} if self.channel.vouched else {}
        for sold in self.sales():
            if sold.phase not in ENDED:
                assert sold.vouched == vouched.get(sold.lease, 0)
        numbers: dict[int, bytes] = {}
        for sent in self.made.heard(messages.ReceiptSent):
            found = receipt_digest(sent.receipt.document)
            assert numbers.setdefault(sent.receipt.document.seq, found) == found, "no number stands on two receipts"

    def end(self):
        """Everything that lives ends, and all that was metered was vouched for or written off."""
        for _ in range(6):
            for lease in list(self.state.runs.live):
                self.made.take(PROVIDER, run.RunStopped(run=lease, at_ms=self.made.now_ms))
            self.made.pass_time(10**7, PROVIDER)
            self.check()
        lost = 0
        for sold in self.sales():
            assert sold.phase in ENDED
            lost += sold.written_off
            if not self.rules["prepay_ms"]:
                assert sold.vouched + sold.written_off == sold.lined_amount + sold.disputed
        assert self.state.ledger.balance(f"unpaid:{BUYER.hex()}") == lost
        chain, rows = bytes(32), []
        seen = {record.id: record for record in records(self.made, PROVIDER_KEY)}
        for position, record in enumerate(seen.values(), start=1):
            body = encode(record)
            chain = keccak256(chain + body)
            rows.append((position, record.id, body, chain))
        report = check_ledger(rows, owner=PROVIDER)
        assert report.holds, report.first_fault


@pytest.mark.parametrize("seed", SEEDS)
def test_no_words_of_a_buyer_stop_its_provider_or_make_money(seed):
    walk = Walk(seed)
    for _ in range(STEPS):
        walk.step()
    walk.end()
