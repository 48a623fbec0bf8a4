"""How much of a lease's time its devices really computed: sampled from outside the sandbox, told as a running total.

A GPU's driver says what share of the last moments it computed. A slot of CPU cores is busy as far as the run's
processes took processor time, which their control group counts, or where there is none, the sum over their tree.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hansa.market.shares import WHOLE_MILLI
from hansa.node.devices.gpus import GpuSample
from hansa.proto.market_documents import KIND_CPU, Device

LONGEST_STEP_MS = 2_000
"""A sample speaks of the moments before it. What lies further back than this, nobody has measured."""
TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A run that computes now.

    Attributes:
        lease: its lease.
        devices: what it has.
        pid: its sandbox's outermost process; ``None`` while it has none.
        busy_ms: what was told of the lease before we began.
        share_milli: how much of each device it has, in thousandths.
    """

    lease: bytes
    devices: tuple[Device, ...]
    pid: int | None
    busy_ms: int
    share_milli: int = WHOLE_MILLI


@dataclass(slots=True)
class _Tally:
    busy_us: int
    told_ms: int
    cpu_ms: dict[int, int] = field(default_factory=dict)


class UseMeter:
    """Adds samples up, lease by lease."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._tallies: dict[bytes, _Tally] = {}

    def add(
        self,
        leases: Iterable[Leased],
        gpus: Mapping[bytes, GpuSample],
        cpu_ms: Mapping[int, int],
        step_ms: int,
    ) -> None:
        """Count one step.

        Args:
            leases: the runs that compute now; others are forgotten.
            gpus: the driver's sample by a device's id.
            cpu_ms: processor time that each run's processes have taken until now, by the run's ``pid``.
            step_ms: time since the last step.
        """
        step_ms = max(0, min(step_ms, LONGEST_STEP_MS))
        live = list(leases)
        self._tallies = {
            entry.lease: self._tallies.get(entry.lease) or _Tally(entry.busy_ms * 1000, entry.busy_ms) for entry in live
        }
        for entry in live:
            tally = self._tallies[entry.lease]
            for device in entry.devices:
                # Of a GPU that takes turns between runs its driver does not say for whom it computed.
                sample = gpus.get(device.id) if entry.share_milli == WHOLE_MILLI else None
                if sample is not None and sample.busy_percent is not None:
                    tally.busy_us += step_ms * 10 * max(0, min(sample.busy_percent, 100))
            tally.busy_us += _cores_busy_us(entry, tally, cpu_ms, step_ms)

    def news(self) -> list[tuple[bytes, int]]:
        """Leases whose total has grown since it was last asked for, with it, in device-milliseconds."""
        grown = []
        for lease, tally in self._tallies.items():
            busy_ms = tally.busy_us // 1000
            if busy_ms > tally.told_ms:
                tally.told_ms = busy_ms
                grown.append((lease, busy_ms))
        return grown


def _cores_busy_us(entry: Leased, tally: _Tally, cpu_ms: Mapping[int, int], step_ms: int) -> int:
    """The part that slots of CPU cores were busy, never more than the step itself for each of them."""
    slots = [device for device in entry.devices if device.kind == KIND_CPU]
    if not slots or entry.pid is None or entry.pid not in cpu_ms:
        return 0
    now_ms = cpu_ms[entry.pid]
    before_ms = tally.cpu_ms.get(entry.pid)
    tally.cpu_ms = {entry.pid: max(now_ms, before_ms or 0)}
    if before_ms is None:
        return 0
    cores_milli = max(1, sum(device.cores_milli for device in entry.devices))
    used_us = max(0, now_ms - before_ms) * 1_000_000 * len(slots) // cores_milli
    return min(used_us, step_ms * 1000 * len(slots))


def read_cpu_ms(
    pids: Iterable[int], proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")
) -> dict[int, int]:
    """Processor time of everything below each of these processes."""
    found: dict[int, int] = {}
    for pid in pids:
        counted = _of_group(pid, proc, cgroup)
        if counted is not None:
            found[pid] = counted
    rest = [pid for pid in pids if pid not in found]
    return {**found, **_of_trees(rest, proc)} if rest else found


def _of_group(pid: int, proc: Path, cgroup: Path) -> int | None:
    """What the run's own control group has counted, if it has one that counts."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _number, controllers, path = line.split(":", 2)
        if not path.rpartition("/")[2].startswith("hansa-"):
            continue
        own = cgroup / (controllers or ".") / path.lstrip("/")
        try:
            if not controllers:
                counts = dict(entry.split() for entry in (own / "cpu.stat").read_text().splitlines())
                return int(counts["usage_usec"]) // 1000
            if "cpuacct" in controllers.split(","):
                return int((own / "cpuacct.usage").read_text()) // 1_000_000
        except (OSError, KeyError, ValueError):
            return None
    return None


def _of_trees(pids: Iterable[int], proc: Path) -> dict[int, int]:
    """One look over all processes. The time of those that ended is in whoever waited for them."""
    children: dict[int, list[int]] = {}
    own_ms: dict[int, int] = {}
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            own_ms[int(entry.name)] = sum(int(number) for number in fields[11:15]) * TICK_MS
        except (OSError, IndexError, ValueError):
            continue
    found = {}
    for pid in pids:
        waiting, total_ms = [pid], 0
        while waiting:
            one = waiting.pop()
            total_ms += own_ms.get(one, 0)
            waiting += children.get(one, [])
        if pid in own_ms:
            found[pid] = total_ms
    return found
