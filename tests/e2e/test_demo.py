"""`hansa demo` as a user runs it: four daemons, a real job, and nothing left behind however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from integration.sandbox_harness import need_sandbox
from kit.marked_processes import naming

from hansa.node.commands.demo_verdict import Account, judge

COMMAND = [sys.executable, "-m", "hansa", "demo"]
PATIENCE_S = 240.0


def start(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    )


def nothing_is_left(tmp_path: Path) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not naming(tmp_path) and not list(tmp_path.glob("hansa-demo-*")):
            return True
        time.sleep(0.1)
    return False


def wait_for_four(tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("hansa-demo-*/*/api.sock"))) < 4:
        assert time.monotonic() < deadline, "the four daemons did not start"
        time.sleep(0.1)


def wait_for_a_run(tmp_path: Path) -> None:
    deadline = time.monotonic() + 120
    while not any(is_bubblewrap(pid) for pid in naming(tmp_path)):
        assert time.monotonic() < deadline, "no run has begun"
        time.sleep(0.05)


def is_bubblewrap(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "bwrap\n"
    except OSError:
        return False


@pytest.mark.slow
def test_the_demo_trains_pays_and_balances_and_leaves_nothing(tmp_path: Path) -> None:
    demo = start(tmp_path, "--json")
    said, news = demo.communicate(timeout=PATIENCE_S)
    if demo.returncode == 2 and "no sandbox can be made" in news:
        pytest.skip(f"this machine makes no sandbox: {news.strip()[-300:]}")
    assert demo.returncode == 0, news
    result = json.loads(said)
    assert result["passed"]
    assert result["accuracy"] >= 0.93
    assert len(result["earnings"]) == 3
    assert all(each["holds"] for each in result["checks"])
    assert nothing_is_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "wait"),
    [(signal.SIGINT, wait_for_a_run), (signal.SIGTERM, wait_for_four), (signal.SIGKILL, wait_for_a_run)],
    ids=["INT-a run", "TERM-four", "KILL-a run"],
)
def test_a_demo_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, wait: Callable[[Path], None]
) -> None:
    need_sandbox()
    demo = start(tmp_path)
    try:
        wait(tmp_path)
        demo.send_signal(number)
        demo.communicate(timeout=60)
    finally:
        demo.kill()
    assert demo.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert nothing_is_left(tmp_path)


@pytest.mark.slow
def test_a_daemon_that_dies_at_the_start_is_told_and_its_log_is_kept(tmp_path: Path) -> None:
    demo = start(tmp_path)
    try:
        wait_for_four(tmp_path)
        (victim,) = [pid for pid in naming(tmp_path) if is_the_daemon_of(pid, "provider-2")]
        os.kill(victim, signal.SIGKILL)
        said, complaint = demo.communicate(timeout=PATIENCE_S)
    finally:
        demo.kill()
    if "submitted" not in said:
        assert demo.returncode == 2
        assert "provider-2 ended with code -9" in complaint
    assert demo.returncode in (1, 2)
    assert "logs and data are kept" in said
    assert list(tmp_path.glob("hansa-demo-*/provider-2/node.log"))
    assert not naming(tmp_path)


def is_the_daemon_of(pid: int, name: str) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return b"run" in words and any(word.endswith(f"/{name}".encode()) for word in words)


# ---- the verdict -----------------------------------------------------------------------------------------------------


def a_story(**changes: str) -> tuple[dict[str, object], list[Account], Account]:
    amount = {"earned": "0.5", "vouched": "0.5", "metered": "0.5", "spent": "0.5", "sum": "0.000000"} | changes
    channels = [{"role": "payee", "counterparty": "0xB", "metered": amount["metered"]}]
    provider = Account(
        name="p", account="0xA", balance={"earned": amount["earned"], "sum": amount["sum"], "channels": channels}
    )
    buyer = Account(name="b", account="0xB", balance={"spent": amount["spent"], "sum": "0.000000", "channels": []})
    job: dict[str, object] = {
        "phase": changes.get("phase", "succeeded"),
        "shards": [{"phase": changes.get("shard", "finished")}],
        "history": [{"metrics": {"accuracy": float(changes.get("accuracy", "0.95"))}}],
        "spend": {"by_provider": [{"provider": "0xA", "vouched": amount["vouched"], "metered": amount["metered"]}]},
    }
    return job, [provider], buyer


def test_a_sound_story_passes() -> None:
    assert judge(*a_story()).passed


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        ({"phase": "failed"}, "the job succeeded"),
        ({"accuracy": "0.92"}, "held-out accuracy is at least 0.93"),
        ({"shard": "lost"}, "every shard finished"),
        ({"sum": "0.000001"}, "the sum over every ledger is zero"),
        ({"sum": "-0.000001"}, "the sum over every ledger is zero"),
        ({"earned": "0.4", "spent": "0.4"}, "paid = vouched = metered for every provider"),
        ({"metered": "0.500001"}, "paid = vouched = metered for every provider"),
        ({"earned": "0", "vouched": "0", "metered": "0", "spent": "0"}, "paid = vouched = metered for every provider"),
        ({"spent": "0.6"}, "the buyer spent what the providers earned"),
    ],
)
def test_each_claim_can_fail_by_itself(change: dict[str, str], claim: str) -> None:
    verdict = judge(*a_story(**change))
    assert [check.claim for check in verdict.checks if not check.holds] == [claim]
    assert not verdict.passed
