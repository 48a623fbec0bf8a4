"""The daemon as its own user sees it: what the local API asks, answered from the state."""

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING

import trio

from hansa.node.api import views
from hansa.node.api.device_views import device_views
from hansa.node.api.http_api import Json
from hansa.node.api.money_reminders import jobs_that_wait
from hansa.node.chain.cold_deposits import wanted_deposits
from hansa.node.chain.voucher_file import voucher_view
from hansa.node.engine.events import JobCancelled, JobSubmitted, JobToppedUp
from hansa.node.faults import OperatorError
from hansa.node.storage.blob_shelf import BlobMissing, NoRoom
from hansa.node.storage.file_lists import heaviest_bytes, read_file_list
from hansa.node.storage.sealed_blobs import fault_in, pieces_of, read_blob
from hansa.node.storage.sealing import BlobKey, ContentKey, SealBroken
from hansa.proto.blob import BlobRef, chunk_count
from hansa.proto.currency import currency_of
from hansa.proto.sealed import is_sealed
from hansa.proto.signing import checksum_address
from hansa.proto.units import format_amount
from hansa.proto.workload import MAX_FILE_LIST_BYTES, FileList
from hansa.scheduler.job_queue import WAITED_FOR_MONEY
from hansa.scheduler.job_spec import JobSpec
from hansa.scheduler.job_state import Job

if TYPE_CHECKING:
    from hansa.node.daemon.daemon import Daemon

WATCH_PAUSE_S = 0.2
LOG_PAUSE_S = 0.3
ENDED = ("succeeded", "failed", "cancelled")


def name_currency(view: Json, currency: str, symbol: str) -> Json:
    """A view in which a currency has another name, wherever it stands under ``currency``."""
    if currency == symbol:
        return view
    return {
        key: symbol
        if (key, value) == ("currency", currency)
        else [name_currency(each, currency, symbol) if isinstance(each, dict) else each for each in value]
        if isinstance(value, list)
        else name_currency(value, currency, symbol)
        if isinstance(value, dict)
        else value
        for key, value in view.items()
    }


def _instead_of_a_top_up(job: Job) -> str:
    """What helps a job that has ended, for whoever wanted to give it money."""
    if job.reason == WAITED_FOR_MONEY:
        return "submit it again, with a larger budget"
    return "it needs no money any more" + ("" if job.phase == "succeeded" else "; submit it again to have it run again")


