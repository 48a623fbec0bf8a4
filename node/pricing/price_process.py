"""One run of an owner's pricing program: a question in, an answer out, and a limit on everything.

The room is made by this process, or by a builder (``hansa.node.runs.builder``) where this one may make no namespaces.
Either way question and answer go through pipes that are made here, so that nothing of a stranger's is in what says what
is to be run. Blocks; whoever wants to give up closes the other end of ``given_up``.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

from hansa.node.isolation import process_tree
from hansa.node.pricing.price_room import MEMORY_BYTES

ROOM_S = 5.0
"""For the room to be made, which is this node's own doing and no part of the program's time."""
LARGEST_ANSWER_BYTES = 16 << 10
KEPT_WORDS_BYTES = 2 << 10
TOO_LARGE = "it used too much memory"
WATCH_S = 0.25
"""How often its memory is looked at."""
LONGEST_RUN_S = 15.0
"""A room that was ordered of a builder is ended after this, whatever the daemon does."""


class ProgramFailed(Exception):
    """The program named no price.

    Attributes:
        kind: which sort of failure, of a few.
        outcome: the same in one word, for counting.
    """

    def __init__(self, kind: str, words: str = "", *, outcome: str = "failed") -> None:
        """Keep the kind apart from what the program itself said."""
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind = kind
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomOrder:
    """What is run in which room; all of it is the owner's choice.

    Attributes:
        command: the program and its arguments.
        shown: what of the host it sees beside the system.
        cpu_s: how long it may compute.
    """

    command: tuple[str, ...]
    shown: tuple[str, ...]
    cpu_s: int


def read_order(facts: Any) -> RoomOrder:
    """An order as ``run_in_room`` sends it to a builder.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(facts, dict) or set(facts) != {field.name for field in fields(RoomOrder)}:
        raise ValueError("not the fields of an order")
    command, shown = facts["command"], facts["shown"]
    if not isinstance(command, list) or not isinstance(shown, list) or not command:
        raise ValueError("not an order")
    if not all(isinstance(text, str) and "\0" not in text for text in (*command, *shown)):
        raise ValueError("not an order")
    if not all(text.startswith("/") for text in (command[0], *shown)):
        raise ValueError("not an order")
    if type(facts["cpu_s"]) is not int or not 1 <= facts["cpu_s"] <= LONGEST_RUN_S:
        raise ValueError("not an order")
    return RoomOrder(command=tuple(command), shown=tuple(shown), cpu_s=facts["cpu_s"])


class Room(Protocol):
    """A room in which the program runs.

    Attributes:
        ended_fd: readable once it has ended.
    """

    ended_fd: int

    def status(self) -> int:
        """How it ended; waits for that."""

    def is_too_large(self) -> bool:
        """Whether all that runs in it has more memory than it may."""

    def close(self) -> None:
        """End it with all that is in it, if it has not ended."""


class OwnRoom:
    """A room that this process makes. The calling thread has to live as long, since its end is the room's end."""

    def __init__(self, order: RoomOrder, pipes: Sequence[int]) -> None:
        """Start it; ``pipes`` are its standard input, output and error, and what closes when bubblewrap begins.

        Raises:
            OSError: it could not be started.
        """
        stdin, stdout, stderr, beginning = pipes
        written = os.memfd_create("order", os.MFD_CLOEXEC)
        try:
            os.write(written, json.dumps({**asdict(order), "parent": os.getpid()}).encode())
            os.lseek(written, 0, os.SEEK_SET)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hansa.node.pricing.price_room", str(written), str(beginning)],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=(written, beginning),
                cwd="/",  # Python looks there for modules before anywhere else
                start_new_session=True,
            )
        finally:
            os.close(written)
        try:
            self.ended_fd = os.pidfd_open(self._process.pid)
        except OSError:
            self._kill()
            raise

    def status(self) -> int:
        """See ``Room``."""
        return self._process.wait()

    def is_too_large(self) -> bool:
        """See ``Room``."""
        pids = process_tree.descendants(self._process.pid)
        return process_tree.memory_bytes(pids, enough_bytes=MEMORY_BYTES) > MEMORY_BYTES

    def close(self) -> None:
        """See ``Room``. Its end is the end of all that was started in it."""
        os.close(self.ended_fd)
        self._kill()

    def _kill(self) -> None:
        # Once it was waited for, its number may be another's.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class BuildersRoom:
    """A room that a builder makes, and ends when this end of the connection is closed, by whatever."""

    def __init__(self, builder: Path, order: RoomOrder, pipes: Sequence[int]) -> None:
        """Order it; see ``OwnRoom``.

        Raises:
            OSError: no builder answers.
        """
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._control.settimeout(ROOM_S)
            self._control.connect(str(builder))
            socket.send_fds(self._control, [json.dumps({"price": asdict(order)}).encode()], list(pipes))
        except OSError:
            self._control.close()
            raise
        self.ended_fd = self._control.fileno()

    def status(self) -> int:
        """See ``Room``."""
        said = self._control.recv(1 << 12)
        if not said:
            raise ProgramFailed("its room could not be made", "the builder ended", outcome="no-room")
        facts = json.loads(said)
        if words := facts.get("words"):
            raise ProgramFailed("its room could not be made", str(words)[:256], outcome="no-room")
        if facts.get("is_too_large"):
            raise ProgramFailed(TOO_LARGE)
        return int(facts["status"])

    def is_too_large(self) -> bool:
        """See ``Room``. The builder looks itself."""
        return False

    def close(self) -> None:
        """See ``Room``."""
        self._control.close()


