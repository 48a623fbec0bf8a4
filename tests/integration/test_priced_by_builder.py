"""A builder makes the room of an owner's pricing program where the daemon may make none."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest
import trio
from kit.marked_processes import give_up_when_it_lives, living, new_mark, nothing_lives, sleeper_and_sleep

from hansa.market.pricing_rule import PricingRule
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_bwrap
from hansa.node.pricing.price_process import BuildersRoom, ProgramFailed, RoomOrder, read_order
from hansa.node.pricing.price_program import PriceProgram
from hansa.node.settings.pricing_config import PricingConfig

PYTHON = Path("/usr/bin/python3")
SOUND = {"command": ["/bin/true"], "shown": [], "cpu_s": 2}


@pytest.fixture(scope="module")
def house():
    """A place that every user can read, and a builder beside it."""
    try:
        find_bwrap()
    except SandboxUnavailable as lack:
        pytest.skip(str(lack))
    if not PYTHON.exists():
        pytest.skip("this machine has no Python in /usr/bin")
    with tempfile.TemporaryDirectory(prefix="hansa-priced-", dir="/var/tmp") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="module")
def builder(house):
    path = house / "socket"
    process = subprocess.Popen([sys.executable, "-m", "hansa.node.runs.builder", str(path)])
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.1)
    yield path
    process.terminate()
    process.wait()


def program(house, builder, text, *, timeout_ms=5_000):
    path = house / f"price-{time.monotonic_ns()}.py"
    path.write_text(f"#!{PYTHON}\nimport json, os, sys, time\n" + textwrap.dedent(text))
    path.chmod(0o755)
    config = PricingConfig(
        rule=PricingRule(),
        program=(str(path),),
        program_files=(),
        program_timeout_ms=timeout_ms,
        on_program_fault="rule",
    )
    return PriceProgram(config, house / "data", lambda: time.time_ns() // 1_000_000, builder)


def failure(asked):
    with pytest.raises(ProgramFailed) as caught:
        trio.run(asked.ask, {"version": 1}, 1)
    return caught.value


def test_it_answers_as_in_a_room_of_the_daemons_own(house, builder):
    asked = program(
        house, builder, 'asked = json.load(sys.stdin)\nprint(json.dumps({"decline": str(asked["version"])}))'
    )
    assert trio.run(asked.ask, {"version": 1}, 1).refusal == "1"
    assert asked.outcomes == {"declined": 1}


def test_it_reaches_no_network_no_process_and_no_file_of_the_node(house, builder):
    data = house / "data"
    data.mkdir(mode=0o755, exist_ok=True)
    (data / "node.key").write_text("secret")
    asked = program(
        house,
        builder,
        f"""
        import socket
        sys.stdin.read()
        found = [path for path in ({str(data)!r}, {str(builder)!r}, "/root", "/home", "/etc/shadow", "/sys", "/run")
                 if os.path.exists(path)]
        found += [entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) > 30]
        found += [name for _, name in socket.if_nameindex() if name != "lo"]
        found += [name for name in os.environ if name not in ("PATH", "HOME", "LANG", "PWD", "LC_CTYPE", "SHLVL", "_")]
        found += [entry for entry in os.listdir("/proc/self/fd") if int(entry) > 3]
        if os.getuid() == 0:
            found.append("root")
        print(json.dumps({{"decline": " ".join(found) or "nothing"}}))
        """,
    )
    assert trio.run(asked.ask, {}, 1).refusal == "nothing"


@pytest.mark.parametrize(
    ("text", "words", "outcome"),
    [
        ('sys.exit("no idea")', "it ended with status 1: no idea", "failed"),
        ('print("{}")', "not an object with one key", "unreadable"),
        ('while True: print("x" * 1000)', "it printed too much", "unreadable"),
        ("bytearray(1 << 30)", "MemoryError", "failed"),
        ("time.sleep(60)", "it took too long", "too-long"),
    ],
)
def test_its_limits_are_the_same(house, builder, text, words, outcome):
    fault = failure(program(house, builder, text, timeout_ms=1_500 if "sleep" in text else 10_000))
    assert words in str(fault)
    assert fault.outcome == outcome


def test_who_gives_up_ends_it_with_all_that_it_started(house, builder):
    mark = new_mark()
    asked = program(house, builder, sleeper_and_sleep(mark), timeout_ms=10_000)
    give_up_when_it_lives(mark, asked.ask, {}, 1)
    nothing_lives(mark)


def test_a_daemon_that_is_killed_leaves_none_behind(house, builder):
    """The connection closes with its owner, however that ends: here the owner is one socket."""
    mark = new_mark()
    ends = [os.pipe() for _ in range(4)]
    order = RoomOrder(command=("/bin/sh", "-c", "sleep 300", mark), shown=(), cpu_s=10)
    room = BuildersRoom(builder, order, [ends[0][0], ends[1][1], ends[2][1], ends[3][1]])
    deadline = time.monotonic() + 12
    while not living(mark):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    room.close()
    nothing_lives(mark)
    for pair in ends:
        for end in pair:
            os.close(end)


def test_a_builder_that_is_not_there_is_said_in_words(house):
    fault = failure(program(house, house / "nobody", "pass"))
    assert fault.outcome == "no-room"
    assert "no builder answers" in str(fault)


@pytest.mark.parametrize(
    "order",
    [
        None,
        [],
        {},
        {**SOUND, "more": 1},
        {**SOUND, "command": []},
        {**SOUND, "command": "/bin/true"},
        {**SOUND, "command": ["true"]},
        {**SOUND, "command": ["/bin/true", 1]},
        {**SOUND, "command": ["/bin/true", "a\0b"]},
        {**SOUND, "shown": ["relative"]},
        {**SOUND, "cpu_s": 0},
        {**SOUND, "cpu_s": 10**6},
        {**SOUND, "cpu_s": True},
        {**SOUND, "cpu_s": "2"},
    ],
)
def test_what_is_no_order_is_refused_and_the_builder_lives(house, builder, order):
    with pytest.raises(ValueError, match="order"):
        read_order(order)
    for count in (4, 2):
        ends = [os.pipe() for _ in range(2)]
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(20)
            control.connect(str(builder))
            flat = [end for pair in ends for end in pair]
            sent = json.dumps({"price": order if count == 4 else SOUND}).encode()
            socket.send_fds(control, [sent], flat[:count])
            for end in flat:
                os.close(end)
            assert "cannot run that" in json.loads(control.recv(1 << 16))["words"]
    assert read_order(SOUND).command == ("/bin/true",)
    assert trio.run(program(house, builder, 'print(json.dumps({"decline": "x"}))').ask, {}, 1).refusal == "x"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Each stays within its own limit, and together they do not.
        (
            """
            for _ in range(6):
                if os.fork() == 0:
                    kept = bytearray(os.urandom(1 << 20)) * 150
                    time.sleep(60)
            time.sleep(60)
            """,
            "it used too much memory",
        ),
        ("os.memfd_create('x')", "PermissionError"),
    ],
)
def test_all_of_it_together_has_no_more_memory_there_than_it_may(house, builder, text, words):
    text = "import time\n" + textwrap.dedent(text)
    fault = failure(program(house, builder, text, timeout_ms=10_000))
    assert words in str(fault)
