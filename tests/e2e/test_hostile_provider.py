"""Providers that cheat, against real daemons: the job is done by the honest, and no cheat is ever paid."""

import functools
import json
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import trio
from kit.hostile import HostileProvider, hostile_provider, now_ms, what_it_got
from kit.market import asked, await_job, await_that, job_of, providers_known, running_market, submit

from hansa.market.equivocation import TwoHeads
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.proto.codec import encode
from hansa.proto.documents import TreeHead, log_id_of
from hansa.proto.messages import (
    AwardSent,
    LeaseCancelled,
    ProofSent,
    ReceiptDisputed,
    ReceiptRefused,
    RunOrdered,
    RunReported,
    RunStopOrdered,
    TenderSent,
    VoucherSent,
)
from hansa.proto.network import DOMAIN
from hansa.proto.protocols import MAX_MARKET_BYTES
from hansa.proto.signing import SigningKey, checksum_address, sign
from hansa.proto.typed_data import digest

pytestmark = [pytest.mark.slow, pytest.mark.trio]
JOB = """
name = "{name}"
entry = "count.py:count"
shards = {shards}

[resources]
kind = "cpu"
cores = 0.5
memory = "600 MiB"
disk = "64 MiB"

[limits]
wall = "3 min"
stall = "60 s"
silence = "5 s"
round = "3 s"
retries = 3

[budget]
total = "1.00"

[tender]
bids = "1.5 s"
meter = "1 s"
"""
CODE = """
import time

import numpy as np


def count(ctx):
    state = ctx.restore()
    state = {"sum": np.zeros(2)} if state is None else state
    while ctx.round < 4:
        time.sleep(0.1)
        state = ctx.sync({"sum": state["sum"] + 1})
        ctx.report(step=ctx.round, loss=1.0 / ctx.round)
    (ctx.outputs / "sum.txt").write_text(repr(state["sum"].tolist()))
"""


class Scene:
    """The daemons of all cases, and what a case does with them. Nothing here blocks the hostile ones' loop."""

    def __init__(self, nodes: DemoNodes, directory: Path) -> None:
        self.nodes, self.directory = nodes, directory
        self.honest = {node.account for node in nodes.providers}

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await trio.to_thread.run_sync(functools.partial(function, *arguments))

    async def meet(self, *liars: HostileProvider) -> None:
        """Wait until the buyer has their adverts."""
        wanted = {checksum_address(liar.account.address) for liar in liars}

        def known() -> bool:
            return wanted <= {each["account"] for each in providers_known(self.nodes)}

        await self.call(await_that, known, 15, "the buyer knows the hostile providers")

    async def submit(self, name: str, shards: int = 1) -> str:
        (self.directory / "job.toml").write_text(JOB.format(name=name, shards=shards))
        (self.directory / "count.py").write_text(textwrap.dedent(CODE))
        job: str = await self.call(submit, self.nodes, self.directory)
        return job

    async def job_ends_well_with_the_honest(self, job: str, *liars: HostileProvider) -> dict[str, Any]:
        """The job succeeds, the daemons live, and the books know of no money for those who cheated."""
        view: dict[str, Any] = await self.call(await_job, self.nodes, job, 40)
        assert view["phase"] == "succeeded", view["reason"]
        assert {shard["provider"] for shard in view["shards"]} <= self.honest
        assert len(view["outputs"]) == len(view["shards"])
        self.nodes.check_alive()
        balance = await self.call(self.balance)
        for liar in liars:
            account = checksum_address(liar.account.address)
            paid = [entry for entry in view["spend"]["by_provider"] if entry["provider"] == account]
            assert all(Decimal(entry["vouched"]) == 0 for entry in paid)
            channels = [entry for entry in balance["channels"] if entry["counterparty"] == account]
            assert all(Decimal(channel["vouched"]) == 0 for channel in channels)
            assert not [message for message in liar.heard if isinstance(message, VoucherSent)]
        assert Decimal(balance["sum"]) == 0
        honest_share = sum(
            Decimal(entry["vouched"]) for entry in view["spend"]["by_provider"] if entry["provider"] in self.honest
        )
        assert Decimal(view["spend"]["vouched"]) == honest_share
        return view

    def balance(self) -> dict[str, Any]:
        """What the buyer's own command says of its money."""
        command = [sys.executable, "-m", "hansa", "balance", "--json", "--data", self.nodes.buyer.made.config.data_dir]
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    async def counters(self) -> dict[str, int]:
        view = await self.call(asked, self.nodes.buyer, "/v1/node")
        found: dict[str, int] = view["counters"]
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with running_market("0.30", "0.45") as nodes:
            yield Scene(nodes, tmp_path_factory.mktemp("job"))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def tender_of(view: dict[str, Any], liar: HostileProvider) -> dict[str, Any]:
    """What became of the liar's bid."""
    account = checksum_address(liar.account.address)
    found: list[dict[str, Any]] = [bid for tender in view["tenders"] for bid in tender["bids"]]
    return next(bid for bid in found if bid["provider"] == account)


