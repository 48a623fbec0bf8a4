"""An owner's pricing program: what it is told, what it may answer, and what it cannot reach or outlast."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from kit.marked_processes import give_up_when_it_lives, living, new_mark, nothing_lives, sleeper_and_sleep
from kit.small_market import device
from kit.trading import NOW_MS, PRICE, tender

from hansa.market.pricing_rule import PricingRule
from hansa.node.commands import doctor
from hansa.node.commands.first_setup import Wishes, set_up
from hansa.node.engine.answering import PriceWanted
from hansa.node.engine.events import TenderPriced
from hansa.node.faults import ConfigError
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_bwrap
from hansa.node.pricing import price_program, price_turns
from hansa.node.pricing.price_process import OwnRoom, ProgramFailed, RoomOrder
from hansa.node.pricing.price_program import PriceProgram, priced, question_about, read_answer
from hansa.node.settings.config import load_config
from hansa.node.settings.pricing_config import PricingConfig
from hansa.proto.codec import decode, encode

PYTHON = Path("/usr/bin/python3")
WANTED = PriceWanted(
    tender=tender(),
    lease="spot",
    sets=((device(1).id,), (device(2).id,)),
    rule_e18=(PRICE, PRICE),
    share_ppm=0,
    tries=1,
)
OWNED = {one.id: one for one in (device(1), device(2))}


@pytest.fixture
def place():
    """A directory that every user of this machine can read; pytest's own are closed to all but its user."""
    try:
        find_bwrap()
    except SandboxUnavailable as lack:
        pytest.skip(str(lack))
    if not PYTHON.exists():
        pytest.skip("this machine has no Python in /usr/bin")
    made = Path(f"/var/tmp/hansa-price-{os.getpid()}-{time.monotonic_ns()}")
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


def program(place, text, *, timeout_ms=20_000, files=(), data_dir=None):
    path = place / "price.py"
    path.write_text(f"#!{PYTHON}\nimport json, os, sys\n" + textwrap.dedent(text))
    path.chmod(0o755)
    config = PricingConfig(
        rule=PricingRule(),
        program=(str(path),),
        program_files=tuple(files),
        program_timeout_ms=timeout_ms,
        on_program_fault="rule",
    )
    return PriceProgram(config, data_dir or place / "data", lambda: NOW_MS)


def ask(asked, sets=2):
    question = question_about(WANTED, OWNED, leased=1, owned=2, at_ms=NOW_MS)
    return trio.run(asked.ask, question, sets)


def failure(asked, sets=2):
    with pytest.raises(ProgramFailed) as caught:
        ask(asked, sets)
    assert sum(asked.counters.values()) == 1
    return str(caught.value)


def test_it_is_told_what_is_public_of_the_tender_and_names_a_price_for_each_set(place):
    asked = program(
        place,
        """
        asked = json.load(sys.stdin)
        assert asked["version"] == 1 and asked["devices_owned"] == 2 and asked["devices_leased"] == 1
        assert asked["tender"]["currency"] == "USD" and asked["lease"] == "spot"
        assert [one["devices"][0]["model"] for one in asked["sets"]] == ["Xeon", "Xeon"]
        print(json.dumps({"prices_per_hour": [asked["sets"][0]["rule_price_per_hour"], None]}))
        """,
    )
    assert ask(asked).prices_e18 == (PRICE, None)
    assert asked.counters == {"price program: answered": 1}


