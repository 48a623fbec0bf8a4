"""The auditor: it trusts no machine. What is owed it works out from what was said and what stands in the journals.

While the world runs it holds every honest node to what must hold at every instant; at the end it recomputes each
channel from the signed documents alone, and the device time from the executors' own news.
"""

from typing import Any

from hansa.market.ledger import Ledger, fold
from hansa.node import events
from hansa.node.state import NodeState
from hansa.proto import messages
from hansa.proto.codec import decode
from hansa.proto.documents import MeterLine, Receipt, channel_id
from hansa.proto.market_documents import Award, Bid, Tender
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.scheduler import run
from hansa.scheduler.job_spec import JobSpec

ENDED_JOB = ("succeeded", "failed", "cancelled")
ENDED_SALE = ("settled", "lapsed", "declined", "stopped", "unpaid")
ENDED_PURCHASE = ("settled", "unfilled", "cancelled")
LONGEST_STEP_MS = 1_600
STOP_GRACE_MS = 3_000


def floor_amount(device_ms: int, price_e18: int) -> int:
    """The price of device time, worked out here and not by the code that is audited."""
    return device_ms * price_e18 // 10**18


class Auditor:
    """Collects everything that honest nodes say, and judges."""

    def __init__(self, market: Any) -> None:
        """An auditor of this market."""
        self.market = market
        self.healed_ms = 0
        self.jobs: dict[bytes, tuple[Any, JobSpec]] = {}
        self.tenders: dict[bytes, Tender] = {}
        self.bids: dict[bytes, Bid] = {}
        self.awards: dict[bytes, Award] = {}
        self.channels: dict[bytes, Any] = {}
        self.receipts: dict[bytes, tuple[Receipt, tuple[MeterLine, ...]]] = {}
        self.receipt_of: dict[tuple[bytes, int], bytes] = {}
        self.voucher_of: dict[bytes, tuple[int, bytes]] = {}
        self.unpaid_between_honest = 0

    def _honest(self, account: bytes) -> bool:
        return bool(self.market.nodes[account].honest)

    # While it happens.

    def note_message(self, node: Any, message: Any) -> None:
        """Something is said, by whomever: the last word of each kind is remembered, and lies are only of liars."""
        match message:
            case messages.TenderSent(tender=tender):
                self.tenders[digest(DOMAIN, tender.document)] = tender.document
            case messages.BidSent(bid=bid):
                self.bids[digest(DOMAIN, bid.document)] = bid.document
            case messages.AwardSent(award=award, channel=channel):
                self.awards[digest(DOMAIN, award.document)] = award.document
                self.channels[channel_id(DOMAIN, channel)] = channel
            case messages.ReceiptSent(receipt=receipt, lines=lines):
                found = digest(DOMAIN, receipt.document)
                self.receipts[found] = (receipt.document, lines)
                key = (receipt.document.channel_id, receipt.document.seq)
                assert not node.honest or self.receipt_of.setdefault(key, found) == found, "two receipts of one number"
            case messages.VoucherSent(voucher=voucher) if node.honest:
                document = voucher.document
                before, statement = self.voucher_of.get(document.channel_id, (0, b""))
                assert document.cumulative >= before, "a voucher took money back"
                assert document.cumulative > before or statement in (b"", document.statement) or before == 0, (
                    "one sum was vouched for two receipts"
                )
                self.voucher_of[document.channel_id] = (document.cumulative, document.statement)

    def check_state(self, node: Any) -> None:
        """After every batch of an honest node."""
        if not node.honest:
            return
        state: NodeState = node.engine.state
        assert state.ledger.total() == 0, "the books do not sum to zero"
        promised = [device for entry in state.capacity.allotments.values() for device in entry.devices]
        assert len(promised) == len(set(promised)), "a device is promised twice"
        for sold in state.sales.live.values():
            if sold.phase == "running":
                price = sold.bid.price_e18_per_device_ms * len(sold.bid.devices)
                slack_ms = max(sold.bid.meter_interval_ms, LONGEST_STEP_MS) + LONGEST_STEP_MS + STOP_GRACE_MS
                most = sold.bid.max_unpaid + floor_amount(slack_ms, price) + 1
                assert sold.accrued - sold.vouched <= most, (
                    f"{sold.accrued - sold.vouched} is unpaid, and {most} is the most that may be"
                )

    def check_books(self, node: Any, kept: Ledger) -> None:
        """At every start: the store has what the journal moved, to the unit."""
        if node.engine.state.account != bytes(20):
            assert kept.balances == node.engine.state.ledger.balances, "store and journal disagree about money"

    # Whether everything has come to its end.

    def unfinished(self) -> list[str]:
        """What honest nodes still wait for; empty once all is over."""
        waiting: list[str] = []
        for account, node in self.market.nodes.items():
            if not node.honest:
                continue
            if node.engine is None:
                waiting.append(f"{account.hex()[:6]} is down")
                continue
            state: NodeState = node.engine.state
            who = account.hex()[:6]
            waiting += [f"{who} job {of.phase}" for of in state.jobs.live.values()]
            waiting += [f"{who} purchase {bought.phase}" for bought in state.purchases.live.values()]
            waiting += [f"{who} sale {sold.phase}" for sold in state.sales.live.values()]
            waiting += [f"{who} run {entry.phase}" for entry in state.runs.live.values()]
            waiting += [f"{who} device promised" for _ in state.capacity.allotments]
            for channel in state.paying.live.values():
                if self._honest(channel.config.payee):
                    waiting.append(f"{who} pays on a {channel.phase} channel, refused: {channel.refused!r}")
            for earned in state.earning.live.values():
                if self._honest(earned.config.payer) and (earned.out is not None or earned.voucher is not None):
                    waiting.append(f"{who} earns on a {earned.phase} channel, out: {earned.out is not None}")
        for job, (buyer, _) in self.jobs.items():
            if buyer.honest and (buyer.engine is None or buyer.engine.state.jobs.get(job) is None):
                waiting.append("a job was never taken")
        return waiting

    def all_over(self) -> bool:
        """Whether nothing honest waits any more."""
        return not self.unfinished()

    # At the end.

    def check_end(self, *, over: bool) -> None:
        """Liveness, and then every sum once more from the documents."""
        assert over, f"still waiting: {'; '.join(self.unfinished())}"
        for node in self.market.nodes.values():
            if node.honest:
                self._check_ends(node)
                self._check_vouchers(node)
                self._check_meters(node)

    def _check_ends(self, node: Any) -> None:
        state: NodeState = node.engine.state
        for _, of in state.jobs.all():
            assert of.phase == "succeeded" or of.reason, "a job ended without a reason"
        assert not node.executor.scripts, "a run goes on without a lease"
        assert fold(node.ledger.entries.values()).balances == state.ledger.balances
        for key, earned in state.earning.all():
            payer = self.market.nodes[earned.config.payer]
            if payer.honest:
                paid = payer.engine.state.paying.get(key)
                assert paid is not None or earned.cumulative == 0
                assert paid is None or paid.cumulative == earned.cumulative, "buyer and provider disagree"
        for _, sold in state.sales.all():
            self.unpaid_between_honest += sold.phase == "unpaid" and self._honest(sold.buyer)

    def _check_vouchers(self, node: Any) -> None:
        """What an honest buyer signed: each voucher's sum is its receipt's lines, each line its lease's price."""
        spent: dict[bytes, int] = {}
        owed: dict[bytes, int] = {}
        for key, (cumulative, statement) in sorted(self.voucher_of.items()):
            channel = self.channels[key]
            if channel.payer != node.account:
                continue
            receipt, lines = self.receipts[statement]
            assert receipt.channel_id == key
            assert receipt.amount_total == cumulative == sum(line.amount for line in lines), "a sum is wrong"
            owed[channel.payee] = owed.get(channel.payee, 0) + cumulative
            for line in lines:
                award = self.awards[line.lease]
                bid = self.bids[award.bid]
                tender = self.tenders[bid.tender]
                assert award.channel_id == key
                assert bid.signer == channel.payee
                assert award.signer == node.account
                assert line.amount == min(floor_amount(line.device_ms, bid.price_e18_per_device_ms), bid.max_total)
                assert bid.price_e18_per_device_ms <= tender.price_ceiling_e18_per_device_ms, "above the ceiling"
                assert line.device_ms <= (line.end_ms - line.start_ms) * len(bid.devices)
                spent[tender.job] = spent.get(tender.job, 0) + line.amount
        for job, amount in spent.items():
            _, spec = self.jobs[job]
            assert amount <= spec.budget, f"a job cost {amount} and its budget is {spec.budget}"
            assert node.engine.state.ledger.balance(f"spend:{job.hex()}") == amount, "the books say something else"
        for provider, amount in owed.items():
            books = node.engine.state.ledger
            total = books.balance(f"owed:{provider.hex()}") + books.balance(f"paid:{provider.hex()}")
            assert total == -amount, "what is owed is not what was signed"

    def _check_meters(self, node: Any) -> None:
        """What an honest provider charged is never more than its executor's own news say that it worked."""
        worked = _worked_ms(node)
        latest: dict[bytes, MeterLine] = {}
        for receipt, lines in self.receipts.values():
            if self.channels[receipt.channel_id].payee == node.account:
                for line in lines:
                    if line.device_ms >= getattr(latest.get(line.lease), "device_ms", 0):
                        latest[line.lease] = line
        state: NodeState = node.engine.state
        for lease, line in latest.items():
            sold = state.sale_on(lease)
            if sold is None:
                continue
            assert line.device_ms <= worked.get(lease, 0) * len(sold.bid.devices), "charged for more than was worked"
            assert sold.vouched <= line.amount, "vouched for more than was metered"


def _worked_ms(node: Any) -> dict[bytes, int]:
    """How long each run of a node computed, by its executor's news alone."""
    worked: dict[bytes, int] = {}
    since: dict[bytes, int] = {}
    heard: dict[bytes, int] = {}
    for body in node.journal._events:
        event = decode(body, events.NodeEvent, limit_bytes=1 << 22)
        if isinstance(event, events.Started):
            for lease, begun in since.items():
                worked[lease] = worked.get(lease, 0) + heard[lease] - begun
            since.clear()
        if not isinstance(event, events.RunNews):
            continue
        lease = event.run
        heard[lease] = event.at_ms
        if isinstance(event, run.RunStarted | run.RunResumed):
            since.setdefault(lease, event.at_ms)
        elif isinstance(event, run.RunPaused | run.RunFinished | run.RunFailed | run.RunStopped) and lease in since:
            worked[lease] = worked.get(lease, 0) + event.at_ms - since.pop(lease)
    return worked
