"""The daemon's log: one line for each thing that an operator would want to find again."""

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from kit.small_market import SmallMarket
from kit.trading import BUYER, BUYER_KEY, PROVIDER, PROVIDER_KEY, spec

from hansa.node.engine.logs import (
    LOGGER,
    MOST_SENTENCES,
    SELDOM_S,
    JsonLines,
    LibraryLines,
    PlainLines,
    log_turns,
)
from hansa.node.engine.state import MOST_TURNS, NodeState, Turn
from hansa.scheduler import run


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    LOGGER.addHandler(handler)
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    yield stream
    LOGGER.setLevel(level)
    LOGGER.removeHandler(handler)


def test_every_change_of_phase_is_one_line_of_json_with_its_facts(written: io.StringIO) -> None:
    log_turns([Turn(machine="sale", key=b"k" * 32, before="bid", after="lapsed", reason="the bid expired")])
    (line,) = written.getvalue().splitlines()
    facts = json.loads(line)
    assert facts["message"] == "sale 6b6b6b6b6b6b: bid → lapsed (the bid expired)"
    assert (facts["machine"], facts["before"], facts["after"]) == ("sale", "bid", "lapsed")
    assert facts["key"] == (b"k" * 32).hex()


def test_a_strangers_words_can_neither_steer_a_terminal_nor_make_lines_of_their_own(written: io.StringIO) -> None:
    hostile = "gone\x1b[2J\nhansa: ready\r" + "x" * 10_000
    log_turns([Turn(machine="run", key=b"r" * 32, before="running", after="failed", reason=hostile)])
    (line,) = written.getvalue().splitlines()
    message = json.loads(line)["message"]
    assert not set(message) & {"\x1b", "\n", "\r"}
    assert len(line) < 2_000


def test_of_a_traceback_the_log_has_the_error_that_it_ends_with(written: io.StringIO) -> None:
    trace = "Traceback (most recent call last):\n" + "  frame\n" * 100 + "ValueError: bad\n"
    log_turns([Turn(machine="run", key=b"r" * 32, before="running", after="failed", reason=trace)])
    assert json.loads(written.getvalue())["message"] == "run 727272727272: running → failed (ValueError: bad)"


def test_no_library_and_no_exception_brings_a_strangers_words_to_the_terminal_as_they_are() -> None:
    """Lines for people: what a peer sent may be quoted in a library's exception, and printed with its trace."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainLines("%(levelname)s %(message)s"))
    logger = logging.getLogger("hansa.test-of-plain-lines")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError("peer said \x1b]0;x\x07\nINFO hansa: ready\x9b31m\u202e")  # noqa: TRY301 - its trace is what is printed
    except ValueError as fault:
        logger.warning("broke: %s", fault, exc_info=True)
    finally:
        logger.removeHandler(handler)
    lines = stream.getvalue().splitlines()
    assert not set(stream.getvalue()) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
    assert lines[0].startswith("WARNING broke: peer said")
    assert all(line.startswith("    | ") for line in lines[1:])


OUT_OF_DESCRIPTORS = """
import os, resource, socket, sys
import trio
from hansa.node.engine.logs import start_logging

async def main():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    at = listener.socket.getsockname()
    start_logging(as_json=sys.argv[1] == "json")
    strangers = [socket.create_connection(at) for _ in range(20)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, 4096))
    with trio.move_on_after(2):
        await trio.serve_listeners(lambda stream: trio.sleep_forever(), [listener])

