"""One whole market from one seed: nodes, jobs, chaos, healing, and the auditor's verdict."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from simulation.auditor import Auditor
from simulation.bank import CHAIN_CURRENCY, Bank
from simulation.debts import CREDIT_LIMITS, check_ledgers
from simulation.liars import BUYERS_LIES, PROVIDERS_LIES, LyingNode
from simulation.parts import Parts
from simulation.sim_node import SimNode, derived_key
from simulation.world import EPOCH_MS, Faults, World, draw_faults

from hansa.market.pricing import ProviderTerms
from hansa.node.engine import events
from hansa.proto.blob import blob_ref
from hansa.proto.market_documents import LEASE_ANY, LEASE_FIRM, LEASE_SPOT, Device, Requirements
from hansa.proto.splits import Split
from hansa.proto.units import price_per_hour_to_e18
from hansa.proto.workload import Parameter
from hansa.scheduler.job_spec import JobSpec

CHAOS_MS = 150_000
LEASES = ((LEASE_SPOT,), (LEASE_FIRM,), (LEASE_FIRM, LEASE_SPOT), (LEASE_SPOT, LEASE_FIRM))
HEALING_MS = 150 * 60_000
"""No honest machine may need longer to end once nothing goes wrong any more, though providers that only say that they
live have each of its leases to the end, one after the other, and a penalty may be waited for an hour after that."""
GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of one world."""

    seed: int
    digest: str
    jobs: dict[str, int]
    sales: dict[str, int]
    crashes: int
    packets: int
    simulated_ms: int
    ignored: dict[str, int]
    moves: dict[str, int]
    standstills_ms: tuple[int, ...]
    cuts: dict[str, int]