async def test_one_that_never_answers_a_tender_is_waited_for_no_longer_than_bidding_lasts(scene: Scene) -> None:
    async with hostile_provider(scene.nodes.buyer.address) as liar:
        await scene.meet(liar)
        job = await scene.submit("silent at tenders")
        await liar.until_heard(TenderSent)
        view = await scene.job_ends_well_with_the_honest(job, liar)
        assert view["tenders"][0]["silent"] == [checksum_address(liar.account.address)]
        assert view["shards"][0]["attempts"] == 1


async def test_one_that_wins_and_never_confirms_is_replaced_by_the_next_bid(scene: Scene) -> None:
    async with hostile_provider(scene.nodes.buyer.address) as liar:

        async def only_bid(message: Any) -> None:
            if isinstance(message, TenderSent):
                await liar.answer_with_bid(message)

        liar.react = only_bid
        await scene.meet(liar)
        job = await scene.submit("never confirmed")
        await liar.until_heard(AwardSent)
        view = await scene.job_ends_well_with_the_honest(job, liar)
        assert tender_of(view, liar)["why"] == "did not confirm in time"
        await liar.until_heard(LeaseCancelled)


async def test_one_that_confirms_and_is_silent_loses_its_shard(scene: Scene) -> None:
    async with hostile_provider(scene.nodes.buyer.address) as liar:
        liar.react = liar.bid_and_confirm
        await scene.meet(liar)
        job = await scene.submit("never started")
        await liar.until_heard(RunOrdered)
        view = await scene.job_ends_well_with_the_honest(job, liar)
        assert view["shards"][0]["attempts"] == 2
        assert "silent" in view["shards"][0]["reason"]
        await liar.until_heard(RunStopOrdered)


async def test_bytes_that_are_none_of_ours_bar_their_sender_and_nobody_else(scene: Scene) -> None:
    async with (
        hostile_provider(scene.nodes.buyer.address) as noisy,
        hostile_provider(scene.nodes.buyer.address) as large,
    ):
        job = await scene.submit("noise")
        garbage = (b"", b"\xff" * 100, b"\x81\xa1", b"\x91" * 5_000, bytes(1_000))
        told = [await what_it_got(noisy.send(data)) for data in garbage[:4]]
        assert set(told) == {"RemoteFault"}
        told = [await what_it_got(large.send(bytes(MAX_MARKET_BYTES + 1))) for _ in range(4)]
        assert set(told) == {"TooBig"}
        for liar in (noisy, large):
            await what_it_got(liar.send(bytes(MAX_MARKET_BYTES + 1)))
            assert await what_it_got(liar.send(b"")) in ("Unreachable", "RemoteFault", "Timeout")
        node = await scene.call(asked, scene.nodes.buyer, "/v1/node")
        phases = {peer["peer_id"]: peer["phase"] for peer in node["peers"]}
        assert phases[noisy.net.peer_id] == phases[large.net.peer_id] == "barred"
        assert [phases[peer.made.peer_id] for peer in scene.nodes.providers] == ["live", "live"]
        await scene.job_ends_well_with_the_honest(job, noisy, large)