def test_it_reaches_no_network_no_process_no_file_of_the_node_and_no_secret(place):
    data = place / "data"
    data.mkdir(mode=0o755)
    (data / "node.key").write_text("secret")
    os.environ["HANSA_TEST_SECRET"] = "secret"
    asked = program(
        place,
        f"""
        import socket
        sys.stdin.read()
        found = []
        for path in ({str(data / "node.key")!r}, "/root", "/home", "/etc/shadow", "/var/log", "/sys"):
            if os.path.exists(path):
                found.append(path)
        found += [name for name in os.environ if "SECRET" in name]
        found += [entry for entry in os.listdir("/proc") if entry.isdigit() and int(entry) > 30]
        found += [name for _, name in socket.if_nameindex() if name != "lo"]
        for path in ("/usr/x", "/x", "/dev/x"):
            try:
                open(path, "w")
                found.append(path)
            except OSError:
                pass
        if os.getuid() == 0:
            found.append("root")
        print(json.dumps({{"decline": " ".join(found) or "nothing"}}))
        """,
    )
    try:
        assert ask(asked).refusal == "nothing"
    finally:
        del os.environ["HANSA_TEST_SECRET"]


def test_it_reads_what_its_owner_lists_and_cannot_write_it(place):
    prices = place / "prices"
    prices.mkdir(mode=0o755)
    (prices / "now").write_text("0.42")
    asked = program(
        place,
        f"""
        path = {str(prices / "now")!r}
        price = open(path).read()
        try:
            open(path, "w")
            price = "9"
        except OSError:
            pass
        print(json.dumps({{"price_per_hour": price}}))
        """,
        files=[str(prices)],
    )
    assert len(set(ask(asked).prices_e18)) == 1
    assert (prices / "now").read_text() == "0.42"


def test_one_that_takes_too_long_is_ended_with_all_that_it_started(place):
    mark = new_mark()
    asked = program(
        place,
        f"""
        import subprocess
        subprocess.Popen(["/bin/sh", "-c", "sleep 300", "{mark}"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
        import time
        time.sleep(300)
        """,
        timeout_ms=2_000,
    )
    assert failure(asked) == "it took too long"
    nothing_lives(mark)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('sys.exit("no idea")', "it ended with status 1: no idea"),
        ('print("{}")', "not an object with one key"),
        ("print('{\"price_per_hour\": 0.4}')", "not JSON of the allowed form"),
        ('while True: print("x" * 1000)', "it printed too much"),
        ("bytearray(1 << 30)", "it ended with status 1: MemoryError"),
        ("os.close(1); os.close(2)\nwhile True: pass", "it took too long"),
    ],
)
def test_whatever_goes_wrong_is_told_in_words_and_counted(place, text, words):
    assert words in failure(program(place, text, timeout_ms=2_000 if "True: pass" in text else 20_000))


def tender_of(buyer):
    return replace(WANTED, tender=replace(WANTED.tender, signer=bytes([buyer]) * 20))


def test_a_flood_of_tenders_is_no_flood_of_processes(place):
    asked = program(place, "import time; time.sleep(0.3); print(json.dumps({'price_per_hour': '1'}))")
    outcomes = []

    async def flood():
        async def one():
            said = await priced(asked, WANTED, {"version": 1}, is_known=False, now_ms=lambda: NOW_MS)
            outcomes.append(said)

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)

    trio.run(flood)
    answered = [one for one in outcomes if not one.fault]
    # Two ran at once and the others waited; how many of these had their turn in time is this machine's affair.
    most = price_program.AT_ONCE + price_turns.PLACES_EACH
    assert price_program.AT_ONCE <= len(answered) <= most
    assert asked.counters[f"price program: {price_turns.CROWDED}"] >= 200 - most
    assert decode(encode(answered[0]), TenderPriced, limit_bytes=1 << 16) == answered[0]


def test_many_buyers_start_no_more_programs_than_may_be_started_and_the_owner_has_a_place_of_their_own(place):
    asked = program(place, "print(json.dumps({'price_per_hour': '1'}))")
    outcomes = []

    async def one(wanted):
        outcomes.append(await priced(asked, wanted, {"version": 1}, is_known=False, now_ms=lambda: NOW_MS))

    async def everybody():
        async with trio.open_nursery() as nursery:
            for buyer in range(price_program.BURST + 5):
                nursery.start_soon(one, tender_of(buyer))

    # The clock stands still here, so what was burst is spent.
    trio.run(everybody)
    assert sum(not one.fault for one in outcomes) <= price_program.BURST
    assert any("turn did not come in time" in one.fault for one in outcomes)
    assert ask(asked).prices_e18


