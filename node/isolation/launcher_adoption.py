"""A sandbox that was prepared becomes a run's: what is the run's alone is brought into it from outside.

It was made like any other, with the same walls, and holds nothing but the runner, with Ray up and idle. Then the
launcher, being root, mounts into it the job's code and inputs, read-only, and disks of the paid size; and the kernel's
limits are written anew, while nothing in it may compute. What is mounted is taken in a mount namespace where it was
checked and closed as for any other run (`hansa.node.isolation.confine`), and goes with the sandbox as everything else
in it.

It works once: a sandbox that has had a run is never prepared again.
"""

import contextlib
import os
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from hansa.node.devices.disk import IN_MEMORY, ON_DISK, make_disks, scratch_directory
from hansa.node.isolation import confine, process_tree
from hansa.node.isolation.cgroups import Group, GroupLimits
from hansa.node.isolation.launcher_errand import Work
from hansa.node.isolation.launcher_room import Room
from hansa.node.isolation.sandbox import SandboxSpec
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable

FROZEN_S: Final = 0.5
INSIDE_CODE: Final = "/job/code"
INSIDE_INPUTS: Final = "/job/inputs"


def check_fits(room: Room, spec: SandboxSpec) -> None:
    """Whether a sandbox can become one as this is.

    Raises:
        SandboxUnavailable: it cannot.
    """
    made = room.spec
    if made.code is not None:
        raise SandboxUnavailable("this sandbox has a run already", "a fault of the daemon's")
    same = ("program", "tier", "shared_memory_bytes", "gpu_minors", "device_nodes", "cuda_devices", "rocm_devices",
            "environment", "image", "egress", "gang")  # fmt: skip
    other = [name for name in same if getattr(made, name) != getattr(spec, name)]
    if spec.code is None or other:
        raise SandboxUnavailable(f"this sandbox was prepared for another {', '.join(other) or 'run'}", "start it cold")


def furnish_later(room: Room, spec: SandboxSpec, held: Mapping[str, int], holding: contextlib.ExitStack) -> Work:
    """What is to be done to bring a run's own things into a prepared sandbox; it answers by which means disks are kept.

    ``holding`` is to be closed when that has been done.

    Raises:
        OSError: the sandbox is not there any more.
    """
    uid, group = room.uid, room.group
    assert uid is not None, "only root's launcher prepares"
    assert group is not None, "nor without one"
    inner = _inner_process(room)
    holding.callback(os.close, inner)
    still(group)
    pids = group.pids()
    largest = max(spec.scratch_bytes, confine.LEAST_FILE_BYTES)
    sources = {path: inside for path, inside in ((spec.code, INSIDE_CODE), (spec.inputs, INSIDE_INPUTS)) if path}

    def work() -> tuple[bytes, list[int]]:
        disks = make_disks(spec.disk_sizes, scratch_directory())
        confine.stage(list(sources), held)
        place = confine.staged(list(sources))
        trees = [(confine.take_tree(place(path)), inside, False) for path, inside in sources.items()]
        for inside, size_bytes in spec.disk_sizes.items():
            name = Path(inside).name
            if disks:
                confine.mount_disk(name, disks[inside].device, uid.uid)
            else:
                confine.mount_memory(name, size_bytes, uid.uid)
            trees.append((confine.take_tree(confine.staged_disk(name)), inside, True))
        confine.enter_mounts(inner)
        for tree, inside, writable in trees:
            confine.put_tree(tree, inside, writable=writable)
        # As whoever they are: to change others' limits takes a right that not every launcher has.
        confine.drop_to(uid.uid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest, largest))
        return (ON_DISK if disks else IN_MEMORY).encode(), []

    return work


def hand_over(room: Room, spec: SandboxSpec) -> None:
    """Write a run's limits where those of a prepared sandbox were, and let it compute, which it has not since.

    Raises:
        OSError: they cannot be held.
        MemoryError: what is in it is not whole any more.
    """
    group = room.group
    assert group is not None, "none is prepared without one"
    if group.memory_kills():
        raise MemoryError("it ran out of memory while it was prepared")
    group.limit(GroupLimits(memory_bytes=spec.memory_bytes, cpu_millis=spec.cpu_millis, processes=spec.processes))
    for pid in group.pids():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            score = Path(f"/proc/{pid}/oom_score_adj")
            if int(score.read_text()) == confine.OOM_SCORE_PREPARED:  # Ray has raised its workers' own above it
                score.write_text(str(confine.OOM_SCORE))
    group.favour(little=False)
    group.freeze(frozen=False)


def still(group: Group) -> None:
    """Freeze a group and wait until nothing in it computes, so that nothing forks unseen.

    Raises:
        OSError: something does, all the same.
    """
    group.freeze(frozen=True)
    deadline = time.monotonic() + FROZEN_S
    while not group.is_frozen():
        if time.monotonic() > deadline:
            raise TimeoutError("the sandbox does not hold still")
        time.sleep(0.001)


def _inner_process(room: Room) -> int:
    """A descriptor of the first process inside, whose mounts are the sandbox's."""
    _outer, *below = process_tree.descendants(room.pid)
    if not below:
        raise ProcessLookupError("there is nobody in the sandbox")
    inner = below[0]
    descriptor = os.pidfd_open(inner)
    try:
        # The number could be somebody else's by the time at which it was opened.
        if inner not in process_tree.descendants(room.pid):
            raise ProcessLookupError("there is nobody in the sandbox")
        own, theirs = (Path(f"/proc/{pid}/ns/mnt").readlink() for pid in (os.getpid(), inner))
        if own == theirs:
            raise ProcessLookupError("the sandbox is not furnished yet")
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
