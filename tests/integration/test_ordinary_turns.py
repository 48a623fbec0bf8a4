"""What a stranger runs has no more of the processor than an ordinary process, though the daemon has."""

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator

import pytest
from integration.sandbox_harness import need_sandbox
from integration.test_launcher_guard import RUNNER

from hansa.node.isolation.build_room import Outcome, Tool, make_work, run_tool
from hansa.node.isolation.launcher_link import start_launcher
from hansa.node.isolation.launcher_protocol import Start, Started, receive, send
from hansa.node.isolation.ordinary_turns import take_ordinary_turns

REAL_TIME = "os.sched_setscheduler(0, {policy}, os.sched_param(5))"
ABOVE = {
    "real time": REAL_TIME.format(policy="os.SCHED_RR"),
    "real time until the next fork": REAL_TIME.format(policy="os.SCHED_RR | os.SCHED_RESET_ON_FORK"),
    "a negative nice value": "os.setpriority(os.PRIO_PROCESS, 0, -5)",
}
LIMITED = "print(resource.getrlimit(resource.RLIMIT_RTPRIO), resource.getrlimit(resource.RLIMIT_NICE))"
SAID = "print(os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0))"


def in_a_process(*lines: str) -> str:
    """What such a program prints, if the machine lets it have a priority."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(["import os", *lines])],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "PermissionError" in done.stderr or "not allowed to raise" in done.stderr:
        pytest.skip("this user may not have such a priority")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_nor_may_it_raise_itself_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited: dict[int, tuple[int, int]] = {}
    monkeypatch.setattr(resource, "setrlimit", limited.__setitem__)
    take_ordinary_turns()
    assert limited == {resource.RLIMIT_RTPRIO: (0, 0), resource.RLIMIT_NICE: (0, 0)}


def test_it_may_not_raise_itself_either() -> None:
    may = [f"resource.setrlimit(resource.RLIMIT_{name}, (5, 5))" for name in ("RTPRIO", "NICE")]
    ours = "from hansa.node.isolation.ordinary_turns import take_ordinary_turns"
    assert in_a_process("import resource", *may, LIMITED) == "(5, 5) (5, 5)"
    assert in_a_process("import resource", *may, ours, "take_ordinary_turns()", LIMITED) == "(0, 0) (0, 0)"


@pytest.mark.parametrize("above", ABOVE.values(), ids=ABOVE)
def test_a_process_gives_up_what_it_has_above_others(above):
    ours = "from hansa.node.isolation.ordinary_turns import take_ordinary_turns"
    assert in_a_process(above, SAID) != f"{os.SCHED_OTHER} 0"
    assert in_a_process(above, ours, "take_ordinary_turns()", SAID) == f"{os.SCHED_OTHER} 0"


def test_what_it_has_below_others_it_keeps():
    ours = "from hansa.node.isolation.ordinary_turns import take_ordinary_turns"
    low = "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.setpriority(os.PRIO_PROCESS, 0, 15)"
    assert in_a_process(low, ours, "take_ordinary_turns()", SAID) == f"{os.SCHED_BATCH} 15"


@contextlib.contextmanager
def at_a_real_time_priority() -> Iterator[None]:
    """As an owner's daemon may be, where this user may."""
    ours = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    except PermissionError:
        pytest.skip("this user may not have a real-time priority")
    try:
        yield
    finally:
        os.sched_setscheduler(0, *ours)


def test_a_run_of_a_daemon_at_a_real_time_priority_has_none_itself():
    need_sandbox()
    with at_a_real_time_priority():
        process, control = start_launcher()
    try:
        control.settimeout(60)
        send(control, Start(run=b"run", spec=RUNNER))
        started, (line, *_) = receive(control)
        assert isinstance(started, Started)
        assert os.sched_getscheduler(started.pid) == os.SCHED_OTHER
        os.close(line)
    finally:
        control.close()
        process.wait(20)


def test_nor_has_a_room_in_which_something_is_built(tmp_path):
    need_sandbox()
    make_work(tmp_path / "work")
    policy = ("/bin/cut", "-d", " ", "-f", "41", "/proc/self/stat")
    with at_a_real_time_priority():
        made = run_tool(Tool(command=policy, work=str(tmp_path / "work"), most_bytes=1 << 20, most_s=30.0))
    assert made == Outcome(ok=True, words=f"{os.SCHED_OTHER}")
