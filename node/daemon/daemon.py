"""The daemon: one trio program around one engine. Everything in it is a task that tells the engine or obeys it.

It opens what is on disk, folds the journal, opens the network, and serves until it is cancelled. Whatever ends it, a
restart goes on from the journal. The process around it is in ``hansa.node.daemon.node_process``.
"""

import contextlib
import math
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from hansa.market.pricing import ITSELF
from hansa.node.agents.agent_cluster import Cluster
from hansa.node.api.http_api import Json
from hansa.node.api.http_server import serve_api, serve_loopback
from hansa.node.api.local_api import local_api
from hansa.node.api.market_figures import MarketFigures
from hansa.node.api.metrics import Metrics, build_metrics_app
from hansa.node.chain.chain_settling import ChainSettler, settler_for
from hansa.node.daemon import chores, mirror_tasks, provider_tasks, run_logs, staging
from hansa.node.daemon.buyer_tasks import tell_undelivered
from hansa.node.daemon.device_watch import DeviceWatch, watch_devices
from hansa.node.daemon.doorkeeper import Doorkeeper
from hansa.node.daemon.job_logs import JobLogs
from hansa.node.daemon.keeping import BlobGrants
from hansa.node.daemon.ledger_keeper import LedgerKeeper
from hansa.node.daemon.owners_terms import features_of, terms_of
from hansa.node.daemon.performing import perform
from hansa.node.devices.inventory import Inventory, read_machine
from hansa.node.devices.owner_presence import OwnerPresence
from hansa.node.engine.engine import Engine
from hansa.node.engine.events import InventoryChanged, LineMeasured, MessageArrived, NodeEvent, Started, TimeCame
from hansa.node.engine.journal import SqliteJournal
from hansa.node.engine.lines import is_of_use
from hansa.node.engine.logs import log_line, log_turns
from hansa.node.engine.queueing import watch_book
from hansa.node.engine.state import NodeState
from hansa.node.engine.steady_clock import SteadyClock
from hansa.node.isolation.attestation import attest
from hansa.node.isolation.launcher_link import Launch, launch_with
from hansa.node.isolation.preflight import SandboxReport, TierReport
from hansa.node.isolation.trees import Trees
from hansa.node.messaging.book import Book
from hansa.node.messaging.courier import Courier
from hansa.node.messaging.directory import Directory
from hansa.node.messaging.discovery import Discovery
from hansa.node.messaging.histories import Histories, ask_around
from hansa.node.messaging.interests import useful_classes, wishes
from hansa.node.messaging.key_exchange import KeyDesk
from hansa.node.messaging.outbox import Outbox
from hansa.node.messaging.own_binding import OwnBinding
from hansa.node.messaging.peer_exchange import PeerExchange
from hansa.node.network.libp2p_host import open_net
from hansa.node.network.net import Context, NetConfig
from hansa.node.pricing.price_program import program_of
from hansa.node.runs.egress import EgressProxy
from hansa.node.runs.egress_dial import Dialler, networks_of
from hansa.node.runs.environments import Environments
from hansa.node.runs.executor import Executor
from hansa.node.runs.images import Images
from hansa.node.runs.shell_service import ShellService
from hansa.node.settings.config import Config
from hansa.node.storage.blob_exchange import BlobExchange
from hansa.node.storage.blobs import BlobStore
from hansa.node.storage.bulk import BulkChannels, make_bulk
from hansa.node.storage.file_lists import FileLists
from hansa.node.storage.job_keys import JobKeys
from hansa.node.storage.line_meter import LineMeter
from hansa.proto.binding import Role
from hansa.proto.blob import BlobRef
from hansa.proto.market_documents import (
    TIER_NONE,
    Advert,
)
from hansa.proto.messages import TenderSent
from hansa.proto.network import DOMAIN
from hansa.proto.sealed import is_sealed
from hansa.proto.signing import SigningKey
from hansa.proto.typed_data import digest
from hansa.scheduler.run import (
    RunEvent,
    RunFailed,
    RunFinished,
    RunLeaveWanted,
    RunLogged,
    RunLost,
    RunStopped,
    RunStopWanted,
)

BATCH = 256
STUCK_S = 10.0


