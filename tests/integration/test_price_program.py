"""An owner's pricing program: what it is told, what it may answer, and what it cannot reach or outlast."""

import json
import os
import shutil
import signal
import textwrap
import time
from pathlib import Path

import pytest
import trio
from kit.small_market import device
from kit.trading import NOW_MS, PRICE, tender

from hansa.market.pricing_rule import PricingRule
from hansa.node import price_program
from hansa.node.answering import PriceWanted
from hansa.node.events import TenderPriced
from hansa.node.faults import ConfigError
from hansa.node.price_program import PriceProgram, ProgramFailed, priced, question_about, read_answer
from hansa.node.pricing_config import PricingConfig
from hansa.node.sandbox_inventory import SandboxUnavailable, find_bwrap
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
    mark = f"hansa-{os.getpid()}-{time.monotonic_ns()}"
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
    for _ in range(200):
        left = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and mark in _words(entry)]
        if not left:
            return
        time.sleep(0.05)
    for entry in left:
        os.kill(int(entry.name), signal.SIGKILL)
    pytest.fail("something that it started lives on")


def _words(entry):
    try:
        return (entry / "cmdline").read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


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


def test_a_flood_of_tenders_is_no_flood_of_processes(place):
    asked = program(place, "import time; time.sleep(1); print(json.dumps({'price_per_hour': '1'}))")
    outcomes = []

    async def flood():
        async def one():
            said = await priced(asked, WANTED, {"version": 1}, now_ms=lambda: NOW_MS)
            outcomes.append(said)

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)

    trio.run(flood)
    answered = [one for one in outcomes if not one.fault]
    assert len(answered) == min(price_program.WAITING, price_program.BURST)
    assert asked.counters["price program: too many tenders wait for it"] == 200 - len(answered)
    assert decode(encode(answered[0]), TenderPriced, limit_bytes=1 << 16) == answered[0]
    # The clock stands still here: what was burst is spent, and the rest is refused for that.
    for _ in range(price_program.BURST - len(answered)):
        ask(asked)
    with pytest.raises(ProgramFailed, match="started too often"):
        ask(asked)


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
