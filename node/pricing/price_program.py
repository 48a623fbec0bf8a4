"""An owner's program that names prices: asked with a limit on everything, believed only where its answer is exact.

It reads one JSON object on its standard input and prints another, in the room of ``hansa.node.pricing.price_room``.
Whatever goes wrong, the answer is a fault in words and the node goes on; what then happens to the tender is the owner's
choice. Tenders are strangers' to send, so neither a flood of them nor one that comes again and again becomes a flood of
processes.
"""

import datetime as dt
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any

import trio

from hansa.market.effects import clipped
from hansa.node.engine.answering import PriceWanted
from hansa.node.engine.events import PricedSet, TenderPriced
from hansa.node.engine.gate import PeerRate
from hansa.node.faults import ConfigError
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_bwrap
from hansa.node.pricing.price_process import ProgramFailed, RoomOrder, run_in_room
from hansa.node.pricing.price_room import SYSTEM, mounted
from hansa.node.pricing.price_turns import CROWDED, Place, PriceTurns
from hansa.node.settings.config import Config
from hansa.node.settings.pricing_config import PricingConfig
from hansa.node.storage.disk_faults import in_words
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import Device
from hansa.proto.typed_json import parse_json, to_plain
from hansa.proto.units import e18_to_price_per_hour, price_per_hour_to_e18