def open_tender_of(buyer):
    wanted = tender_of(buyer)
    return replace(wanted, tender=replace(wanted.tender, bids_close_ms=NOW_MS + 600_000))


def test_an_honest_buyer_is_heard_while_strangers_flood_and_so_is_the_owner(place, monkeypatch):
    # On a machine that is busy with other tests a turn may take seconds; how many turns there are is what counts.
    monkeypatch.setattr(price_program, "LONGEST_WAIT_S", 60.0)
    began = time.monotonic()
    asked = program(place, "import time; time.sleep(0.2); print(json.dumps({'price_per_hour': '1'}))")

    async def market():
        outcomes = {"stranger": None, "known": None, "owner": None}

        async def flood(buyer):
            while True:
                await priced(asked, open_tender_of(buyer), {}, is_known=False, now_ms=now_ms)
                await trio.sleep(0.01)

        async def honest(name, buyer, is_known):
            outcomes[name] = await priced(asked, open_tender_of(buyer), {}, is_known=is_known, now_ms=now_ms)

        async def owner():
            outcomes["owner"] = await asked.ask({}, 2)

        async with trio.open_nursery() as floods:
            for buyer in range(1, 5):
                for _ in range(20):
                    floods.start_soon(flood, buyer)
            await trio.sleep(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(honest, "stranger", 100, False)
                nursery.start_soon(honest, "known", 101, True)
                nursery.start_soon(owner)
            floods.cancel_scope.cancel()
        return outcomes

    def now_ms():
        return NOW_MS + int((time.monotonic() - began) * 1000)

    asked._now_ms = now_ms
    outcomes = trio.run(market)
    assert not outcomes["stranger"].fault
    assert not outcomes["known"].fault
    assert outcomes["owner"].prices_e18
    assert asked.outcomes["refused"] > 0


def test_who_gives_up_ends_the_program_at_once_with_all_that_it_started(place):
    mark = new_mark()
    asked = program(place, sleeper_and_sleep(mark), timeout_ms=200_000)
    began = time.monotonic()
    give_up_when_it_lives(mark, asked.ask, {}, 2)
    assert time.monotonic() - began < 60
    nothing_lives(mark)


def test_a_room_whose_maker_has_ended_is_not_begun():
    order = {"command": ["/bin/true"], "shown": [], "cpu_s": 1, "parent": 1 << 22}
    written = os.memfd_create("order")
    os.write(written, json.dumps(order).encode())
    os.lseek(written, 0, os.SEEK_SET)
    command = [sys.executable, "-m", "hansa.node.pricing.price_room", str(written), "2"]
    done = subprocess.run(command, pass_fds=(written,), capture_output=True, check=False, timeout=60, cwd="/")
    os.close(written)
    assert done.returncode == 125, done.stderr


def test_it_cannot_be_given_the_nodes_own_data(place):
    data = place / "data"
    data.mkdir()
    for shown in (data, place, data / "keys"):
        shown.mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="own data"):
            program(place, "", files=[str(shown)], data_dir=data)
    link = place / "innocent"
    link.symlink_to(data)
    with pytest.raises(ConfigError, match="own data"):
        program(place, "", files=[str(link)], data_dir=data)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "one key"),
        ('{"price_per_hour": "1", "decline": "x"}', "one key"),
        ('{"price_per_hour": 1}', "as they must be"),
        ('{"price_per_hour": "1e3"}', "plain decimal number"),
        ('{"price_per_hour": "-1"}', "plain decimal number"),
        ('{"price_per_hour": "' + "9" * 40 + '"}', "below 2^128"),
        ('{"prices_per_hour": ["1"]}', "as they must be"),
        ('{"prices_per_hour": ["1", 2]}', "a price is text in quotes"),
        ('{"decline": ""}', "as they must be"),
        ('{"decline": "a\\nb"}', "as they must be"),
        ('{"decline": "a", "decline": "b"}', "allowed form"),
        ("[" * 5_000, "allowed form"),
        ("\x00", "allowed form"),
    ],
)
def test_nothing_but_an_exact_answer_is_taken(text, words):
    with pytest.raises(ProgramFailed) as caught:
        read_answer(text.encode(), 2)
    assert words in str(caught.value)


