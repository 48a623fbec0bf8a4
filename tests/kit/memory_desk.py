"""A ``Desk`` that keeps everything in memory: the real API and the real command line are tested against it.

What it shows is drawn by the daemon's own functions, of a market of real engines that was played once. What else a desk
promises, tests/unit/node/test_desk_contract.py holds against this one and a daemon's alike.
"""

import copy
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import trio
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, DEVICE, JOB, spec

from hansa.market.ledger import Entry, Post
from hansa.node.api import views
from hansa.node.chain.cold_deposits import wanted_deposits
from hansa.node.engine import events
from hansa.node.engine.state import NodeState
from hansa.node.faults import OperatorError
from hansa.node.storage.sealing import ContentKey
from hansa.proto.blob import BlobRef, blob_ref, chunks_of
from hansa.proto.market_documents import Advert
from hansa.proto.sealed import is_sealed
from hansa.proto.signing import SigningKey, checksum_address
from hansa.proto.units import format_amount, parse_amount, price_per_hour_to_e18
from hansa.proto.workload import Parameter
from hansa.scheduler import run
from hansa.scheduler.job import plan
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Output, with_shards

Json = dict[str, Any]
ENDED = ("succeeded", "failed", "cancelled")
_KEYS = tuple(SigningKey(bytes([number]) * 32) for number in range(20, 25))
_PRICES = ("0.30", "0.45", "0.60", "0.30")
PROVIDERS = tuple(checksum_address(key.address) for key in _KEYS)
"""Two that serve, one that is dearer, one whose isolation does not do, and one that never says a word."""


@cache
def _played() -> SmallMarket:
    """A market whose one job is in the middle of its life: two shards run, a round is averaged, the second begins."""
    made = SmallMarket()
    made.add(BUYER_KEY)
    for key, price in zip(_KEYS, _PRICES, strict=False):
        tier = "none" if key == _KEYS[3] else "sandbox"
        made.add(key, devices=1, price_e18_per_device_ms=price_per_hour_to_e18(price), tier=tier)
    made.submit(BUYER, of=spec(parameters=(Parameter(name="rounds", value="10"),), budget=1_000_000))
    made.tender(BUYER, tuple(key.address for key in _KEYS), shards=(0, 1))
    made.pass_time(2_000, BUYER)
    leases = [(key.address, lease) for key in _KEYS[:2] for lease in made.engines[key.address].state.sale_of]
    for provider, lease in leases:
        made.take(provider, run.RunStarted(run=lease, at_ms=made.now_ms))
    made.now_ms += 12_000
    metrics = (("loss", 0.7), ("accuracy", 0.81))
    for provider, lease in leases:
        made.take(provider, run.RunProgressed(run=lease, step=1, metrics=metrics, at_ms=made.now_ms))
    for number in (1, 2):
        for provider, lease in leases:
            made.take(
                provider,
                run.RunSynced(
                    run=lease, round=number - 1, weight_ppm=1_000_000, state=blob_ref(b"state"), at_ms=made.now_ms
                ),
            )
        averaged = events.RoundReduced(
            job=JOB, round=number, state=blob_ref(b"all"), accepted=(0, 1), rejected=(), at_ms=made.now_ms
        )
        made.take(BUYER, averaged)
    saved = blob_ref(b"checkpoint")
    for provider, lease in leases:
        made.take(provider, run.RunCheckpointed(run=lease, round=2, step=1, checkpoint=saved, at_ms=made.now_ms))
        made.take(BUYER, events.BlobFetched(job=JOB, lease=lease, blob=saved, at_ms=made.now_ms))
    return made


@cache
def _view() -> Json:
    state = _played().engines[BUYER].state
    job = state.jobs.get(JOB)
    assert job is not None
    return views.job_view(state, job)


def job_view(job: str, **changes: Any) -> Json:
    """A job in the middle of its life, as the daemon shows it. A test may change what it is about, and add nothing."""
    return changed(copy.deepcopy(_view()), job=job, **changes)


def changed(view: Json, **changes: Any) -> Json:
    """A view, or a part of one, in which something else stands in places that it has."""
    assert not set(changes) - set(view), "a daemon shows no such thing"
    return view | changes


def output_view(path: str, blob: BlobRef, shard: int = 0) -> Json:
    """An output that is here, as a job's view lists it."""
    planned = plan(job=JOB, spec=spec(), package=blob, at_ms=1).state
    made = replace(planned.shards[shard], outputs=(Output(path=path, blob=blob, here=True),))
    (shown,) = views.job_view(NodeState(), with_shards(planned, made))["outputs"]
    return dict(shown)


