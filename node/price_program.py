"""An owner's program that names prices: asked with a limit on everything, believed only where its answer is exact.

It reads one JSON object on its standard input and prints another, in the room of ``hansa.node.price_room``. Whatever
goes wrong, the answer is a fault in words and the node goes on; what then happens to the tender is the owner's choice.
Tenders are strangers' to send, so neither a flood of them nor one that comes again and again becomes a flood of
processes.
"""

import contextlib
import datetime as dt
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from hansa.market.effects import clipped
from hansa.node.answering import PriceWanted
from hansa.node.events import PricedSet, TenderPriced
from hansa.node.faults import ConfigError
from hansa.node.gate import PeerRate
from hansa.node.price_room import SYSTEM, mounted
from hansa.node.pricing_config import PricingConfig
from hansa.node.sandbox_inventory import SandboxUnavailable, find_bwrap
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import Device
from hansa.proto.typed_json import parse_json, to_plain
from hansa.proto.units import e18_to_price_per_hour, price_per_hour_to_e18

Json = dict[str, Any]
AT_ONCE = 2
"""Programs that run at the same time."""
WAITING = 8
"""Tenders that wait for one of these."""
BURST, EVERY_MS = 10, 200
"""Programs that are started: so many at once, and in the long run one in this time."""
ROOM_S = 5.0
"""For the room to be made, which is this node's own doing and no part of the program's time."""
LARGEST_QUESTION_BYTES = 256 << 10
LARGEST_ANSWER_BYTES = 16 << 10
KEPT_WORDS_BYTES = 2 << 10
LONGEST_REFUSAL_BYTES = 200


class ProgramFailed(Exception):
    """The program named no price.

    Attributes:
        kind: which sort of failure, of a few.
    """

    def __init__(self, kind: str, words: str = "") -> None:
        """Keep the kind apart from what the program itself said."""
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the program says: a price for each set (None: the rule's), or why it wants none of them."""

    prices_e18: tuple[int | None, ...] = ()
    refusal: str = ""


class PriceProgram:
    """Asks the owner's program. One for a daemon."""

    def __init__(self, config: PricingConfig, data_dir: Path, now_ms: Callable[[], int]) -> None:
        """Look whether it can be asked at all.

        Raises:
            ConfigError: it is not there, or the room would show what it must not.
        """
        self._command = config.program
        self._timeout_s = config.program_timeout_ms / 1000
        self._now_ms = now_ms
        self._shown = mounted(config.program, config.program_files)
        self._rate = PeerRate(BURST, EVERY_MS)
        self._slots = trio.Semaphore(AT_ONCE)
        self._waiting = 0
        self.thinking_of: set[bytes] = set()
        self.counters: Counter[str] = Counter()
        self.last_fault = ""
        _check(config.program[0], self._shown, data_dir)

    async def ask(self, question: Json, sets: int) -> Answer:
        """Its answer about so many sets of devices.

        Raises:
            ProgramFailed: there is none. It is counted and kept.
        """
        try:
            answer = read_answer(await self._run(question), sets)
        except ProgramFailed as fault:
            self.last_fault = clipped(str(fault), 256)
            self.counters[f"price program: {fault.kind}"] += 1
            raise
        self.counters["price program: declined" if answer.refusal else "price program: answered"] += 1
        return answer

    async def _run(self, question: Json) -> bytes:
        data = json.dumps(question, separators=(",", ":")).encode()
        if len(data) > LARGEST_QUESTION_BYTES:
            raise ProgramFailed("the tender is too long to be asked about")
        if self._waiting >= WAITING:
            raise ProgramFailed("too many tenders wait for it")
        if not self._rate.admits(b"", self._now_ms()):
            raise ProgramFailed("it would be started too often")
        self._waiting += 1
        try:
            async with self._slots:
                return await trio.to_thread.run_sync(self._run_once, data)
        finally:
            self._waiting -= 1

    def _run_once(self, data: bytes) -> bytes:
        """Start it, hand it the question, take what it prints. Whatever it started ends with it."""
        order = os.memfd_create("order", os.MFD_CLOEXEC)
        wanted = {"command": self._command, "shown": self._shown, "cpu_s": int(self._timeout_s) + 2}
        os.write(order, json.dumps(wanted).encode())
        os.lseek(order, 0, os.SEEK_SET)
        begun, beginning = os.pipe2(os.O_CLOEXEC)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "hansa.node.price_room", str(order), str(beginning)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(order, beginning),
                cwd="/",  # Python looks there for modules before anywhere else
                start_new_session=True,
            )
        except OSError as fault:
            os.close(begun)
            raise ProgramFailed("it could not be started", str(fault)) from None
        finally:
            os.close(order)
            os.close(beginning)
        try:
            with process:
                try:
                    return _Exchange(process, begun, data).finish(self._timeout_s)
                finally:
                    # Its end is the end of all that was started in the room, and then its number may be another's.
                    if process.returncode is None:
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)
        finally:
            os.close(begun)