class Market:
    """All nodes of a world, and what they want."""

    PROVIDERS, BUYERS, JOBS = (3, 6), (1, 2), (1, 4)
    LIAR: type[SimNode] = LyingNode

    def __init__(self, seed: int, faults: Faults | None = None, *, jobs: int | None = None) -> None:
        """Draw a market."""
        self.seed = seed
        self.world = World(seed, Faults())
        self._parts = Parts(seed)
        chance = self.world.random
        self.world.faults = faults if faults is not None else draw_faults(chance)
        self.auditor = Auditor(self)
        self.bank = Bank(self.world, self)
        self.cuts: Counter[str] = Counter()
        self.currency = CHAIN_CURRENCY if chance.random() < 0.4 else "USD"
        self.nodes: dict[bytes, SimNode] = {}
        self.progress_in: dict[bytes, tuple[int, int]] = {}
        self._providers: list[bytes] = []
        self.buyers: list[bytes] = []
        for _ in range(chance.randint(*self.PROVIDERS)):
            self._add_node(provides=True)
        for _ in range(chance.randint(*self.BUYERS)):
            self._add_node(provides=False)
        # A node that lends may buy too, even from itself.
        if chance.random() < 0.3:
            self.buyers.append(self._providers[0])
        for node in self.nodes.values():
            self.world.after(chance.randint(0, 500), node.boot)
        for number in range(jobs if jobs is not None else chance.randint(*self.JOBS)):
            self._plan_job(number)
        for at_ms in range(10_000, CHAOS_MS, 10_000):
            self.world.after(at_ms, self._maybe_cut)
        for at_ms in range(4_000, CHAOS_MS, 4_000):
            self.world.after(at_ms, self._maybe_reclaim)

    def _add_node(self, *, provides: bool) -> None:
        chance = self.world.random
        lies = self.draws_liar()
        key = derived_key(chance)
        devices = tuple(
            Device(
                id=chance.randbytes(32),
                kind="cpu",
                model="Xeon",
                memory_bytes=8 * GIB,
                cores_milli=8_000,
                facts=self._parts.facts(),
            )
            for _ in range(chance.randint(1, 3) if provides else 0)
        )
        terms = ProviderTerms(
            account=key.address,
            currency=self.currency,
            tier="sandbox",
            features=(),
            egress=(),
            price_e18_per_device_ms=price_per_hour_to_e18(f"{chance.randint(1, 9)}.{chance.randint(0, 99):02}"),
            voucher_timeout_ms=chance.choice((3_000, 20_000)),
            max_unpaid=chance.choice((5_000, 100_000)),
            grace_ms=chance.choice((5_000, 60_000)),
            credit_limit=chance.choice(CREDIT_LIMITS),
            bid_ms=10_000,
            reclaim_notice_ms=chance.choice((2_000, 20_000, 60_000)),
            prepay_ms=chance.choice((0, 0, 5_000, 60_000)),
            prepay_everybody=chance.random() < 0.5,
            leases=chance.choice(LEASES),
            penalty_ms=chance.choice((1, 500, 20_000, 10**9)),
            max_splits_bps=chance.choice((300, 5_000, 5_000)),
            mirror_bytes=chance.choice((0, 60, 1 << 20)),
            tenants=self._parts.tenants(),
        )
        kind: Any = self.LIAR if lies else SimNode
        skew_ms = chance.randint(-self.world.faults.skew_ms, self.world.faults.skew_ms)
        node = kind(self.world, self, key=key, terms=terms if provides else None, devices=devices, skew_ms=skew_ms)
        if lies:
            node.lie = self.draw_lie(provides=provides)
        self.nodes[key.address] = node
        self.bank.wallets[key.address] = chance.choice((0, 5_000, 10**12, 10**12))
        (self._providers if provides else self.buyers).append(key.address)

    def draws_liar(self) -> bool:
        """Whether the next node is none of the honest ones."""
        return self.world.chance(self.world.faults.liars)

    def draw_lie(self, *, provides: bool) -> str:
        """What it does instead."""
        return self.world.random.choice(PROVIDERS_LIES if provides else BUYERS_LIES)

    def _plan_job(self, number: int) -> None:
        chance = self.world.random
        buyer = self.nodes[chance.choice(self.buyers)]
        shards = chance.randint(1, 4)
        training = chance.random() < 0.6
        needs = Requirements(
            choices=(),
            clauses=self._parts.clauses(),
            kind="cpu",
            devices=1,
            device_memory_bytes=0,
            cores_milli=1_000,
            memory_bytes=GIB,
            scratch_bytes=1 << 20,
            tier="sandbox",
            features=(),
            egress=(),
            wall_ms=chance.choice((60_000, 600_000)),
        )
        dearest = price_per_hour_to_e18("10")
        spec = JobSpec(
            name=f"job {number}",
            entry="a.py:main",
            shards=shards,
            workers=1,
            parameters=(
                Parameter(name="training", value="1" if training else "0"),
                Parameter(name="rounds", value=str(chance.randint(1, 4))),
                Parameter(name="steps", value=str(chance.randint(1, 4))),
            ),
            requirements=needs,
            currency=self.currency,
            budget=shards * dearest * needs.wall_ms * chance.choice((1, 2, 3, 8)) // 2 // 10**18 + 100,
            price_ceiling_e18_per_device_ms=dearest,
            meter_interval_ms=chance.choice((1_000, 5_000)),
            bid_window_ms=chance.choice((2_000, 10_000)),
            round_timeout_ms=chance.choice((5_000, 30_000)),
            stall_ms=60_000,
            silence_ms=chance.choice((10_000, 30_000)),
            retries=chance.randint(0, 3),
            output_bytes=1 << 20,
            state_bytes=1 << 20,
            fetch_bytes=0,
            shared_memory_bytes=192 << 20,
            egress_bytes=0,
            keep_failed_ms=chance.choice((0, 4_000, 40_000)),
            max_prepay_ms=chance.choice((0, 60_000, 60_000)),
            lease=chance.choice((LEASE_ANY, LEASE_ANY, LEASE_ANY, LEASE_FIRM, LEASE_SPOT)),
            mirror=chance.random() < 0.5,
            splits=self._draw_splits(),
            queue_ms=chance.choice((0, 0, 60_000)),
        )
        job, package = chance.randbytes(32), blob_ref(b"package")
        at_ms = chance.randint(1_000, CHAOS_MS // 2)
        cancelled = self.world.chance(self.world.faults.cancel)
        self.auditor.jobs[job] = (buyer, spec)
        self.world.after(at_ms, self._submit, buyer, job, spec, package)
        self.world.after(at_ms + 5_000, self._mind_money, buyer, job)
        if cancelled:
            self.world.after(at_ms + chance.randint(1_000, 60_000), self._cancel, buyer, job)

    def _draw_splits(self) -> tuple[Split, ...]:
        """Who else is paid: nobody mostly, else a few accounts that never take part."""
        chance = self.world.random
        accounts = sorted(chance.randbytes(20) for _ in range(chance.choice((0, 0, 1, 3))))
        return tuple(Split(account=account, bps=chance.choice((1, 250, 1_000))) for account in accounts)

    def _submit(self, buyer: SimNode, job: bytes, spec: JobSpec, package: Any) -> None:
        """The user tries until the daemon has it."""
        if buyer.engine is not None and buyer.engine.state.jobs.get(job) is not None:
            return
        buyer.hear(events.JobSubmitted(job=job, spec=spec, package=package, at_ms=buyer.now_ms()))
        self.world.after(1_000, self._submit, buyer, job, spec, package)

    def _cancel(self, buyer: SimNode, job: bytes) -> None:
        if buyer.engine is None:
            self.world.after(1_000, self._cancel, buyer, job)
            return
        of = buyer.engine.state.jobs.get(job)
        if of is None or not of.ended_ms:
            reason = "the user says: schluß … " * 8
            buyer.hear(events.JobCancelled(job=job, reason=reason[:120], at_ms=buyer.now_ms()))
            self.world.after(5_000, self._cancel, buyer, job)

    def _mind_money(self, buyer: SimNode, job: bytes) -> None:
        """The user looks now and then: a job that waits for money gets some, or enough, or is given up."""
        chance = self.world.random
        self.world.after(chance.randint(2_000, 20_000), self._mind_money, buyer, job)
        of = buyer.engine.state.jobs.get(job) if buyer.engine is not None else None
        if of is None or not of.waits_for_money:
            return
        # By then the daemon may have died with the word, so it is the journal that says what came.
        amount = chance.choice((0, of.missing // 2, of.missing, 3 * of.missing, 3 * of.missing))
        if self.auditor.topped_up[job] > 3 * of.spec.budget or self.world.chance(self.world.faults.cancel / 4):
            buyer.hear(events.JobCancelled(job=job, reason="too dear", at_ms=buyer.now_ms()))
        else:
            self.auditor.moves["jobs topped up"] += 1
            self.auditor.topped_up[job] += amount
            buyer.hear(events.JobToppedUp(job=job, amount=amount, at_ms=buyer.now_ms()))

    def _maybe_cut(self) -> None:
        if self.world.chance(self.world.faults.partition):
            one, other = self.world.random.sample(sorted(self.nodes), 2)
            self.world.cut(one, other, self.world.random.randint(1_000, self.world.faults.partition_ms))

    # Owners who want their devices back.

    def _maybe_reclaim(self) -> None:
        """Half of the time it is a device that computes, since that is the one whose loss matters."""
        if not self.world.chance(self.world.faults.reclaim):
            return
        chance = self.world.random
        leased = sorted(
            (account, device)
            for account in self._providers
            if (engine := self.nodes[account].engine) is not None
            for entry in engine.state.capacity.allotments.values()
            if entry.phase == "lease"
            for device in entry.devices
        )
        if leased and chance.random() < 0.5:
            account, device = chance.choice(leased)
            node, devices = self.nodes[account], (device,)
        else:
            node = self.nodes[chance.choice(self._providers)]
            devices = tuple(device.id for device in node.devices if chance.random() < 0.5)
        assert node.terms is not None
        promised_ms = node.terms.reclaim_notice_ms
        notice_ms = chance.choice((0, promised_ms // 2, promised_ms, promised_ms, promised_ms * 2))
        back_after_ms = chance.randint(2_000, 60_000)
        self._withdraw(node, devices, notice_ms, self.world.now_ms + back_after_ms)

    def _withdraw(self, node: SimNode, devices: tuple[bytes, ...], notice_ms: int, back_ms: int) -> None:
        """The owner tries until the daemon has it, and then until it has them back on the market."""
        returned = self.world.now_ms >= back_ms
        if node.engine is not None:
            withdrawn = node.engine.state.capacity.withheld
            open_ones = tuple(device for device in devices if (device in withdrawn) == returned)
            by_owner = bool(devices) and devices[0][0] % 2 == 0
            if returned and not open_ones:
                return
            if returned:
                node.hear(events.DevicesReturned(devices=open_ones, by_owner=by_owner, at_ms=node.now_ms()))
            elif open_ones:
                node.hear(
                    events.DevicesWithdrawn(
                        devices=open_ones,
                        notice_ms=notice_ms,
                        why="ich selbst … ",
                        by_owner=by_owner,
                        at_ms=node.now_ms(),
                    )
                )
        self.world.after(1_000, self._withdraw, node, devices, notice_ms, back_ms)

    # What nodes may ask.

    def providers(self) -> tuple[bytes, ...]:
        """Whose adverts a buyer has found."""
        return tuple(self._providers)

    def has_blobs(self, account: bytes) -> bool:
        """Whether a node answers those who fetch: it is up, and none of the liars that have nothing."""
        node = self.nodes[account]
        return node.engine is not None and getattr(node, "lie", "") not in ("silent", "alive_only", "gone")

    # The story.

    def play(self) -> Verdict:
        """Chaos first, with safety all along; then healing, and everything honest must come to an end."""
        self.world.run_until(EPOCH_MS + CHAOS_MS)
        self.world.heal()
        self.world.run_until(EPOCH_MS + CHAOS_MS + 10_000)  # whoever lies dead gets up
        self.auditor.healed_ms = self.world.now_ms
        self.world.run_until(self.world.now_ms + 65_000)
        over = self.world.run_until(EPOCH_MS + CHAOS_MS + HEALING_MS, self.auditor.all_over)
        self.auditor.check_end(over=over)
        check_ledgers(self)
        return self._verdict()

    def _verdict(self) -> Verdict:
        jobs: dict[str, int] = {}
        sales: dict[str, int] = {}
        ignored: dict[str, int] = {}
        for node in self.nodes.values():
            assert node.engine is not None
            for _, job in node.engine.state.jobs.all():
                jobs[job.phase] = jobs.get(job.phase, 0) + 1
            for _, sold in node.engine.state.sales.all():
                sales[sold.phase] = sales.get(sold.phase, 0) + 1
            for name, count in node.engine.state.ignored.items():
                ignored[name] = ignored.get(name, 0) + count
        whole = hashlib.sha256()
        for node in self.nodes.values():
            for body in node.journal._events:
                whole.update(len(body).to_bytes(4, "big") + body)
        return Verdict(
            seed=self.seed,
            digest=whole.hexdigest(),
            jobs=jobs,
            sales=sales,
            crashes=sum(node.crashes for node in self.nodes.values()),
            packets=self.world.packets,
            simulated_ms=self.world.now_ms - EPOCH_MS,
            ignored=ignored,
            moves=dict(self.auditor.moves),
            standstills_ms=tuple(self.auditor.standstills_ms),
            cuts=dict(self.cuts),
        )
