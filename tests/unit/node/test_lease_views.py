"""What both sides of a lease are shown: whose it is, how it is isolated, how much it computed, and when it goes."""

import json
from typing import Any

from kit.small_market import SmallMarket, device
from kit.trading import BUYER, BUYER_KEY, JOB, PROVIDER, PROVIDER_KEY, spec

from hansa.node.api import views
from hansa.node.engine import events
from hansa.proto.signing import checksum_address
from hansa.scheduler import run

FIRST = device(PROVIDER[0]).id


def running() -> tuple[SmallMarket, bytes]:
    made = SmallMarket()
    made.add(BUYER_KEY)
    made.add(PROVIDER_KEY, devices=1)
    made.submit(BUYER, of=spec(shards=1, keep_failed_ms=60_000))
    made.tender(BUYER, (PROVIDER,))
    (lease,) = made.engines[PROVIDER].state.sale_of
    made.take(PROVIDER, run.RunStarted(run=lease, at_ms=made.now_ms))
    return made, lease


def of_provider(made: SmallMarket) -> Any:
    (view,) = views.lease_views(made.engines[PROVIDER].state)
    assert json.loads(json.dumps(view)) == view
    return view


def of_buyer(made: SmallMarket) -> Any:
    state = made.engines[BUYER].state
    job = state.jobs.get(JOB)
    assert job is not None
    view = views.job_view(state, job)
    assert json.loads(json.dumps(view)) == view
    return view


def step(made: SmallMarket, lease: bytes, number: int) -> None:
    made.now_ms += 1_000
    made.take(PROVIDER, run.RunProgressed(run=lease, step=number, metrics=(), at_ms=made.now_ms))


def test_both_sides_see_isolation_and_use_of_a_lease() -> None:
    made, lease = running()
    assert (of_provider(made)["used_percent"], of_provider(made)["buyer"]) == (None, checksum_address(BUYER))
    made.take(PROVIDER, events.DevicesUsed(lease=lease, busy_ms=870, at_ms=made.now_ms))
    step(made, lease, 1)
    ours = of_provider(made)
    assert (ours["tier"], ours["device_ms"], ours["busy_ms"], ours["used_percent"]) == ("sandbox", 1_000, 870, 87)
    assert (ours["vouched"], ours["accrued"], ours["devices"]) == ("0.001000", "0.001000", [FIRST.hex()])
    (theirs,) = of_buyer(made)["spend"]["by_provider"]
    assert (theirs["tier"], theirs["used_percent"], theirs["device_ms"]) == ("sandbox", 87, 1_000)


def test_both_sides_see_when_a_lease_is_left_and_why() -> None:
    made, _ = running()
    told = events.DevicesWithdrawn(devices=(FIRST,), notice_ms=60_000, why="the owner plays", at_ms=made.now_ms)
    made.take(PROVIDER, told)
    assert of_provider(made)["leaves_by_ms"] == made.now_ms + 60_000
    (shard,) = of_buyer(made)["shards"]
    assert (shard["leaves_by_ms"], shard["leaves_why"]) == (made.now_ms + 60_000, "the owner plays")
    assert shard["kept_until_ms"] is None


def test_both_sides_see_that_a_run_is_kept_until_when_and_why() -> None:
    made, lease = running()
    until_ms = made.now_ms + 30_000
    kept = run.RunKept(
        run=lease, kind="user-exception", reason="division by zero", until_ms=until_ms, at_ms=made.now_ms
    )
    made.take(PROVIDER, kept)
    assert of_provider(made)["phase"] == "kept"
    (shard,) = of_buyer(made)["shards"]
    assert (shard["phase"], shard["kept_until_ms"], shard["kind"]) == ("kept", until_ms, "user-exception")
    assert shard["reason"] == "its code ended with an error: division by zero"


def test_a_lease_that_is_over_is_not_among_those_that_are_out() -> None:
    made, lease = running()
    made.take(PROVIDER, run.RunFinished(run=lease, at_ms=made.now_ms))
    assert views.lease_views(made.engines[PROVIDER].state) == []