class Daemon:
    """A running node: the engine and everything around it. Made by ``hansa.node.daemon.node_process``."""

    def __init__(
        self,
        config: Config,
        account: SigningKey,
        node: SigningKey,
        sandbox: SandboxReport | None,
        tiers: tuple[TierReport, ...] = (),
    ) -> None:
        """Open everything that lies on disk and fold the journal."""
        self.config = config
        self.account = account
        self.node = node
        self.clock = SteadyClock()
        self.now_ms = self.clock.now_ms
        self.sandbox = sandbox
        self.tiers = tiers
        self.attestation: Json = {}
        self.figures = MarketFigures()
        self.started_ms = self.now_ms()
        self.lag_ms, self.turned_at = 0.0, 0.0
        self.is_turning = False
        self.changed, self.ready = trio.Event(), trio.Event()
        self._inbox, self._events = trio.open_memory_channel[tuple[NodeEvent, trio.Event | None, float]](math.inf)
        self.tasks: trio.Nursery | None = None
        self.bulk: BulkChannels | None = None
        self._open_state(config.data_dir)
        self._open_own_jobs(config.data_dir)
        self._open_lending(config.data_dir)

    def _open_state(self, data: Path) -> None:
        """Go on from the journal, with all that it says of money in the ledger."""
        self.journal = SqliteJournal(data / "journal.sqlite")
        self.engine = Engine(self.journal)
        self.last_life_ms = self.engine.state.at_ms
        if self.state.sales.live or self.state.purchases.live:
            # By a clock that was set back meanwhile no deadline in the journal would come for as long.
            self.clock.begin_at(self.last_life_ms)
        self.ledger_keeper = LedgerKeeper(self)
        self.doorkeeper = Doorkeeper(self, self.journal.ones_set_aside())
        self.ledger_keeper.post(self.engine.recovered)
        self.engine.state.turns.clear()
        self.settler: ChainSettler | None = None
        if self.config.chain is not None:
            self.settler = settler_for(
                self.config.chain,
                data / "chain.sqlite",
                self.account,
                state=lambda: self.state,
                tell=self.tell,
                log=log_line,
                now_ms=self.now_ms,
                payer=self.config.buyer.payer,
            )

    def _open_own_jobs(self, data: Path) -> None:
        """The store of blobs, and what a buyer keeps of its jobs: what they printed, their keys and lists of files."""
        self.store = BlobStore(data / "blobs", quota_bytes=self.config.blob_bytes)
        self.store.forget_pins(staging.PIN)
        self.job_logs = JobLogs(data / "jobs")
        self.job_keys = JobKeys(data / "sealing", self.account)
        self.job_keys.keep_only([job for job, _ in self.state.jobs.all()])
        self.file_lists = FileLists(self.store)
        for job in self.state.jobs.live.values():
            key = self.job_keys.find(job.job) if is_sealed(job.spec.requirements) else None
            if key is None and is_sealed(job.spec.requirements):
                remedy = f"restore {data / 'sealing'} and the account from a backup, or cancel the job"
                log_line(f"the key of sealed job {job.job.hex()[:16]} is lost, so it cannot go on: {remedy}")
            if job.files is not None:
                self.file_lists.load(job.files, job.spec.shards, (key.shared,) if key is not None else None)
        self.grants = BlobGrants(self.file_lists)
        self.copies: dict[tuple[bytes, int], mirror_tasks.CopyTurn] = {}
        self.round_turns: dict[bytes, provider_tasks.RoundTurn] = {}
        self.told_losses: dict[tuple[bytes, int], bytes] = {}

    def _open_lending(self, data: Path) -> None:
        """What a provider has: its devices, a room for runs, what runs are furnished with, their way out."""
        config = self.config
        self.runs_dir = data / "runs"
        shutil.rmtree(self.runs_dir, ignore_errors=True)
        self.runs_dir.mkdir(mode=0o711)
        self.watch = DeviceWatch(
            account=self.account.address,
            provider=config.provider,
            rules=config.rules,
            now_ms=self.now_ms,
            # Files and sessions are dated by the wall clock, however that is set.
            presence=OwnerPresence(now_ms=self.clock.wall_ms),
            # A launcher of its own keeps runs' files where this process may not even look.
            machine=replace(read_machine(), disk_bytes=0) if config.sandbox.launcher is not None else None,
        )
        self.trees = Trees(data / "environments", quota_bytes=config.environments.quota_bytes)
        self.environments = Environments(self.trees, config.environments)
        self.images = Images(self.trees, config.environments)
        self.furnishings: frozenset[str] = frozenset()
        self.staging: dict[bytes, trio.CancelScope] = {}
        self.egress = EgressProxy(
            self.runs_dir,
            allow=config.egress.allow,
            say=partial(run_logs.say_of_run, self),
            bytes_per_s=config.egress.bytes_per_s,
            bytes_per_run=config.egress.bytes_per_run,
            # Where others reach this node is its own doorstep too, also when a router holds the address.
            dialler=Dialler(denied=(*config.egress.deny, *networks_of(config.network.announce))),
        )
        self.cluster: Cluster | None = None
        self.price_program = program_of(config, self.now_ms) if self.lends else None

    @property
    def state(self) -> NodeState:
        """Everything the node must not forget. Only the engine changes it."""
        return self.engine.state

    @property
    def inventory(self) -> Inventory:
        """What this machine has to lend."""
        return self.watch.inventory

    @property
    def lends(self) -> bool:
        """Whether this node offers its devices: it is told to, and can confine strangers' code or may do without."""
        if not self.config.provider.enabled:
            return False
        return self.config.provider.tier == TIER_NONE or bool(self.sandbox and self.sandbox.available)

    @property
    def sandbox_view(self) -> Json:
        """What the local API says of the sandbox."""
        if self.sandbox is None:
            return {"tier": TIER_NONE, "available": False, "reason": "this node lends nothing, so it needs no sandbox"}
        view: Json = {"tier": self.sandbox.tier, "available": self.sandbox.available, "reason": self.sandbox.reason}
        if self.config.sandbox.warm:
            view["prepared"] = self.executor.pool.standing
        return view

    # What the rooms around the engine do with it.

    def tell(self, event: NodeEvent | RunEvent) -> None:
        """Hand the engine an event; what becomes of it is not waited for."""
        if isinstance(event, InventoryChanged) and self.cluster is not None:
            event = self.cluster.complete(event)
        if isinstance(event, RunLogged):
            run_logs.pass_on(self, event)
        elif not isinstance(event, RunLost | RunStopWanted | RunLeaveWanted):
            self._inbox.send_nowait((event, None, trio.current_time()))
        if isinstance(event, RunFinished | RunFailed | RunStopped):
            self.egress.close(event.run)
            staging.forget_run(self, event.run)

    async def take(self, event: NodeEvent) -> None:
        """Hand the engine an event and return when it is in the journal and has happened."""
        done = trio.Event()
        self._inbox.send_nowait((event, done, trio.current_time()))
        await done.wait()

    def counters(self) -> dict[str, int]:
        """Everything that was dropped, refused, retried or ignored, by reason."""
        return {
            **self.state.ignored,
            **self.net.counters(),
            **self.outbox.counters,
            **self.directory.counters,
            **self.egress.counters(),
            **self.discovery.older.counters,
            **self.ledger_keeper.counters(),
            **(self.bulk.counters if self.bulk is not None else {}),
            **(self.settler.counts() if self.settler is not None else {}),
            **(self.price_program.counters if self.price_program is not None else {}),
            **self.doorkeeper.counters,
            **self.job_logs.counters,
        }

    def start(self, work: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        """Have something done beside the engine; what comes of it is told as an event."""
        assert self.tasks is not None
        self.tasks.start_soon(work, *arguments)

    def later(self, work: Callable[..., object], *arguments: Any) -> None:
        """Have something that blocks done in a thread; nobody waits for it."""
        self.start(trio.to_thread.run_sync, work, *arguments)

    # The engine's loop.

    async def serve_engine(self) -> None:
        """Take batches for ever: journal, advance, then act."""
        while True:
            batch = await self._next_batch()
            for event, _, since in batch:
                if isinstance(event, MessageArrived) and isinstance(event.message, TenderSent):
                    self.figures.heard(event.message.tender.document, since)
            self.is_turning = True
            effects = self.engine.take([event for event, _, _ in batch])
            self.ledger_keeper.post(effects)
            for _, done, _ in batch:
                if done is not None:
                    done.set()
            self.lag_ms = max((trio.current_time() - since) * 1000 for _, _, since in batch)
            for effect in effects:
                perform(self, effect)
            self.is_turning = False
            self.figures.turned(self.state, self.state.turns, trio.current_time())
            self.figures.sent(self.state, effects)
            log_turns(self.state.turns)
            self.state.turns.clear()
            self.engine.write_snapshot_if_due()
            self.turned_at = trio.current_time()
            self.changed.set()
            self.changed = trio.Event()

    async def _next_batch(self) -> list[tuple[NodeEvent, trio.Event | None, float]]:
        """Whatever waits, at most ``BATCH``, or the time when some machine's deadline came."""
        batch: list[tuple[NodeEvent, trio.Event | None, float]] = []
        while not batch:
            deadline_ms = self.engine.deadline_ms()
            wait_s = math.inf if deadline_ms is None else max(0.0, (deadline_ms - self.now_ms()) / 1000)
            with trio.move_on_after(min(wait_s, STUCK_S / 2)):
                batch.append(await self._events.receive())
            with contextlib.suppress(trio.WouldBlock):
                while len(batch) < BATCH:
                    batch.append(self._events.receive_nowait())
            at_ms = self.now_ms()
            if deadline_ms is not None and deadline_ms <= at_ms:
                batch.append((TimeCame(at_ms=at_ms), None, trio.current_time()))
            self.turned_at = trio.current_time()
        return batch

    def unhealthy(self) -> str | None:
        """Why the engine makes no progress, or None."""
        still_s = trio.current_time() - self.turned_at
        return None if still_s < STUCK_S else f"the engine has not turned for {still_s:.0f} s"

    # The whole life.

    async def serve(self) -> None:
        """Open the network and serve until cancelled."""
        network = self.config.network
        net_config = NetConfig(
            listen=network.listen,
            bootstrap=network.bootstrap,
            announce=network.announce,
            relay=network.relay,
            upnp=network.upnp,
        )
        async with open_net(net_config, self.node.secret()) as self.net, trio.open_nursery() as nursery:
            self.tasks = nursery
            # Before anybody is answered: what peers say must find a state that knows who it is.
            self.tell(self.started())
            self.ledger_keeper.proof_exchange.tell_again(tuple(self.state.proven))
            if self.lends:
                # And no device that is ill, or that its owner uses, is promised before anybody has looked.
                for event in self.watch.judge(self.watch.look(), self.state.capacity):
                    self.tell(event)
            self.open_rooms()
            await nursery.start(self.outbox.serve)
            if self.lends:
                await nursery.start(self.egress.serve)
                if self.cluster is not None and self.config.cluster.listen is not None:
                    await nursery.start(self.cluster.serve, *self.config.cluster.listen)
                await nursery.start(self._serve_executor)
                nursery.start_soon(watch_devices, self)
                await nursery.start(self.shells.serve)
            await nursery.start(serve_api, local_api(self), self.config.api_socket)
            metrics = Metrics(self.figures)
            self.turned_at = trio.current_time()
            if self.config.metrics.port:
                shown = build_metrics_app(metrics, self.unhealthy)
                await nursery.start(serve_loopback, shown, self.config.metrics.port)
            if self.settler is not None:
                await nursery.start(self.settler.serve)
            nursery.start_soon(self.serve_engine)
            nursery.start_soon(self.discovery.run)
            for chore in (chores.greet_arrivals, chores.advertise, chores.show_life, chores.remind, chores.keep_blobs):
                nursery.start_soon(chore, self)
            nursery.start_soon(chores.remind_of_money, self)
            nursery.start_soon(chores.renew_binding, self)
            nursery.start_soon(chores.watch_clock, self)
            nursery.start_soon(ask_around, self)
            nursery.start_soon(watch_book, self)
            nursery.start_soon(chores.keep_checkpoints, self)
            nursery.start_soon(chores.keep_metrics, self, metrics)
            nursery.start_soon(PeerExchange(self.net).run)
            if self.bulk is not None:
                nursery.start_soon(self.bulk.run)
            self.ready.set()

    def open_rooms(self) -> None:
        """All that speaks with peers, or serves them, now that there is a network."""
        self._introduce()
        self._listen_to_the_market()
        self._trade_words_and_blobs()
        self._open_executor()

    def _introduce(self) -> None:
        """Say which account this node speaks for, and learn it of others."""
        roles = Role.BUYER | Role.PROVIDER if self.lends else Role.BUYER
        limit = self.config.buyer.max_job_budget
        self.own_binding = OwnBinding(self.account, self.node, roles=roles, spend_limit=limit, now_ms=self.now_ms)
        self.attestation = attest(digest(DOMAIN, self.own_binding.hello.binding))
        self.directory = Directory(self.net, self.own_binding.hello, self.now_ms)
        self.directory.serve()

    def _listen_to_the_market(self) -> None:
        """Who lends what, and how others' dealings with them went."""
        self.book = Book(self.net, self.now_ms, self._learn_advert)
        self.discovery = Discovery(
            self.net,
            self.book,
            self.now_ms,
            account=self.account.address,
            useful=lambda: useful_classes(self.state),
            wishes=lambda: wishes(self.state),
            data_dir=self.config.data_dir,
            lan=self.config.network.lan,
        )
        self.discovery.serve()
        self.histories = Histories(
            self.net,
            self.directory,
            state=self.state,
            account_key=self.account,
            share=self.config.reputation.share,
            now_ms=self.now_ms,
            take=self.take,
        )
        self.histories.serve()

    def _trade_words_and_blobs(self) -> None:
        """Messages of the market both ways; blobs; the keys of sealed ones."""
        self.outbox = Outbox(self.net, self.directory, self.account, self.now_ms, partial(tell_undelivered, self))
        meter = LineMeter(self._line_measured)
        self.bulk = make_bulk(self.net, self.store, self._may_fetch, meter)
        self.exchange = BlobExchange(self.net, self.store, self._may_fetch, self.bulk, meter)
        self.exchange.serve()
        account = self.account.address
        self.key_desk = KeyDesk(self.net, self.directory, self.job_keys, lambda: self.state, account)
        self.key_desk.serve()
        Courier(
            self.net,
            self.directory,
            take=self.doorkeeper.take,
            log=partial(run_logs.keep, self),
            hear=self.doorkeeper.hear,
            now_ms=self.now_ms,
            matters=self.doorkeeper.matters,
        ).serve()

    def _open_executor(self) -> None:
        """What makes sandboxes, here or on the other machines of the owner, and the shells into them."""
        launch: Launch = launch_with(self.config.sandbox.launcher)
        if self.lends and self.config.cluster.listen is not None:
            self.cluster = Cluster(
                data_dir=self.config.data_dir,
                account=self.account.address,
                tier=self.config.provider.tier,
                own=lambda: self.inventory,
                launch=launch,
                tell=self.tell,
                log=log_line,
                now_ms=self.now_ms,
            )
            launch = self.cluster.switchboard.launch
        self.executor = Executor(
            tell=self.tell,
            blobs=self.store,
            now_ms=self.now_ms,
            launch=launch,
            # On which of several machines a run will be is not known while one is prepared.
            warm=self.config.sandbox.warm if self.lends and self.cluster is None else 0,
            memory_bytes=self.watch.machine.memory_bytes,
            say=log_line,
        )
        allowed = self.config.provider.shells
        self.shells = ShellService(self.net, self.directory, self.executor, buyer_of=self._buyer_of, allowed=allowed)

    def _learn_advert(self, advert: Advert) -> None:
        if advert.signer != self.account.address:
            self.directory.hint(advert.signer, advert.peer_id)
            self.net.learn(advert.peer_id, advert.addresses, told_by=advert.peer_id)

    def _buyer_of(self, lease: bytes) -> bytes | None:
        sale = self.state.sale_on(lease)
        return sale.buyer if sale is not None else None

    async def _serve_executor(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        await self.executor.serve(task_status)

    def _may_fetch(self, context: Context, blob: BlobRef) -> bool:
        account = self.directory.account_of(context.peer_id)
        return account is not None and self.grants.allow(self.state, account, blob)

    def _line_measured(self, peer_id: str, way: str, bytes_per_s: int, is_bound: bool) -> None:
        account = self.directory.account_of(peer_id)
        if account is not None and is_of_use(self.state, account):
            at_ms = self.now_ms()
            self.tell(LineMeasured(provider=account, way=way, bytes_per_s=bytes_per_s, is_bound=is_bound, at_ms=at_ms))

    def started(self) -> Started:
        """Who this node is and what it lends: the first event of every life."""
        at_ms = self.now_ms()
        terms = None
        if self.lends:
            features = features_of(self.config, self.sandbox, self.furnishings)
            terms = terms_of(self.config, account=self.account.address, features=features, at_ms=at_ms)
        devices = self.inventory.devices if self.lends else ()
        return Started(
            account=self.account.address,
            peer_id=self.net.peer_id,
            terms=terms,
            devices=devices,
            at_ms=at_ms,
            currency=self.config.currency,
            netting=self.config.settlement.netting,
            payer=self.config.buyer.payer or ITSELF,
        )

    def close(self) -> None:
        """Write the state down and give the files back. What was laid out for runs goes: of sealed jobs it is open."""
        self.watch.close()
        # In the middle of a turn the books lack what the state has. The next start folds the journal, and posts it.
        if not self.is_turning:
            self.engine.write_snapshot_if_due(now=True)
        self.journal.close()
        self.ledger_keeper.close()
        if self.bulk is not None:
            self.bulk.close()
        shutil.rmtree(self.runs_dir, ignore_errors=True)
        if self.settler is not None:
            self.settler.close()
