"""Processes that carry a mark, wherever they ended up: what a program started and left behind."""

import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

PATIENCE_S = 20.0


def new_mark() -> str:
    """A word that no other process has."""
    return f"hansa-{os.getpid()}-{time.monotonic_ns()}"


def sleeper_and_sleep(mark: str) -> str:
    """A program that leaves a marked process in a session of its own, and then says nothing for long."""
    return f"""
        import subprocess, time
        subprocess.Popen(["/bin/sh", "-c", "sleep 300", "{mark}"], start_new_session=True)
        time.sleep(300)
        """


def living(mark: str) -> list[int]:
    """The processes that have the mark now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [int(entry.name)] * (mark.encode() in (entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found


def naming(directory: Path) -> list[int]:
    """The processes that name a directory among their words, or have something of it mounted, as sandboxes have."""
    words = str(directory).encode()
    source = b"/" + "/".join(directory.parts[-2:]).encode()  # mountinfo has it from its file system's root on
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_named = words in (entry / "cmdline").read_bytes() or source in (entry / "mountinfo").read_bytes()
            except OSError:
                continue
            found += [int(entry.name)] * is_named
    return found


def nothing_lives(mark: str) -> None:
    """Wait until none has it; those that stay are ended, and the test has failed."""
    deadline = time.monotonic() + PATIENCE_S
    while left := living(mark):
        if time.monotonic() > deadline:
            for number in left:
                os.kill(number, signal.SIGKILL)
            pytest.fail("something that it started lives on")
        time.sleep(0.05)


def give_up_when_it_lives(mark: str, ask: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Ask, and ask no more as soon as the program has started the marked process."""

    async def give_up() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, *arguments)
            while not living(mark):  # noqa: ASYNC110 - another process is waited for
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(give_up)