class _Exchange:
    """A question on its way in, an answer on its way out, and a clock that begins when the program does."""

    def __init__(self, process: "subprocess.Popen[bytes]", begun: int, data: bytes) -> None:
        self._process = process
        self._begun = begun
        self._left = memoryview(data)
        self._answer = b""
        self._words = b""

    def finish(self, timeout_s: float) -> bytes:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for pipe in (process.stdin, process.stdout, process.stderr):
            os.set_blocking(pipe.fileno(), False)
        deadline_s, kind = time.monotonic() + ROOM_S, "its room could not be made in time"
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdin, selectors.EVENT_WRITE, self._write)
            for source, take in (
                (process.stdout, self._take_answer),
                (process.stderr, self._take_words),
                (self._begun, lambda: bool(os.read(self._begun, 1))),
            ):
                selector.register(source, selectors.EVENT_READ, take)
            while selector.get_map():
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise ProgramFailed(kind)
                for key, _ in selector.select(left_s):
                    if not key.data():
                        selector.unregister(key.fileobj)
                        if key.fileobj == self._begun:
                            deadline_s, kind = time.monotonic() + timeout_s, "it took too long"
        try:
            status = process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise ProgramFailed("it took too long") from None
        if status != 0:
            raise ProgramFailed(f"it ended with status {status}", self._last_words())
        return self._answer

    def _last_words(self) -> str:
        said = self._words.decode("utf-8", "replace").strip().splitlines()
        line = said[-1] if said else ""
        return "".join(character if character.isprintable() else "?" for character in line)

    def _write(self) -> bool:
        assert self._process.stdin is not None
        try:
            self._left = self._left[os.write(self._process.stdin.fileno(), self._left[: 1 << 16]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._left = self._left[:0]  # who does not read to the end may know enough
        if not self._left:
            self._process.stdin.close()
        return bool(self._left)

    def _take_answer(self) -> bool:
        assert self._process.stdout is not None
        piece = os.read(self._process.stdout.fileno(), 1 << 16)
        self._answer += piece
        if len(self._answer) > LARGEST_ANSWER_BYTES:
            raise ProgramFailed("it printed too much")
        return bool(piece)

    def _take_words(self) -> bool:
        assert self._process.stderr is not None
        piece = os.read(self._process.stderr.fileno(), 1 << 16)
        self._words = (self._words + piece)[-KEPT_WORDS_BYTES:]
        return bool(piece)


def program_of(config: PricingConfig, data_dir: Path, now_ms: Callable[[], int]) -> PriceProgram | None:
    """The owner's program, if there is one.

    Raises:
        ConfigError: it could not run here, or could see what it must not.
    """
    return PriceProgram(config, data_dir, now_ms) if config.program else None


def _check(program: str, shown: Sequence[str], data_dir: Path) -> None:
    """Whether the program could run, and in its room could see nothing of the node's own."""
    real = Path(os.path.realpath(program))
    if not real.is_file() or not os.access(real, os.X_OK):
        raise ConfigError(
            f"provider.pricing.program: {program} is no program", "name a file that everybody may read and execute"
        )
    own = data_dir.resolve()
    for path in (*shown, *SYSTEM):
        host = Path(os.path.realpath(path))
        if path in shown and not host.exists():
            raise ConfigError(f"provider.pricing.program_files: {path} is not there", "name what the program reads")
        if host.is_relative_to(own) or own.is_relative_to(host):
            raise ConfigError(
                f"provider.pricing: {path} would show the program this node's own data, and its keys",
                "keep the program and its files elsewhere",
            )
    try:
        find_bwrap()
    except SandboxUnavailable as lack:
        raise ConfigError(f"provider.pricing.program: no sandbox can be made for it: {lack}", lack.hint) from None


def question_about(
    wanted: PriceWanted, devices: Mapping[bytes, Device], *, leased: int, owned: int, at_ms: int
) -> Json:
    """What the program is asked: all that is public of the tender, and what this node knows of its own devices."""
    moment = dt.datetime.fromtimestamp(at_ms / 1000, tz=dt.UTC)
    return {
        "version": 1,
        "at_ms": at_ms,
        "at": moment.isoformat(timespec="seconds"),
        "devices_owned": owned,
        "devices_leased": leased,
        "lease": wanted.lease,
        "tender": to_plain(wanted.tender),
        "price_ceiling_per_hour": e18_to_price_per_hour(wanted.tender.price_ceiling_e18_per_device_ms),
        "sets": [
            {
                "rule_price_per_hour": e18_to_price_per_hour(rule_e18),
                "devices": [to_plain(devices[device]) for device in chosen if device in devices],
            }
            for chosen, rule_e18 in zip(wanted.sets, wanted.rule_e18, strict=True)
        ],
    }


def read_answer(data: bytes, sets: int) -> Answer:
    """What the program printed, if it is exactly one of the three things that it may say.

    Raises:
        ProgramFailed: it is none of them.
    """
    wrong = "it printed no answer"
    try:
        said = parse_json(data)
    except (Malformed, UnicodeDecodeError):
        raise ProgramFailed(wrong, "not JSON of the allowed form") from None
    if type(said) is not dict or len(said) != 1:
        raise ProgramFailed(wrong, "not an object with one key")
    ((key, value),) = said.items()
    match key:
        case "price_per_hour" if type(value) is str:
            return Answer(prices_e18=(_price(value),) * sets)
        case "prices_per_hour" if type(value) is list and len(value) == sets:
            return Answer(prices_e18=tuple(None if one is None else _price(one) for one in value))
        case "decline" if type(value) is str and value.strip() and value.isprintable():
            return Answer(refusal=clipped(value, LONGEST_REFUSAL_BYTES))
    raise ProgramFailed(wrong, 'neither "price_per_hour", "prices_per_hour" nor "decline" as they must be')


def _price(value: Any) -> int:
    if type(value) is not str:
        raise ProgramFailed("it printed no answer", "a price is text in quotes, so that not a fraction of it is lost")
    try:
        return price_per_hour_to_e18(value)
    except ValueError as fault:
        raise ProgramFailed("it printed no answer", str(fault)) from None


async def priced(
    program: PriceProgram, wanted: PriceWanted, question: Json, *, now_ms: Callable[[], int]
) -> TenderPriced:
    """What the engine is told of it, whatever comes."""
    try:
        answer = await program.ask(question, len(wanted.sets))
    except ProgramFailed as fault:
        words = clipped(str(fault), 256)
        return TenderPriced(tender=wanted.tender, fault=words, tries=wanted.tries, at_ms=now_ms())
    sets = tuple(
        PricedSet(devices=devices, price_e18=price)
        for devices, price in zip(wanted.sets, answer.prices_e18, strict=False)
    )
    return TenderPriced(tender=wanted.tender, sets=sets, refusal=answer.refusal, tries=wanted.tries, at_ms=now_ms())
