"""Sends the attacks in ``attacks/`` into a real sandbox as a job, and reads what came of them."""

import dataclasses
import json
import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from integration.sandbox_harness import Room, an_order

from hansa.node.runs.run_order import RunOrder
from hansa.proto.workload import Parameter
from hansa.scheduler.run import RunFailed, RunFinished, RunOutput

ATTACKS = Path(__file__).with_name("attacks")


def an_attack(directory: Path, modules: list[str], facts: dict[str, Any], **changes: Any) -> RunOrder:
    """A run that tries everything in some modules of ``attacks/``."""
    directory.mkdir(exist_ok=True)
    order = an_order(directory, (ATTACKS / "job.py").read_text(), **changes)
    for path in ATTACKS.glob("*.py"):
        shutil.copy(path, order.code / path.name)
    parameters = (
        Parameter(name="modules", value=json.dumps(modules)),
        Parameter(name="facts", value=json.dumps(facts)),
    )
    return dataclasses.replace(order, parameters=parameters)


async def what_came_of(room: Room, order: RunOrder, within_s: float = 120) -> dict[str, Any]:
    """Run the attacks to their end; gives each one's outcome by its name."""
    await room.executor.start(order)
    await ended(room, order.run, within_s)
    return found_by(room, order.run)


async def ended(room: Room, run: bytes, within_s: float = 120) -> RunFinished | RunFailed:
    """The last event of one of several runs."""
    import trio

    with trio.move_on_after(within_s):
        while True:
            for event in room.events:
                if event.run == run and isinstance(event, (RunFinished, RunFailed)):
                    return event
            await trio.sleep(0.02)
    raise AssertionError(f"run {run[:2]!r} did not end, but {room.events[-10:]}")


def outputs_of(room: Room, run: bytes) -> dict[str, bytes]:
    """The files that a run sent."""
    return {
        event.path: room.blobs.kept[event.blob.root]
        for event in room.events
        if isinstance(event, RunOutput) and event.run == run
    }


def found_by(room: Room, run: bytes) -> dict[str, Any]:
    """What the attacks of a run found."""
    outputs = outputs_of(room, run)
    assert "found.json" in outputs, [event for event in room.events if event.run == run][-10:]
    return json.loads(outputs["found.json"])


def need_known_numbers() -> None:
    """The attacks make system calls by x86_64's numbers."""
    if platform.machine() != "x86_64":
        pytest.skip("the attacks know x86_64's system calls only")


def host_namespaces() -> dict[str, str]:
    """Ours, which are the host's as far as a sandbox is concerned."""
    return {path.name: str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}