class MemoryDesk:
    """The desk.

    Attributes:
        views: what ``watch`` shows of each job, one after the other; the last stays.
        lines: what shards printed, and ``later`` what they print once somebody follows, with which the job ends.
    """

    def __init__(self, fate: str = "succeeded") -> None:
        """Jobs that are submitted have this fate; with none they live on."""
        self._fate = fate
        self.views: dict[bytes, list[Json]] = {}
        self.lines: list[Json] = []
        self.later: list[Json] = []
        self.blobs: dict[bytes, bytes] = {}
        self.submitted: list[tuple[JobSpec, BlobRef]] = []
        self.files: list[BlobRef | None] = []
        self.keys: list[ContentKey | None] = []
        self.opened: dict[bytes, bytes] = {}
        self.closed_flows = 0
        self.open_flows = 0

    def add(self, *views: Json) -> str:
        """Know a job by its views; answer its id."""
        self.views[bytes.fromhex(views[0]["job"])] = list(views)
        return str(views[0]["job"])

    def add_blob(self, data: bytes) -> BlobRef:
        """Know some bytes."""
        blob = blob_ref(data)
        self.blobs[blob.root] = data
        return blob

    def node_view(self) -> Json:
        return {
            "version": "0.1.0",
            "peer_id": "16Uiu2",
            "account": checksum_address(BUYER),
            "addresses": [],
            "region": "",
            "currency": "USD",
            "provides": False,
            "devices": [],
            "leases": [],
            "waiting_for_money": [],
            "inventory_note": "",
            "sandbox": {"available": False, "reason": "this node lends nothing", "tier": "none"},
            "machines": [],
            "tiers": [],
            "attestation": {"none": "no kernel says so"},
            "chain": None,
            "peers": [],
            "counters": {},
            "engine": {"events": 0, "lag_ms": 0.0, "last_event_ms": 0},
            "started_ms": 0,
            "clock": {"ahead_ms": 0, "peers_differ": False, "journal_in_future_ms": 0},
        }

    async def submit(
        self, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, key: ContentKey | None = None
    ) -> bytes:
        if is_sealed(spec.requirements) != (key is not None):
            raise OperatorError("the job is sealed and its key is not given, or the other way round", "give both")
        if package.root not in self.blobs:
            raise OperatorError("the job's package is not here", "upload it first")
        self.submitted.append((spec, package))
        self.files.append(files)
        self.keys.append(key)
        job = hashlib.sha256(f"{len(self.submitted)} {spec.name}".encode()).digest()
        at_ms = 1_700_000_000_000 + len(self.submitted)
        planned = plan(job=job, spec=spec, package=package, files=files, at_ms=at_ms).state
        view = views.job_view(NodeState(), planned)
        self.add(view, *([view | {"phase": self._fate, "ended_ms": at_ms + 1}] if self._fate else []))
        return job

    def job_views(self) -> list[Json]:
        return [
            {key: value for key, value in views[-1].items() if key not in ("tenders", "history", "rounds")}
            for views in reversed(self.views.values())
        ]

    def job_ids(self) -> Sequence[bytes]:
        return list(self.views)

    def job_view(self, job: bytes) -> Json:
        return self.views[job][-1]

    async def watch(self, job: bytes) -> AsyncGenerator[Json, None]:
        self.open_flows += 1
        try:
            shown = 0
            while True:
                for view in self.views[job][shown:]:
                    shown += 1
                    yield view
                    await trio.sleep(0.02)
                if self.views[job][-1]["phase"] in ENDED:
                    return
                await trio.sleep(0.02)
        finally:
            self.closed_flows += 1

    async def logs(self, job: bytes, shard: int | None, follow: bool) -> AsyncGenerator[Json, None]:
        told = 0
        while True:
            last = not follow or self.views[job][-1]["phase"] in ENDED
            for line in self.lines[told:]:
                told += 1
                if shard in (None, line["shard"]):
                    yield line
            if last:
                return
            if self.later:
                self.lines += self.later
                self.later = []
                await self.cancel(job)
            await trio.sleep(0.02)

    async def cancel(self, job: bytes) -> Json:
        self._must_live(job)
        self.views[job].append(self.views[job][-1] | {"phase": "cancelled"})
        return {"job": job.hex(), "phase": "cancelled"}

    def _must_live(self, job: bytes) -> None:
        if (phase := self.views[job][-1]["phase"]) in ENDED:
            raise OperatorError(f"the job has ended: it {phase}", "submit it again")

    def budget(self, job: bytes) -> int:
        return parse_amount(self.views[job][-1]["spend"]["budget"])

    async def top_up(self, job: bytes, amount: int) -> Json:
        self._must_live(job)
        last = self.views[job][-1]
        budget = format_amount(self.budget(job) + amount)
        self.views[job].append(last | {"spend": last["spend"] | {"budget": budget}})
        return {"job": job.hex(), "budget": budget}

    def providers(self) -> list[Json]:
        advert = Advert(
            signer=_KEYS[0].address,
            peer_id="16Uiu2",
            addresses=(),
            devices=(replace(DEVICE, model="Some CPU"),),
            free=1,
            tier="sandbox",
            features=(),
            region="[bold]somewhere\x1b[2J",
            facts=(),
            currency="USD",
            price_e18_per_device_ms=price_per_hour_to_e18(_PRICES[0]),
            sequence=1,
            expires_ms=1_700_000_060_000,
        )
        return [views.advert_view(advert, connected=True)]

    def _entries(self) -> list[Entry]:
        return [each.entry for account, each in _played().booked if account == BUYER and isinstance(each, Post)]

    def balance(self) -> Json:
        return views.balance_view(_played().engines[BUYER].state, "USD", len(self._entries()))

    def entries(self) -> list[Json]:
        return views.entries_view(self._entries())

    def vouchers(self) -> list[Json]:
        return []

    def deposits(self) -> list[Json]:
        return wanted_deposits(_played().engines[BUYER].state)

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        data = b"".join([chunk async for chunk in chunks])
        return self.add_blob(data)

    def missing_blobs(self, blobs: Sequence[BlobRef]) -> list[int]:
        return [index for index, blob in enumerate(blobs) if blob.root not in self.blobs]

    async def open_output(self, job: bytes, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        if not self.views[job][-1]["sealed"]:
            return self.open_blob(blob)
        data = self.opened.get(blob.root)
        return None if data is None else self._pieces(data)

    def open_blob(self, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        data = self.blobs.get(blob.root)
        return None if data is None or len(data) != blob.size_bytes else self._pieces(data)

    def _pieces(self, data: bytes) -> AsyncGenerator[bytes, None]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            for chunk in chunks_of(data):
                await trio.lowlevel.checkpoint()
                yield chunk

        return pieces()