Json = dict[str, Any]
AT_ONCE = 2
"""Programs that run at the same time for buyers; one more may run for the owner."""
BURST, EVERY_MS = 10, 200
"""Programs that are started for buyers: so many at once, and in the long run one in this time."""
LONGEST_WAIT_S = 5.0
"""A tender that has waited for its turn for so long is answered without the program."""
OWNER_WAITING = 4
"""Questions of the owner's own that wait."""
LARGEST_QUESTION_BYTES = 256 << 10
LONGEST_REFUSAL_BYTES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the program says: a price for each set (None: the rule's), or why it wants none of them."""

    prices_e18: tuple[int | None, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """For whom the program is asked.

    Attributes:
        buyer: whose tender it is.
        is_known: whether this buyer has paid here before.
        until_ms: when nobody needs the price any more.
    """

    buyer: bytes
    is_known: bool
    until_ms: int


class PriceProgram:
    """Asks the owner's program. One for a daemon."""

    def __init__(
        self, config: PricingConfig, data_dir: Path, now_ms: Callable[[], int], builder: Path | None = None
    ) -> None:
        """Look whether it can be asked at all.

        Args:
            config: the owner's wishes.
            data_dir: this node's own, which the program must not see.
            now_ms: the clock.
            builder: the socket of who makes the program's rooms; None for this process.

        Raises:
            ConfigError: it is not there, or the room would show what it must not.
        """
        self._timeout_s = config.program_timeout_ms / 1000
        self._now_ms = now_ms
        self._builder = builder
        shown = mounted(config.program, config.program_files)
        self._order = RoomOrder(command=config.program, shown=shown, cpu_s=int(self._timeout_s) + 2)
        self._turns = PriceTurns()
        self._granted: dict[Place, trio.Event] = {}
        self._running = 0
        self._pace = PeerRate(BURST, EVERY_MS)
        self._owners = trio.Semaphore(1)
        self._owners_waiting = 0
        # Threads of its own: whatever else this node does in threads, a price does not wait for it.
        self._threads = trio.CapacityLimiter(AT_ONCE + 1)
        self.thinking_of: set[bytes] = set()
        self.counters: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        _check(config.program[0], shown, data_dir, makes_rooms=builder is None)

    async def ask(self, question: Json, sets: int, asker: Asker | None = None) -> Answer:
        """Its answer about so many sets of devices.

        Args:
            question: what it is told.
            sets: about how many sets of devices.
            asker: for whom; None for the owner, who has a place of their own.

        Raises:
            ProgramFailed: there is none. It is counted.
        """
        try:
            data = _written(question)
            async with self._owners_turn() if asker is None else self._turn_of(asker):
                answer = read_answer(await self._run_or_fail(data), sets)
        except ProgramFailed as fault:
            self.counters[f"price program: {fault.kind}"] += 1
            self.outcomes[fault.outcome] += 1
            raise
        self.counters["price program: declined" if answer.refusal else "price program: answered"] += 1
        self.outcomes["declined" if answer.refusal else "answered"] += 1
        return answer

    @asynccontextmanager
    async def _owners_turn(self) -> AsyncIterator[None]:
        if self._owners_waiting >= OWNER_WAITING:
            raise ProgramFailed(CROWDED, outcome="refused")
        self._owners_waiting += 1
        try:
            async with self._owners:
                yield
        finally:
            self._owners_waiting -= 1

    @asynccontextmanager
    async def _turn_of(self, asker: Asker) -> AsyncIterator[None]:
        """Wait for a buyer's turn, and let the next one have theirs after it."""
        place = Place(buyer=asker.buyer, is_known=asker.is_known)
        leaves = self._turns.join(place, self._now_ms())
        if leaves is not None and leaves is not place:
            self._granted.pop(leaves).set()
        if place.refused:
            raise ProgramFailed(place.refused, outcome="refused")
        granted = self._granted[place] = trio.Event()
        try:
            with trio.move_on_after(min(LONGEST_WAIT_S, max(0, asker.until_ms - self._now_ms()) / 1000)):
                self._let_in()
                while not granted.is_set():
                    # Nobody may leave for as long as nobody may be started: then time alone lets the next one in.
                    with trio.move_on_after(EVERY_MS / 1000):
                        await granted.wait()
                    self._let_in()
            if place.refused:
                raise ProgramFailed(place.refused, outcome="refused")
            if not granted.is_set():
                raise ProgramFailed("its turn did not come in time", outcome="refused")
            yield
        finally:
            self._turns.leave(place)
            if self._granted.pop(place, None) is None and not place.refused:
                self._running -= 1
            self._let_in()

    def _let_in(self) -> None:
        """Start whoever's turn it is, as far as may be."""
        while self._running < AT_ONCE and len(self._turns) and self._pace.admits(b"", self._now_ms()):
            place = self._turns.next()
            assert place is not None, "somebody waits"
            self._running += 1
            self._granted.pop(place).set()

    async def _run_or_fail(self, data: bytes) -> bytes:
        """As ``_run``. That this machine has no pipe left for it is a fault like others, and ends no daemon."""
        try:
            return await self._run(data)
        except OSError as fault:
            raise ProgramFailed("it could not be started", in_words(fault), outcome="no-room") from fault

    async def _run(self, data: bytes) -> bytes:
        """Have the program run in a thread, which ends it at once when nobody waits for it any more."""
        await trio.lowlevel.checkpoint_if_cancelled()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        with FileIO(writing, "wb"):
            work = partial(self._run_in_thread, FileIO(reading, "rb"), data)
            return await trio.to_thread.run_sync(
                work,
                abandon_on_cancel=True,  # type: ignore[call-arg]  # the stubs are older than trio
                limiter=self._threads,
            )

    def _run_in_thread(self, given_up: FileIO, data: bytes) -> bytes:
        with given_up:
            return run_in_room(
                self._order, data, timeout_s=self._timeout_s, builder=self._builder, given_up=given_up.fileno()
            )


def _written(question: Json) -> bytes:
    data = json.dumps(question, separators=(",", ":")).encode()
    if len(data) > LARGEST_QUESTION_BYTES:
        raise ProgramFailed("the tender is too long to be asked about", outcome="refused")
    return data


def program_of(config: Config, now_ms: Callable[[], int]) -> PriceProgram | None:
    """The owner's program, if there is one.

    Raises:
        ConfigError: it could not run here, or could see what it must not.
    """
    pricing = config.provider.pricing
    return PriceProgram(pricing, config.data_dir, now_ms, config.environments.builder) if pricing.program else None


def _check(program: str, shown: Sequence[str], data_dir: Path, *, makes_rooms: bool) -> None:
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
        if makes_rooms:
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
        raise ProgramFailed(wrong, "not JSON of the allowed form", outcome="unreadable") from None
    if type(said) is not dict or len(said) != 1:
        raise ProgramFailed(wrong, "not an object with one key", outcome="unreadable")
    ((key, value),) = said.items()
    match key:
        case "price_per_hour" if type(value) is str:
            return Answer(prices_e18=(_price(value),) * sets)
        case "prices_per_hour" if type(value) is list and len(value) == sets:
            return Answer(prices_e18=tuple(None if one is None else _price(one) for one in value))
        case "decline" if type(value) is str and value.strip() and value.isprintable():
            return Answer(refusal=clipped(value, LONGEST_REFUSAL_BYTES))
    raise ProgramFailed(
        wrong, 'neither "price_per_hour", "prices_per_hour" nor "decline" as they must be', outcome="unreadable"
    )


def _price(value: Any) -> int:
    if type(value) is not str:
        words = "a price is text in quotes, so that not a fraction of it is lost"
        raise ProgramFailed("it printed no answer", words, outcome="unreadable")
    try:
        return price_per_hour_to_e18(value)
    except ValueError as fault:
        raise ProgramFailed("it printed no answer", str(fault), outcome="unreadable") from None


async def priced(
    program: PriceProgram, wanted: PriceWanted, question: Json, *, is_known: bool, now_ms: Callable[[], int]
) -> TenderPriced:
    """What the engine is told of it, whatever comes."""
    tender = wanted.tender
    asker = Asker(buyer=tender.signer, is_known=is_known, until_ms=tender.bids_close_ms)
    try:
        answer = await program.ask(question, len(wanted.sets), asker)
    except ProgramFailed as fault:
        words = clipped(str(fault), 256)
        return TenderPriced(tender=tender, fault=words, tries=wanted.tries, at_ms=now_ms())
    sets = tuple(
        PricedSet(devices=devices, price_e18=price)
        for devices, price in zip(wanted.sets, answer.prices_e18, strict=False)
    )
    return TenderPriced(tender=tender, sets=sets, refusal=answer.refusal, tries=wanted.tries, at_ms=now_ms())
