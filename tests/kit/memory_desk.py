"""A ``Desk`` that keeps everything in memory: the real API and the real command line are tested against it."""
# ruff: noqa: ARG002, ASYNC110 - a desk takes what the protocol says, and a test changes its views without an event

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import trio

from hansa.node.faults import ConfigError
from hansa.node.storage.sealing import ContentKey
from hansa.proto.blob import BlobRef, blob_ref, chunks_of
from hansa.proto.units import format_amount, parse_amount
from hansa.scheduler.job_spec import JobSpec

Json = dict[str, Any]
PROVIDERS = ("0x52908400098527886E0F7030069857D2E4169EE7", "0x8617E340B3D01FA5F11F306F4090FD50E238070D")


def job_view(job: str, **changes: Any) -> Json:
    """A job in the middle of its life, as the daemon would show it."""
    return {
        "job": job,
        "name": "digits",
        "phase": "running",
        "reason": "",
        "submitted_ms": 1_700_000_000_000,
        "ended_ms": None,
        "settled": False,
        "shards": [
            {
                "shard": shard,
                "phase": "running",
                "provider": PROVIDERS[shard],
                "lease": "ab" * 32,
                "step": 10 + shard,
                "metrics": {"loss": 0.5},
                "attempts": 1,
                "checkpoint": {"round": 1, "step": 8},
                "reason": "",
            }
            for shard in (0, 1)
        ],
        "round": 2,
        "parameters": {"rounds": 10},
        "tenders": [
            {
                "tender": "cd" * 32,
                "phase": "awarded",
                "shards": [0, 1],
                "bids": [
                    {
                        "bid": f"{number:064x}",
                        "provider": provider,
                        "price_per_hour": price,
                        "expected_cost": "0.010000",
                        "score": 1.0,
                        "won": number < 2,
                        "shard": number if number < 2 else None,
                        "why": "cheapest",
                    }
                    for number, (provider, price) in enumerate(
                        [(PROVIDERS[0], "0.300000"), (PROVIDERS[1], "0.450000"), ("0x" + "0" * 40, "0.600000")]
                    )
                ],
                "declines": [{"provider": "0x" + "1" * 40, "reason": "no GPU", "relaxation": "kind = cpu"}],
                "silent": ["0x" + "2" * 40],
                "reason": "",
            }
        ],
        "history": [
            {
                "round": 1,
                "at_ms": 1_700_000_001_000,
                "members": [0, 1],
                "rejected": [],
                "metrics": {"loss": 0.7, "accuracy": 0.81},
            }
        ],
        "spend": {
            "vouched": "0.001000",
            "budget": "1.000000",
            "by_provider": [
                {
                    "provider": provider,
                    "vouched": "0.000500",
                    "metered": "0.000500",
                    "channel_id": "ef" * 32,
                    "channel_phase": "open",
                }
                for provider in PROVIDERS
            ],
        },
        "outputs": [],
    } | changes