def run_in_room(order: RoomOrder, data: bytes, *, timeout_s: float, builder: Path | None, given_up: int) -> bytes:
    """Start the program, hand it the question, take what it prints. Whatever it started ends with it.

    Args:
        order: what is run.
        data: what it reads.
        timeout_s: how long it may take from when its room is there.
        builder: the socket of who makes the room; None for this process.
        given_up: a descriptor that becomes readable when nobody waits for the answer any more.

    Raises:
        ProgramFailed: there is none.
    """
    with contextlib.ExitStack() as held:
        pipes = [_pipe(held) for _ in range(4)]
        (their_question, question), (answer, their_answer), (words, their_words), (begun, their_begun) = pipes
        theirs = (their_question, their_answer, their_words, their_begun)
        numbers = [one.fileno() for one in theirs]
        try:
            room: Room = OwnRoom(order, numbers) if builder is None else BuildersRoom(builder, order, numbers)
        except OSError as fault:
            where = "" if builder is None else f"no builder answers at {builder}: "
            why = f"{where}{fault.strerror or fault}"
            raise ProgramFailed("it could not be started", why, outcome="no-room") from None
        held.callback(room.close)
        for one in theirs:
            one.close()
        return _Exchange(room, (question, answer, words, begun), given_up, data).finish(timeout_s)


def _pipe(held: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """The ends of a pipe: to read from, and to write to."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    return held.enter_context(FileIO(reading, "rb")), held.enter_context(FileIO(writing, "wb"))


class _Exchange:
    """A question on its way in, an answer on its way out, and a clock that begins when the program does."""

    def __init__(self, room: Room, pipes: tuple[FileIO, FileIO, FileIO, FileIO], given_up: int, data: bytes) -> None:
        self._room = room
        self._question, self._answers, self._complaints, self._begun = pipes
        self._given_up = given_up
        self._left = memoryview(data)
        self._answer = b""
        self._words = b""
        self._deadline_s = time.monotonic() + ROOM_S
        self._looks_at_s = time.monotonic() + WATCH_S
        self._late = ProgramFailed("its room could not be made in time", outcome="no-room")

    def finish(self, timeout_s: float) -> bytes:
        """Until it has ended, or is to be ended."""
        for pipe in (self._question, self._answers, self._complaints):
            os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._given_up, selectors.EVENT_READ, self._give_up)
            selector.register(self._question, selectors.EVENT_WRITE, self._write)
            for source, take in (
                (self._answers, self._take_answer),
                (self._complaints, self._take_words),
                (self._begun, lambda: self._begin(timeout_s)),
            ):
                selector.register(source, selectors.EVENT_READ, take)
            self._until(selector, lambda: len(selector.get_map()) == 1)
            # Whoever closes its outputs has not ended yet.
            selector.register(self._room.ended_fd, selectors.EVENT_READ, lambda: False)
            self._until(selector, lambda: len(selector.get_map()) == 1)
        status = self._room.status()
        if status != 0:
            words = self._last_words()
            outcome = "no-room" if words.startswith("bwrap: ") else "failed"
            raise ProgramFailed(f"it ended with status {status}", words, outcome=outcome)
        return self._answer

    def _until(self, selector: selectors.BaseSelector, is_done: Callable[[], bool]) -> None:
        while not is_done():
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                raise self._late
            if time.monotonic() >= self._looks_at_s:
                if self._room.is_too_large():
                    raise ProgramFailed(TOO_LARGE)
                self._looks_at_s = time.monotonic() + WATCH_S
            for key, _ in selector.select(min(left_s, WATCH_S)):
                if not key.data():
                    selector.unregister(key.fileobj)
                    if key.fileobj is self._question:
                        self._question.close()  # the program reads to the end of it

    def _begin(self, timeout_s: float) -> bool:
        if os.read(self._begun.fileno(), 1):
            return True
        self._deadline_s = time.monotonic() + timeout_s
        self._late = ProgramFailed("it took too long", outcome="too-long")
        return False

    def _give_up(self) -> bool:
        raise ProgramFailed("nobody waits for it any more", outcome="given-up")

    def _last_words(self) -> str:
        said = self._words.decode("utf-8", "replace").strip().splitlines()
        line = said[-1] if said else ""
        return "".join(character if character.isprintable() else "?" for character in line)

    def _write(self) -> bool:
        try:
            self._left = self._left[os.write(self._question.fileno(), self._left[: 1 << 16]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._left = self._left[:0]  # who does not read to the end may know enough
        return bool(self._left)

    def _take_answer(self) -> bool:
        piece = os.read(self._answers.fileno(), 1 << 16)
        self._answer += piece
        if len(self._answer) > LARGEST_ANSWER_BYTES:
            raise ProgramFailed("it printed too much", outcome="unreadable")
        return bool(piece)

    def _take_words(self) -> bool:
        piece = os.read(self._complaints.fileno(), 1 << 16)
        self._words = (self._words + piece)[-KEPT_WORDS_BYTES:]
        return bool(piece)