trio.run(main)
"""


@pytest.mark.parametrize("form", ["plain", "json"])
def test_strangers_who_take_all_descriptors_cause_one_line_of_ours_a_minute_and_no_traceback(form: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS, form], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "EMFILE" in line
    if form == "json":
        assert (json.loads(line)["name"], "trace" in json.loads(line)) == ("trio.serve_listeners", False)
    else:
        assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ERROR   accept returned EMFILE", line)


def told(stream: io.StringIO) -> list[str]:
    lines = stream.getvalue().splitlines()
    stream.truncate(0)
    stream.seek(0)
    return lines


def test_what_libraries_say_is_said_seldom_and_how_often_it_was_is_told_with_the_next() -> None:
    stream, now_s = io.StringIO(), [1_000.0]
    handler = LibraryLines(stream, clock_s=lambda: now_s[0])
    handler.setFormatter(PlainLines("%(message)s"))

    def say(sentence: str, *facts: object) -> None:
        handler.handle(logging.LogRecord("a.library", logging.WARNING, "", 0, sentence, facts, None))

    for number in range(50):
        say("peer %d went away", number)
    assert told(stream) == ["peer 0 went away"]
    say("something else")
    assert told(stream) == ["something else"]
    now_s[0] += SELDOM_S
    say("peer %d went away", 7)
    assert told(stream) == ["peer 7 went away (and 49 more like it since)"]
    now_s[0] += SELDOM_S
    say("peer %d went away", 8)
    assert told(stream) == ["peer 8 went away"]


def test_a_library_that_puts_strangers_words_into_its_sentences_fills_no_log_either() -> None:
    stream = io.StringIO()
    handler = LibraryLines(stream, clock_s=lambda: 1_000.0)
    for number in range(5_000):
        handler.handle(logging.LogRecord("a.library", logging.ERROR, "", 0, f"no such peer: {number}", (), None))
    assert len(told(stream)) == MOST_SENTENCES


def test_a_sentence_that_a_library_cannot_finish_is_said_as_it_stands_and_costs_nothing_else() -> None:
    class Dumb(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    stream = io.StringIO()
    handler = LibraryLines(stream)
    for sentence, facts in [("%d peers", ("two",)), (Dumb(), ()), ("peer %s", (Dumb(),))]:
        handler.handle(logging.LogRecord("a.library", logging.WARNING, "", 0, sentence, facts, None))
    assert told(stream) == ["%d peers", "Dumb", "peer %s"]


@pytest.mark.parametrize("form", [JsonLines, PlainLines])
def test_of_what_a_library_said_the_beginning_is_remembered(form: type[logging.Formatter]) -> None:
    """A sentence may hold all that a stranger sent."""
    stream = io.StringIO()
    handler = LibraryLines(stream)
    handler.setFormatter(form())
    for number in range(MOST_SENTENCES):
        handler.handle(logging.LogRecord("a.library", logging.WARNING, "", 0, f"{number}" + 100_000 * "x", (), None))
    assert len(stream.getvalue()) < MOST_SENTENCES * 5_000
    assert sum(len(said) for _, said in handler._said) < MOST_SENTENCES * 5_000


def test_a_fault_of_a_library_that_is_not_the_systems_keeps_its_trace() -> None:
    stream = io.StringIO()
    handler = LibraryLines(stream)
    handler.setFormatter(PlainLines("%(message)s"))
    for kind in (ValueError, OSError):
        try:
            raise kind("broken")
        except (ValueError, OSError):
            fault = sys.exc_info()
        record = logging.LogRecord("a.library", logging.ERROR, "", 0, f"{kind.__name__}", (), fault)
        handler.handle(record)
        assert record.exc_info is not None, "others who hear of it get it as it was"
    lines = told(stream)
    assert [line for line in lines if not line.startswith("    | ")] == ["ValueError", "OSError"]
    assert lines[-1] == "OSError"


def test_a_job_can_be_followed_from_its_beginning_to_its_end_on_both_sides() -> None:
    market = SmallMarket()
    market.add(BUYER_KEY)
    market.add(PROVIDER_KEY, devices=1)
    market.submit(BUYER, of=spec(shards=1))
    market.tender(BUYER, (PROVIDER,))
    (lease,) = market.engines[PROVIDER].state.sale_of
    market.take(PROVIDER, run.RunStarted(run=lease, at_ms=market.now_ms))
    market.take(PROVIDER, run.RunFinished(run=lease, at_ms=market.now_ms + 1_000))
    bought = [(turn.machine, turn.after) for turn in market.engines[BUYER].state.turns]
    sold = [(turn.machine, turn.after) for turn in market.engines[PROVIDER].state.turns]
    assert [phase for machine, phase in bought if machine == "job"] == ["gathering", "running", "succeeded"]
    assert [phase for machine, phase in sold if machine == "run"] == ["staging", "running", "succeeded"]
    assert [phase for machine, phase in sold if machine == "sale"][:3] == ["bid", "leased", "running"]


def test_what_nobody_reads_does_not_grow() -> None:
    state = NodeState()
    for number in range(MOST_TURNS + 5):
        state.turns.append(Turn(machine="job", key=bytes([number & 255]), before="a", after="b", reason=""))
    assert len(state.turns) == MOST_TURNS