class MemoryDesk:
    """The desk. ``views`` holds what ``watch`` shows of each job, one after the other; the last stays."""

    def __init__(self) -> None:
        self.views: dict[bytes, list[Json]] = {}
        self.lines: list[Json] = []
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
        return {"version": "0.1.0", "peer_id": "16Uiu2", "account": PROVIDERS[0], "peers": [], "provides": False}

    async def submit(
        self, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, key: ContentKey | None = None
    ) -> bytes:
        if package.root not in self.blobs:
            raise ConfigError("the job's package is not here", "upload it first")
        self.submitted.append((spec, package))
        self.files.append(files)
        self.keys.append(key)
        job = hashlib.sha256(spec.name.encode()).digest()
        self.add(job_view(job.hex(), name=spec.name), job_view(job.hex(), name=spec.name, phase="succeeded"))
        return job

    def job_views(self) -> list[Json]:
        return [
            {key: value for key, value in views[-1].items() if key not in ("tenders", "history")}
            for views in self.views.values()
        ]

    def job_ids(self) -> Sequence[bytes]:
        return list(self.views)

    def job_view(self, job: bytes) -> Json:
        return self.views[job][-1]

    async def watch(self, job: bytes) -> AsyncGenerator[Json, None]:
        self.open_flows += 1
        try:
            for view in self.views[job]:
                yield view
                await trio.sleep(0.02)
            while self.views[job][-1]["phase"] not in ("succeeded", "failed", "cancelled"):
                await trio.sleep(0.02)
        finally:
            self.closed_flows += 1

    async def logs(self, job: bytes, shard: int | None, follow: bool) -> AsyncGenerator[Json, None]:
        for line in self.lines:
            if shard in (None, line["shard"]):
                yield line
        if follow:
            yield {"shard": 0, "at_ms": 2, "text": "followed"}

    async def cancel(self, job: bytes) -> Json:
        if self.views[job][-1]["phase"] != "running":
            raise ConfigError("the job has ended already", "hansa jobs shows how")
        self.views[job].append(self.views[job][-1] | {"phase": "cancelled"})
        return {"job": job.hex(), "phase": "cancelled"}

    def budget(self, job: bytes) -> int:
        return parse_amount(self.views[job][-1]["spend"]["budget"])

    async def top_up(self, job: bytes, amount: int) -> Json:
        if self.views[job][-1]["phase"] != "running":
            raise ConfigError("the job has ended already", "submit it again")
        last = self.views[job][-1]
        budget = format_amount(self.budget(job) + amount)
        self.views[job].append(last | {"spend": last["spend"] | {"budget": budget}})
        return {"job": job.hex(), "budget": budget}

    def providers(self) -> list[Json]:
        return [
            {
                "account": PROVIDERS[0],
                "peer_id": "16Uiu2",
                "region": "[bold]somewhere\x1b[2J",
                "tier": "sandbox",
                "devices": [{"kind": "cpu", "model": "Some CPU", "memory_bytes": 4 << 30, "cores_milli": 2000}],
                "free": 1,
                "price_per_hour": "0.300000",
                "currency": "USD",
                "expires_ms": 1_700_000_060_000,
                "connected": True,
            }
        ]

    def balance(self) -> Json:
        return {
            "account": PROVIDERS[0],
            "currency": "USD",
            "earned": "1.000000",
            "spent": "0.250000",
            "owed": "0.000000",
            "due": "1.000000",
            "paid_out": "0.000000",
            "paid_in": "0.000000",
            "received": "0.000000",
            "remitted": "0.000000",
            "open_in": "1.000000",
            "open_out": "0.000000",
            "sum": "0.000000",
            "channels": [
                {
                    "channel_id": "ef" * 32,
                    "role": "payee",
                    "counterparty": PROVIDERS[1],
                    "phase": "open",
                    "vouched": "1.000000",
                    "metered": "1.000000",
                }
            ],
            "entries": 3,
            "promise": "These amounts are promises between the two nodes.",
        }

    def entries(self) -> list[Json]:
        return [{"id": "1", "at_ms": 1, "memo": "voucher", "legs": [{"account": "a", "amount": "1.000000"}]}]

    def vouchers(self) -> list[Json]:
        return []

    def deposits(self) -> list[Json]:
        return []

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        data = b"".join([chunk async for chunk in chunks])
        return self.add_blob(data)

    def missing_blobs(self, blobs: Sequence[BlobRef]) -> list[int]:
        return [index for index, blob in enumerate(blobs) if blob.root not in self.blobs]

    async def open_output(self, job: bytes, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        data = self.opened.get(blob.root)
        return None if data is None or job not in self.views else self._pieces(data)

    def open_blob(self, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        data = self.blobs.get(blob.root)
        return None if data is None or len(data) != blob.size_bytes else self._pieces(data)

    def _pieces(self, data: bytes) -> AsyncGenerator[bytes, None]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            for chunk in chunks_of(data):
                await trio.lowlevel.checkpoint()
                yield chunk

        return pieces()
