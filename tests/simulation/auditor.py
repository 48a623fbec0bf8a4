"""The auditor: it trusts no machine. What is owed it works out from what was said and what stands in the journals.

While the world runs it holds every honest node to what must hold at every instant; at the end it recomputes each
channel from the signed documents alone, and the device time from the executors' own news.
"""

from collections import Counter
from itertools import pairwise
from typing import Any

from simulation.bidding import check_bidding
from simulation.parts import WHOLE, check_charges, check_promises, part_milli

from hansa.market.earning_channel import EarningChannel
from hansa.market.firm_leases import is_forfeited
from hansa.market.ledger import Ledger, fold
from hansa.market.why import BID, NO_ANSWER
from hansa.node.api.market_views import why_view
from hansa.node.engine import events
from hansa.node.engine.state import NodeState
from hansa.proto import messages
from hansa.proto.codec import decode
from hansa.proto.currency import currency_of
from hansa.proto.documents import MeterLine, Receipt, channel_id
from hansa.proto.market_documents import Award, Bid, Evidence, Tender
from hansa.proto.network import DOMAIN
from hansa.proto.signing import checksum_address
from hansa.proto.splits import splits_hash
from hansa.proto.typed_data import digest
from hansa.scheduler import run
from hansa.scheduler.job_spec import JobSpec