class NodeDesk:
    """Implements ``hansa.node.api.http_api.Desk`` over a running daemon."""

    def __init__(self, daemon: "Daemon") -> None:
        """Answer for this daemon."""
        self._daemon = daemon

    def _job(self, job: bytes) -> Job:
        found = self._daemon.state.jobs.get(job)
        assert found is not None, "the API names only jobs that it was told of"
        return found

    def node_view(self) -> Json:
        """See ``Desk``."""
        daemon = self._daemon
        state, config = daemon.state, daemon.config
        return {
            "version": version("hansa"),
            "peer_id": daemon.net.peer_id,
            "account": checksum_address(state.account),
            "addresses": list(daemon.net.addrs()),
            "region": config.region,
            "currency": self._symbol,
            "provides": state.terms is not None,
            "devices": device_views(daemon),
            "leases": views.lease_views(state),
            "waiting_for_money": jobs_that_wait(state),
            "inventory_note": daemon.inventory.note,
            "sandbox": daemon.sandbox_view,
            "machines": daemon.cluster.view() if daemon.cluster is not None else [],
            "tiers": [{"tier": tier.tier, "available": tier.available, "reason": tier.reason} for tier in daemon.tiers],
            "attestation": daemon.attestation,
            "chain": daemon.settler.view() if daemon.settler is not None else None,
            "peers": [
                {
                    "peer_id": peer.peer_id,
                    "account": self._account_of(peer.peer_id),
                    "phase": peer.phase,
                    "path": peer.path,
                }
                for peer in daemon.net.peers()
            ],
            "counters": daemon.counters(),
            "engine": {
                "events": daemon.engine.events,
                "lag_ms": round(daemon.lag_ms, 3),
                "last_event_ms": state.at_ms,
            },
            "started_ms": daemon.started_ms,
            "clock": {
                "ahead_ms": daemon.clock.ahead_ms(),
                "peers_differ": daemon.directory.clocks_differ,
                "journal_in_future_ms": max(0, daemon.last_life_ms - daemon.now_ms()),
            },
        }

    def _account_of(self, peer_id: str) -> str | None:
        account = self._daemon.directory.account_of(peer_id)
        return checksum_address(account) if account is not None else None

    async def submit(
        self, spec: JobSpec, package: BlobRef, files: BlobRef | None = None, key: ContentKey | None = None
    ) -> bytes:
        """See ``Desk``."""
        if is_sealed(spec.requirements) != (key is not None):
            which = "is sealed, and its key is not given" if key is None else "is not sealed, and a key is given"
            raise OperatorError(f"the job {which}", "use the daemon's own version")
        if not self._daemon.store.has(package):
            raise OperatorError("the job's package is not here", "upload it first, as `hansa submit` does")
        spec = self.in_our_currency(spec)
        listed = None
        if files is not None:
            listed = await trio.to_thread.run_sync(self._checked_files, spec, files, key)
        elif spec.fetch_bytes:
            raise OperatorError("the job has files to fetch, and no list of them", "use the daemon's own version")
        job = secrets.token_bytes(32)
        if key is not None:
            # Before the job is in the journal: one whose key were lost could never be read.
            await trio.to_thread.run_sync(self._daemon.job_keys.keep, job, key)
        at_ms = self._daemon.now_ms()
        await self._daemon.take(JobSubmitted(job=job, spec=spec, package=package, files=files, at_ms=at_ms))
        if files is not None and listed is not None:
            self._daemon.file_lists.keep(files, listed)
        return job

    def in_our_currency(self, spec: JobSpec) -> JobSpec:
        """A job that names no currency pays in the node's; one that is a token on a chain may be named as people do."""
        ours, shown = self._daemon.config.currency, self._symbol
        if spec.currency not in ("", ours, shown):
            hint = "change budget.currency in the job file or leave it out, or change currency in config.toml"
            raise OperatorError(f"the job pays in {spec.currency}, this node in {shown}", hint)
        return replace(spec, currency=ours)

    @property
    def _symbol(self) -> str:
        """What people call the node's currency."""
        daemon = self._daemon
        return daemon.config.currency if daemon.settler is None else daemon.settler.symbol

    def named(self, view: Json) -> Json:
        """A view in which the node's currency is called what people call it."""
        return name_currency(view, self._daemon.config.currency, self._symbol)

    def _checked_files(self, spec: JobSpec, files: BlobRef, key: ContentKey | None) -> FileList:
        """Take a list of files only whole: a provider that cannot have one of them would fail the run for it."""
        store, keys = self._daemon.store, (key.shared,) if key is not None else None
        try:
            listed = read_file_list(read_blob(store, files, MAX_FILE_LIST_BYTES, keys), spec.shards)
        except SealBroken as fault:
            raise OperatorError(f"the list of the job's files: {fault}", "submit the job again") from None
        except (BlobMissing, ValueError):
            raise OperatorError("the list of the job's files is not here", "submit the job again") from None
        lacking = sum(not store.has(file.blob) for file in listed.files)
        if lacking:
            hint = "submit the job again; if that does not help, make the store larger: node.blobs in config.toml"
            raise OperatorError(f"{lacking} of the job's files are not here", hint)
        if heaviest_bytes(listed, spec.shards) != spec.fetch_bytes:
            raise OperatorError("the job's files have another size than it says", "use the daemon's own version")
        return listed

    def job_views(self) -> list[Json]:
        """See ``Desk``."""
        jobs = sorted((job for _, job in self._daemon.state.jobs.all()), key=lambda job: -job.submitted_ms)
        return [self.named(views.job_view(self._daemon.state, job, brief=True)) for job in jobs]

    def job_ids(self) -> Sequence[bytes]:
        """See ``Desk``."""
        return [key for key, _ in self._daemon.state.jobs.all()]

    def job_view(self, job: bytes) -> Json:
        """See ``Desk``."""
        return self.named(views.job_view(self._daemon.state, self._job(job)))

    async def watch(self, job: bytes) -> AsyncGenerator[Json, None]:
        """See ``Desk``. The last view comes when the money is settled too, or cannot be for now."""
        seen: Json | None = None
        ended_at: float | None = None
        while True:
            view = self.job_view(job)
            if view != seen:
                seen = view
                yield view
            if view["phase"] in ENDED:
                ended_at = ended_at or trio.current_time()
                # Settlement follows within moments; a provider that is gone must not hold the watcher.
                if view["settled"] or trio.current_time() > ended_at + 10:
                    return
            changed = self._daemon.changed
            with trio.move_on_after(1.0):
                await changed.wait()
            await trio.sleep(WATCH_PAUSE_S)

    async def logs(self, job: bytes, shard: int | None, follow: bool) -> AsyncGenerator[Json, None]:
        """See ``Desk``."""
        shards = range(self._job(job).spec.shards)
        tail = self._daemon.job_logs.tail(job, [each for each in shards if shard in (None, each)])
        while True:
            last = not follow or self._job(job).phase in ENDED
            for line in tail.lines(last=last):
                yield line
            if last:
                return
            await trio.sleep(LOG_PAUSE_S)

    async def cancel(self, job: bytes) -> Json:
        """See ``Desk``."""
        found = self._job(job)
        if found.phase in ENDED:
            raise OperatorError(f"the job has ended: it {found.phase}", "there is nothing left to cancel")
        await self._daemon.take(JobCancelled(job=job, reason="cancelled by its developer", at_ms=self._daemon.now_ms()))
        return {"job": job.hex(), "phase": self._job(job).phase}

    def budget(self, job: bytes) -> int:
        """See ``Desk``."""
        return self._job(job).spec.budget

    async def top_up(self, job: bytes, amount: int) -> Json:
        """See ``Desk``."""
        found = self._job(job)
        if found.phase in ENDED:
            raise OperatorError(f"the job has ended: it {found.phase}", _instead_of_a_top_up(found))
        await self._daemon.take(JobToppedUp(job=job, amount=amount, at_ms=self._daemon.now_ms()))
        return {"job": job.hex(), "budget": format_amount(self.budget(job))}

    def providers(self) -> list[Json]:
        """See ``Desk``."""
        live = {peer.peer_id for peer in self._daemon.net.peers() if peer.phase == "live"}
        own = self._daemon.net.peer_id
        return [
            self.named(
                views.advert_view(known.advert, connected=known.advert.peer_id in live or known.advert.peer_id == own)
            )
            for known in self._daemon.book.standing()
        ]

    def balance(self) -> Json:
        """See ``Desk``."""
        state = self._daemon.state
        view = views.balance_view(state, self._symbol, state.ledger.entries)
        if self._daemon.settler is not None:
            came, went = self._daemon.settler.paid_on_chain()
            view |= views.chain_balance(state.ledger, came, went)
        return view

    def entries(self) -> list[Json]:
        """See ``Desk``."""
        return views.entries_view(self._daemon.ledger_keeper.store.entries())

    def vouchers(self) -> list[Json]:
        """See ``Desk``."""
        return [
            voucher_view(channel.currency, channel.config, channel.voucher)
            for _, channel in self._daemon.state.earning.all()
            if channel.voucher is not None and not channel.settled_ms and currency_of(channel.currency).is_on_chain
        ]

    def deposits(self) -> list[Json]:
        """See ``Desk``."""
        return wanted_deposits(self._daemon.state)

    async def put_blob(self, chunks: AsyncIterator[bytes]) -> BlobRef:
        """See ``Desk``. The bytes go to disk as they come, so an upload may be larger than memory."""
        store = self._daemon.store
        path, size_bytes = store.new_file(), 0
        try:
            with path.open("xb") as file:
                async for chunk in chunks:
                    size_bytes += len(chunk)
                    store.check_quota(size_bytes)
                    await trio.to_thread.run_sync(file.write, chunk)
            return await trio.to_thread.run_sync(store.take_file, path)
        except NoRoom as fault:
            hint = "make the job smaller, or this node's store larger: node.blobs in config.toml"
            raise OperatorError(f"this node has no room for it: {fault}", hint) from None
        finally:
            path.unlink(missing_ok=True)

    def missing_blobs(self, blobs: Sequence[BlobRef]) -> list[int]:
        """See ``Desk``."""
        return [index for index, blob in enumerate(blobs) if self._daemon.store.path(blob) is None]

    def open_blob(self, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        """See ``Desk``."""
        return self._read(blob) if self._daemon.store.has(blob) else None

    async def open_output(self, job: bytes, blob: BlobRef) -> AsyncGenerator[bytes, None] | None:
        """See ``Desk``."""
        of, store = self._job(job), self._daemon.store
        if not is_sealed(of.spec.requirements):
            return self.open_blob(blob)
        shard = next((entry.shard for entry in of.shards for made in entry.outputs if made.blob == blob), None)
        if shard is None or not store.has(blob):
            return None
        key = self._daemon.job_keys.find(of.job)
        if key is None:
            folder = self._daemon.config.data_dir / "sealing"
            raise OperatorError("the key of this sealed job is lost", f"restore {folder} from a backup of this node")
        keys = key.of_shard(shard).both
        # Looked at to its end before a byte goes out, so that whoever writes it down need not undo that.
        if fault := await trio.to_thread.run_sync(fault_in, store, blob, keys):
            raise OperatorError(f"this output cannot be opened: {fault}", "its provider has sealed it wrongly")
        return self._read_opened(blob, keys)

    async def _read_opened(self, blob: BlobRef, keys: Sequence[BlobKey]) -> AsyncGenerator[bytes, None]:
        pieces = pieces_of(self._daemon.store, blob, keys)
        try:
            while (piece := await trio.to_thread.run_sync(next, pieces, None)) is not None:
                yield piece
        finally:
            pieces.close()

    async def _read(self, blob: BlobRef) -> AsyncGenerator[bytes, None]:
        for index in range(chunk_count(blob.size_bytes)):
            yield await trio.to_thread.run_sync(self._daemon.store.read_chunk, blob, index)