async def test_receipts_that_are_forged_inflated_or_anothers_are_never_vouched_for(scene: Scene) -> None:
    async with hostile_provider(scene.nodes.buyer.address) as liar:
        liar.react = liar.bid_and_confirm
        await scene.meet(liar)
        before = await scene.counters()
        job = await scene.submit("false receipts", shards=2)
        award: AwardSent = await liar.until_heard(AwardSent)
        await liar.until_heard(RunOrdered)
        since_ms = now_ms()
        lease = digest(DOMAIN, award.award.document)
        await liar.say(RunReported(lease=lease, step=1_000, metrics=(), started=True))
        await trio.sleep(1.2)
        fair = liar.statement(award, since_ms=since_ms, device_ms=1_000)
        # A signature that is not the signer's: refused at the door, with a strike.
        assert await what_it_got(liar.send(encode(liar.receipt(fair, SigningKey(b"\x07" * 32))))) == "RemoteFault"
        # More than price times time, more time than there was, and a total that is not the sum.
        most = liar.agreed(award).max_total
        inflated = [
            liar.statement(award, since_ms=since_ms, device_ms=1_000, factor=1_000),
            liar.statement(award, since_ms=since_ms - 3_600_000, device_ms=3_600_000),
            liar.statement(award, since_ms=since_ms, device_ms=10**9),
            replace(fair, receipt=replace(fair.receipt, amount_total=most)),
            replace(fair, receipt=replace(fair.receipt, seq=9)),
        ]
        for statement in inflated:
            assert await what_it_got(liar.say(liar.receipt(statement))) == "taken", "it is answered in words"
        refused = await liar.until_heard(ReceiptRefused)
        assert refused.channel_id == award.award.document.channel_id
        # What two clocks might explain is disputed: no more is called payable than passed since the start.
        disputed = await liar.until_heard(ReceiptDisputed)
        assert sum(line.device_ms for line in disputed.payable) < 30_000
        # A receipt for the channel of somebody honest.
        balance = await scene.call(scene.balance)
        others = [channel for channel in balance["channels"] if channel["counterparty"] in scene.honest]
        for channel in others:
            key = bytes.fromhex(channel["channel_id"])
            theirs = replace(fair, receipt=replace(fair.receipt, channel_id=key, seq=1))
            await liar.say(liar.receipt(theirs))
        after = await scene.counters()
        ignored = "gate: ReceiptSent about nothing of the sender's"
        assert after.get(ignored, 0) - before.get(ignored, 0) == len(others) > 0
        await scene.job_ends_well_with_the_honest(job, liar)
        assert job_of(scene.nodes, job)["phase"] == "succeeded"


def proofs_of(node: DemoNode) -> list[dict[str, Any]]:
    """The proofs of lies that a node keeps, as its own command says."""
    command = [sys.executable, "-m", "hansa", "ledger", "proofs", "--json", "--data", node.made.config.data_dir]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    found: list[dict[str, Any]] = json.loads(said.stdout)["proofs"]
    return found


async def test_one_that_signs_two_receipts_is_refused_by_nodes_that_it_never_dealt_with(scene: Scene) -> None:
    async with hostile_provider(scene.nodes.buyer.address) as liar:
        liar.react = liar.bid_and_confirm
        await scene.meet(liar)
        name, honest = checksum_address(liar.account.address), bytes.fromhex(scene.nodes.providers[0].account[2:])
        heads = [TreeHead(log_id=log_id_of(honest), size=7, root=root * 32, timestamp_ms=1) for root in (b"a", b"b")]
        first, second = (sign(DOMAIN, head, liar.account) for head in heads)
        forged = ProofSent(proof=encode(TwoHeads(first=first, second=second)))
        assert await what_it_got(liar.say(forged)) == "RemoteFault", "it proves nothing, and is its bringer's fault"
        job = await scene.submit("two receipts", shards=2)
        award: AwardSent = await liar.until_heard(AwardSent)
        await liar.until_heard(RunOrdered)
        since_ms = now_ms()
        await liar.say(RunReported(lease=digest(DOMAIN, award.award.document), step=1_000, metrics=(), started=True))
        await trio.sleep(1.2)
        for factor in (1_000, 2_000):
            charged = liar.statement(award, since_ms=since_ms, device_ms=1_000, factor=factor)
            await liar.say(liar.receipt(charged))

        def everybody_knows() -> bool:
            return all(name in {proof["account"] for proof in proofs_of(node)} for node in scene.nodes.nodes)

        await scene.call(await_that, everybody_knows, 30, "every daemon keeps the proof")
        for node in scene.nodes.providers:
            blocked = await scene.call(asked, node, "/v1/blocked")
            assert name in {entry["account"] for entry in blocked["blocked"]}
        await scene.job_ends_well_with_the_honest(job, liar)