ENDED_JOB = ("succeeded", "failed", "cancelled")
ENDED_SALE = ("settled", "lapsed", "declined", "stopped", "unpaid")
FIRST_LIFE = 1
"""Of a daemon that was never started again."""
ENDED_PURCHASE = ("settled", "unfilled", "cancelled")
LONGEST_STEP_MS = 1_600
STOP_GRACE_MS = 3_000
LEAVE_SLACK_MS = 3_000
FETCH_PATIENCE = 3


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
        self.least_funds: dict[bytes, int] = {}
        self.bids: dict[bytes, Bid] = {}
        self.awards: dict[bytes, Award] = {}
        self.channels: dict[bytes, Any] = {}
        self.receipts: dict[bytes, tuple[Receipt, tuple[MeterLine, ...], tuple[Evidence, ...]]] = {}
        self.receipt_of: dict[tuple[bytes, int], bytes] = {}
        self.voucher_of: dict[bytes, tuple[int, bytes]] = {}
        self.topped_up: Counter[bytes] = Counter()
        self.received: dict[bytes, int] = {}
        self.paid_for: set[tuple[bytes, bytes]] = set()
        self.most_ahead: dict[bytes, int] = {}
        self.over: set[bytes] = set()
        self.released: set[bytes] = set()
        self.unpaid_between_honest = 0
        self.unfilled_jobs = 0
        self.called: set[tuple[bytes, str]] = set()
        self.orders: dict[bytes, messages.RunOrdered] = {}
        self.mirrored: set[tuple[bytes, Any]] = set()
        self.given_up: dict[bytes, tuple[int, int]] = {}
        self.began_ms: dict[bytes, int] = {}
        self.gone_ms: dict[bytes, int] = {}
        self.moves: Counter[str] = Counter()
        self.standstills_ms: list[int] = []

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
                self.channels[channel_id(currency_of(self.market.currency).domain, channel)] = channel
            case messages.ReceiptSent(receipt=receipt, lines=lines, evidence=evidence):
                found = digest(DOMAIN, receipt.document)
                self.receipts[found] = (receipt.document, lines, evidence)
                key = (receipt.document.channel_id, receipt.document.seq)
                assert not node.honest or self.receipt_of.setdefault(key, found) == found, "two receipts of one number"
            case messages.VoucherSent(voucher=voucher) if node.honest:
                document = voucher.document
                before, _ = self.voucher_of.get(document.channel_id, (0, b""))
                assert document.cumulative >= before, "a voucher took money back"
                self._check_ahead(node, document, before)
                self.voucher_of[document.channel_id] = (document.cumulative, document.statement)

            case messages.MirrorHeld(checkpoint=checkpoint):
                self.mirrored.add((node.account, checkpoint))
            case messages.RunOrdered(lease=lease) if node.honest:
                self.orders.setdefault(lease, message)
                named = {(mirror, message.checkpoint) for mirror in message.mirrors}
                assert named <= self.mirrored, "a mirror is named that never said it had the checkpoint"
                self.moves["starts for which a mirror was named"] += bool(named)
            case messages.PenaltyReleased(lease=lease) if node.honest:
                self.released.add(lease)
            case messages.DeliveryAccepted(lease=lease) if node.honest:
                self.over.add(lease)
            case messages.RunStopOrdered(lease=lease) if node.honest:
                self.over.add(lease)
                self.given_up.setdefault(lease, (len(node.journal._events), node.now_ms()))

    def _check_ahead(self, node: Any, voucher: Any, before: int) -> None:
        """A voucher says its receipt's sum, or that and what is paid ahead for leases that live; never more."""
        receipt = self.receipts[voucher.statement][0] if any(voucher.statement) else None
        assert receipt is None or receipt.channel_id == voucher.channel_id
        received = receipt.amount_total if receipt else 0
        last = self.received.get(voucher.channel_id, 0)
        assert received >= last, "a voucher for an older receipt than the one before it"
        assert received == last or (voucher.channel_id, voucher.statement) not in self.paid_for
        self.received[voucher.channel_id] = received
        self.paid_for.add((voucher.channel_id, voucher.statement))
        ahead = voucher.cumulative - received
        assert ahead >= 0, "a voucher for less than its receipt"
        self.most_ahead[voucher.channel_id] = max(ahead, self.most_ahead.get(voucher.channel_id, 0))
        if voucher.cumulative > before and ahead:
            live = [
                self.bids[award.bid].prepay
                for lease, award in self.awards.items()
                if award.channel_id == voucher.channel_id and award.signer == node.account and lease not in self.over
            ]
            assert ahead <= sum(live), f"{ahead} is paid ahead, and {sum(live)} is all that live leases ask for"
            self.moves["vouchers that ran ahead"] += 1

    def note_run(self, event: Any) -> None:
        """An executor tells of a run, whether or not its daemon lives to write it down."""
        if isinstance(event, run.RunStarted):
            self.began_ms.setdefault(event.run, self.market.world.now_ms)
        elif isinstance(event, run.RunFailed | run.RunStopped | run.RunFinished):
            self.gone_ms[event.run] = self.market.world.now_ms
        elif isinstance(event, run.RunKept):
            self.moves["runs kept"] += 1

    def check_state(self, node: Any) -> None:
        """After every batch of an honest node."""
        if not node.honest:
            return
        state: NodeState = node.engine.state
        assert state.ledger.total() == 0, "the books do not sum to zero"
        check_promises(state)
        withdrawn = state.capacity.withheld.keys()
        assert not withdrawn & {device.id for device in state.capacity.free}, "a withdrawn device would be sold"
        for bid, entry in state.capacity.allotments.items():
            if withdrawn & set(entry.devices):
                held = state.sales.get(bid)
                assert held is not None
                assert held.phase == "running", "a withdrawn device is promised to who does not compute on it"
                assert held.reclaim_by_ms, "who computes on a withdrawn device was not told to leave"
                late_ms = state.at_ms - held.reclaim_by_ms
                assert late_ms <= LEAVE_SLACK_MS + STOP_GRACE_MS, f"a run is {late_ms} ms too long on its devices"
        check_bidding(node, self.least_funds)
        self._check_funds(state)
        for sold in state.sales.live.values():
            if sold.phase == "running":
                price = -(-sold.bid.price_e18_per_device_ms * len(sold.bid.devices) * part_milli(sold.bid) // WHOLE)
                slack_ms = max(sold.bid.meter_interval_ms, LONGEST_STEP_MS) + LONGEST_STEP_MS + STOP_GRACE_MS
                most = sold.bid.max_unpaid + floor_amount(slack_ms, price) + 1
                unpaid = f"{sold.unpaid} is unpaid, and {most} is the most that may be"
                assert sold.unpaid <= most or _is_covered(state, sold.channel_id), unpaid
                assert sold.ahead <= sold.bid.prepay, "more is paid ahead than was asked for"

    def _check_funds(self, state: NodeState) -> None:
        """On a chain: nothing runs before there is money for it, and nothing ever runs up more than lies there."""
        if not currency_of(self.market.currency).is_on_chain:
            return
        for key, channel in state.earning.live.items():
            deposit = self.market.bank.deposits[key]
            ran_up = _ran_up(state, channel)
            assert ran_up <= deposit, f"{ran_up} ran up, and {deposit} is there"
            assert channel.earned <= deposit, "a receipt was vouched for, and there is less"
            trusted = sum(sold.ahead for lease in channel.live if (sold := state.sale_on(lease)) is not None)
            assert channel.earned + trusted <= deposit or not trusted, "work is done for a promise that nothing covers"

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
                self._check_moves(node)
                self._check_explained(node)

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
                assert paid is None or paid.metered == earned.earned, "buyer and provider disagree"
                assert paid is None or paid.cumulative >= earned.cumulative, "a provider has more than was signed"
        for _, sold in state.sales.all():
            self.unpaid_between_honest += sold.phase == "unpaid" and self._honest(sold.buyer)

    def _check_explained(self, node: Any) -> None:
        """Every job that found nobody says so, and says of everybody who was asked what became of it."""
        state: NodeState = node.engine.state
        for key, of in state.jobs.all():
            if not of.reason.startswith("unfilled"):
                continue
            self.unfilled_jobs += 1
            view = why_view(state, of)
            asked = {
                checksum_address(account)
                for _, bought in state.purchases.all()
                if bought.tender.job == key
                for account in bought.invited
            }
            assert view["unfilled"], "a job that found nobody is explained"
            assert view["summary"]
            assert {answer["provider"] for answer in view["answers"]} == asked
            assert all(answer["reason"] or answer["outcome"] == BID for answer in view["answers"])
            waiting = {checksum_address(letter.to) for letter in node.letters()}
            for answer in view["answers"]:
                # A daemon that died forgets what it could not bring, and says it again only as long as bidding is open.
                if answer["outcome"] == NO_ANSWER and node.life == FIRST_LIFE and answer["provider"] not in waiting:
                    assert (key, answer["provider"]) in self.called, "who never got a tender is said to be silent"

    def _check_vouchers(self, node: Any) -> None:
        """What an honest buyer signed: each voucher's sum is its receipt's lines, each line its lease's price."""
        spent: dict[bytes, int] = {}
        owed: dict[bytes, int] = {}
        for key, (cumulative, statement) in sorted(self.voucher_of.items()):
            channel = self.channels[key]
            if channel.payer != node.account:
                continue
            if not any(statement):
                continue  # Nothing was received for it; what it pays ahead was looked at when it was said.
            receipt, lines, evidence = self.receipts[statement]
            assert receipt.channel_id == key
            total = receipt.amount_total
            assert cumulative >= total == sum(line.amount for line in lines), "a sum is wrong"
            splits = next(
                self.tenders[self.bids[award.bid].tender].splits
                for award in self.awards.values()
                if award.channel_id == key and award.signer == node.account
            )
            assert splits_hash(splits) == channel.splits_hash
            parts = {split.account: total * split.bps // 10_000 for split in splits}
            for account, part in (*parts.items(), (channel.payee, total - sum(parts.values()))):
                owed[account] = owed.get(account, 0) + part
            for line, proof in zip(lines, evidence, strict=True):
                award = self.awards[line.lease]
                assert proof.busy_ms <= line.device_ms, "paid for use that was not metered"
                assert proof.tier == self.bids[award.bid].tier, "paid for another isolation than was promised"
                bid = self.bids[award.bid]
                tender = self.tenders[bid.tender]
                assert award.channel_id == key
                assert bid.signer == channel.payee
                assert award.signer == node.account
                whole = min(floor_amount(line.device_ms, bid.price_e18_per_device_ms), bid.max_total)
                withholding = max(0, whole - bid.penalty)
                assert bid.lease == "firm" or not bid.penalty
                assert tender.lease in ("any", bid.lease), "another lease than was tendered for"
                if line.amount != withholding:
                    assert line.amount == whole, "another price than was agreed"
                    assert line.lease in self.released, "a penalty was paid before the lease had ended well"
                if line.lease in self.released:
                    self.moves["firm leases that ended well"] += 1
                elif bid.penalty:
                    self.moves["firm leases that kept their penalty back"] += 1
                assert bid.price_e18_per_device_ms <= tender.price_ceiling_e18_per_device_ms, "above the ceiling"
                assert line.device_ms * WHOLE <= (line.end_ms - line.start_ms) * len(bid.devices) * part_milli(bid)
                wanted = [clause.values for clause in tender.requirements.clauses if clause.name == "share"]
                given = [(fact.value,) for fact in bid.facts if fact.name == "share"]
                assert wanted == given, "another part of a device than was tendered for"
                self.moves["parts of devices that were paid for"] += bool(given)
                spent[tender.job] = spent.get(tender.job, 0) + line.amount
        for job, amount in spent.items():
            _, spec = self.jobs[job]
            allowed = spec.budget + self.topped_up[job]
            assert amount <= allowed, f"a job cost {amount} and its budget is {allowed}"
            assert node.engine.state.ledger.balance(f"spend:{job.hex()}") == amount, "the books say something else"
        for provider, amount in owed.items():
            books = node.engine.state.ledger
            total = books.balance(f"owed:{provider.hex()}") + books.balance(f"paid:{provider.hex()}")
            assert total == -amount, "what is owed is not what was signed"

    def _check_meters(self, node: Any) -> None:
        """What an honest provider charged is never more than its executor's own news say that it worked."""
        worked = _worked_ms(node)
        latest: dict[bytes, MeterLine] = {}
        for receipt, lines, _ in self.receipts.values():
            if self.channels[receipt.channel_id].payee == node.account:
                for line in lines:
                    if line.device_ms >= getattr(latest.get(line.lease), "device_ms", 0):
                        latest[line.lease] = line
        state: NodeState = node.engine.state
        check_charges((line, self.bids[self.awards[lease].bid]) for lease, line in latest.items())
        for lease, line in latest.items():
            sold = state.sale_on(lease)
            if sold is None:
                continue
            most = worked.get(lease, 0) * len(sold.bid.devices) * part_milli(sold.bid) // WHOLE
            assert line.device_ms <= most, "charged for more than was worked"
            assert sold.vouched <= line.amount, "vouched for more than was metered"
            # Who left its devices to an honest buyer until the end has charged for all of it.
            kept = not is_forfeited(outcome=sold.outcome, kind=sold.kind, taken_back=sold.reclaim_by_ms > 0)
            if lease in self.released and kept and sold.phase in ("settled", "stopped") and self._honest(sold.buyer):
                assert line.amount == sold.accrued, "a penalty was released and never charged"
                self.moves["firm leases that were charged whole"] += sold.bid.penalty > 0

    def _check_moves(self, node: Any) -> None:
        """A shard whose devices were taken back goes on from the newest checkpoint that its buyer could get.

        Read from the buyer's journal and from what it said, for leases with honest providers. Where the newest one
        that was announced had not come when the lease was given up, it was waited for.
        """
        told: dict[bytes, list[tuple[int, Any]]] = {}
        for index, body in enumerate(node.journal._events):
            event = decode(body, events.NodeEvent, limit_bytes=1 << 22)
            about = event.message if isinstance(event, events.MessageArrived) else event
            if isinstance(about, messages.CheckpointStored | messages.RunEnded | messages.LeaseReclaimed):
                told.setdefault(about.lease, []).append((index, event))
            elif isinstance(event, events.BlobFetched):
                told.setdefault(event.lease, []).append((index, event))
        for lease, follower in self._followers(node):
            if lease in told and self._honest(self.bids[self.awards[lease].bid].signer):
                self._check_move(lease, follower, told[lease])

    def _followers(self, node: Any) -> list[tuple[bytes, bytes]]:
        """Leases of this buyer that were ordered to start, each with the one that came after it on its shard."""
        by_shard: dict[tuple[bytes, int], list[bytes]] = {}
        for lease in self.orders:
            award = self.awards.get(lease)
            if award is not None and award.signer == node.account:
                job = self.tenders[self.bids[award.bid].tender].job
                by_shard.setdefault((job, award.shard), []).append(lease)
        return [pair for leases in by_shard.values() for pair in pairwise(leases)]

    def _check_move(self, lease: bytes, follower: bytes, told: list[tuple[int, Any]]) -> None:
        given_up, given_up_ms = self.given_up[lease]
        before = [(index, event) for index, event in told if index < given_up]
        ends = [(index, event) for index, event in before if _says(event, messages.RunEnded)]
        if not ends or not ends[0][1].message.kind.startswith("reclaimed"):
            return
        ended, end = ends[0]
        self.moves["shards moved after a reclaim"] += 1
        self.moves[f"of these, {end.message.kind}"] += 1
        stored = [(index, event.message) for index, event in before if _says(event, messages.CheckpointStored)]
        # What overtook the word of the end was still to be waited for; what was overtaken by it may have come too late.
        in_time = [message for index, message in stored if index < ended]
        late = {message.checkpoint for index, message in stored if index > ended}
        here = {event.blob for _, event in before if isinstance(event, events.BlobFetched)}
        order = self.orders[follower]
        if order.checkpoint in late & here:
            self.moves["of these, from a checkpoint that came after the word of the end"] += 1
        elif not in_time:
            assert order.checkpoint == self.orders[lease].checkpoint, "a shard lost a checkpoint that it had"
            self.moves["of these, without a checkpoint of the last lease"] += 1
        else:
            newest = max(in_time, key=lambda message: (message.round, message.step)).checkpoint
            if newest in here:
                assert order.checkpoint == newest, "a reclaimed shard does not go on from its newest checkpoint"
                self.moves["of these, from the newest checkpoint of the last lease"] += 1
            else:
                job = self.tenders[self.bids[self.awards[lease].bid].tender].job
                waited_ms = given_up_ms - end.at_ms
                patience_ms = FETCH_PATIENCE * self.jobs[job][1].silence_ms
                assert waited_ms >= patience_ms, f"the newest checkpoint was waited for {waited_ms} ms only"
                self.moves["of these, without the newest checkpoint, which never came"] += 1
        if lease in self.gone_ms and follower in self.began_ms:
            self.standstills_ms.append(self.began_ms[follower] - self.gone_ms[lease])


def _says(event: Any, kind: type) -> bool:
    return isinstance(event, events.MessageArrived) and isinstance(event.message, kind)


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


def _is_covered(state: NodeState, channel_id: bytes) -> bool:
    """Whether vouchers are worth all that ran up on a channel.

    What is paid ahead is the channel's. When a receipt of one lease is paid for, another's part of it may be gone until
    the next voucher; that one then pauses, and nobody is owed anything.
    """
    channel = state.earning.live.get(channel_id)
    return channel is not None and channel.cumulative >= _ran_up(state, channel)


def _ran_up(state: NodeState, channel: EarningChannel) -> int:
    """What ran up on a channel, in receipts or not."""
    ran_up = {lease: line.amount for lease, line in channel.lines.items()}
    for lease in channel.terms:
        sold = state.sale_on(lease)
        if sold is not None:
            ran_up[lease] = max(sold.accrued, ran_up.get(lease, 0))
    return sum(ran_up.values())