def test_an_exact_answer_is_taken():
    assert read_answer(b'{"price_per_hour": "3.6"}', 2).prices_e18 == (PRICE, PRICE)
    assert read_answer(json.dumps({"decline": "x" * 500}).encode(), 2).refusal == "x" * 200


def test_the_doctor_says_whether_it_can_run_and_what_to_do(place):
    data = place / "node"
    wishes = Wishes(provides=True, cpu_slots=1, cpu_cores_per_slot=1, gpus=(), metrics_port=0)
    set_up(data, wishes)
    path = place / "price.py"
    path.write_text(f'#!{PYTHON}\nprint(\'{{"price_per_hour": "0.42"}}\')\n')
    path.chmod(0o755)
    text = (data / "config.toml").read_text()

    def found(**changes):
        changed = text.replace("program = []", f'program = ["{path}"]')
        for old, new in changes.items():
            changed = re.sub(rf"(?m)^{old} = .*", f"{old} = {new}", changed)
        (data / "config.toml").write_text(changed)
        return doctor._price_program(load_config(data))

    assert found(program="[]") == []
    ((name, ok, words),) = found()
    assert (name, ok) == ("price program", True), words
    assert "names 0.42" in words
    ((_, ok, words),) = found(builder=f'"{place}/nobody"')
    assert not ok
    assert "no builder answers" in words
    assert "hansa-builder.service runs" in words
    path.write_text("#!/bin/sh\nprintf 'ti\\033]0;x\\007tle' >&2; exit 3\n")
    ((_, ok, words),) = found()
    assert not ok
    assert "it ended with status 3" in words
    assert "\x1b" not in words
    path.write_text("#!/bin/sh\nsleep 60\n")
    ((_, ok, words),) = found(program_timeout='"1 s"')
    assert "program_timeout" in words
    path.unlink()
    ((_, ok, words),) = found()
    assert not ok
    assert "is no program" in words


def test_whenever_it_is_ended_nothing_of_its_room_is_left(place):
    """Also in the moments in which bubblewrap has begun and its own first process is not yet bound to its life."""
    mark = new_mark()
    order = RoomOrder(command=("/bin/sh", "-c", "sleep 300", mark), shown=(), cpu_s=10)
    for tried in range(30):
        ends = [os.pipe() for _ in range(4)]
        room = OwnRoom(order, [ends[0][0], ends[1][1], ends[2][1], ends[3][1]])
        while not living(mark):
            pass
        time.sleep(tried % 3 * 0.001)
        room.close()
        for end in (end for pair in ends for end in pair):
            os.close(end)
    nothing_lives(mark)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        # Each stays within its own limit, and together they do not.
        (
            """
            def forked():
                # Processes are counted for a user: those of the test before may still be on their way out.
                while True:
                    try:
                        return os.fork()
                    except BlockingIOError:
                        time.sleep(0.01)

            for _ in range(6):
                if forked() == 0:
                    kept = bytearray(os.urandom(1 << 20)) * 150
                    time.sleep(60)
            time.sleep(60)
            """,
            "it used too much memory",
        ),
        ("os.memfd_create('x')", "PermissionError"),
    ],
)
def test_all_of_it_together_has_no_more_memory_than_it_may(place, text, words):
    text = "import time\n" + textwrap.dedent(text)
    assert words in failure(program(place, text))
