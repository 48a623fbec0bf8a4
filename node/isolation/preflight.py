"""Before anything is lent: one sandbox is made, a program in it looks around, and what it saw is judged.

Beside the tier in which a node's runs are made, the others are looked at too, so that its owner sees what this machine
could offer. Each is named for what it is: nothing counts as there that no run can be made in.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

import hansa
from hansa.node.isolation import gvisor, launcher_link
from hansa.node.isolation.attestation import REPORTS
from hansa.node.isolation.launcher_protocol import Start, Started, receive, send
from hansa.node.isolation.sandbox import INSIDE_UID, MIN_MEMORY_BYTES, SandboxSpec
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_equipment
from hansa.proto.market_documents import TIER_GVISOR, TIER_MICROVM, TIER_NONE, TIER_SANDBOX, TIER_TEE

PROCESSES: Final = 256
MONITORS: Final = ("firecracker", "cloud-hypervisor", "qemu-system-x86_64", "qemu-system-aarch64", "crosvm")
SOUND: Final[Mapping[str, Mapping[str, object]]] = {
    TIER_SANDBOX: {
        "uid": INSIDE_UID,
        "capabilities": 0,
        "no_new_privileges": True,
        "seccomp": True,
        "interfaces": ["lo"],
        "readable": [],
        "writable": [],
        "missing": [],
        "inherited": [],
    },
    # Its own kernel invents /sys, and a /dev that can be written to, in memory that counts as the run's.
    TIER_GVISOR: {
        "uid": gvisor.UID,
        "capabilities": 0,
        "interfaces": ["lo"],
        "readable": ["/sys"],
        "writable": ["/dev"],
        "missing": [],
        "inherited": [],
    },
}
"""What a program inside must see, by tier."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxReport:
    """What kind of room this machine can offer.

    Attributes:
        available: whether strangers' jobs may be run at all.
        tier: the tier that was tried, or ``"none"``, as it goes into adverts.
        reason: one sentence for the owner: why not, or what was found.
        limits: by which means each limit is held, e.g. ``{"memory": "cgroup v1", …}``.
    """

    available: bool
    tier: str
    reason: str
    limits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TierReport:
    """Whether runs can be made in one tier on this machine.

    Attributes:
        available: whether they can.
        reason: why not, or what holds.
    """

    tier: str
    available: bool
    reason: str


def check_sandbox(
    timeout_s: float = 30.0, *, launch: launcher_link.Launch | None = None, tier: str = TIER_SANDBOX
) -> SandboxReport:
    """Start one sandbox with a small program in it that looks around, and judge what it saw.

    Args:
        timeout_s: how long each answer may take.
        launch: gives the launcher that will make this node's sandboxes; without it one is started for the occasion.
        tier: which walls to try.
    """
    name = "bubblewrap" if tier == TIER_SANDBOX else "gVisor"
    try:
        find_equipment()
        facts, limits = _probe(timeout_s, launch or launcher_link.start_launcher, tier)
    except SandboxUnavailable as error:
        return SandboxReport(available=False, tier=TIER_NONE, reason=f"{error}; {error.hint}")
    except (OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
        return SandboxReport(available=False, tier=TIER_NONE, reason=f"starting a sandbox failed: {error}")
    faults = _faults_in(facts, tier)
    if faults:
        return SandboxReport(
            available=False, tier=TIER_NONE, reason=f"the sandbox leaks: {', '.join(faults)}", limits=limits
        )
    held = ", ".join(f"{name} by {means}" for name, means in sorted(limits.items()))
    return SandboxReport(available=True, tier=tier, reason=f"{name} works; {held}", limits=limits)


def check_tiers(sandbox: SandboxReport, *, launch: launcher_link.Launch | None = None) -> tuple[TierReport, ...]:
    """Every tier that has a name, from the weakest to the strongest.

    Args:
        sandbox: what `check_sandbox` found, so that it is not tried twice.
        launch: as there.
    """
    by_tier = {sandbox.tier: sandbox} if sandbox.available else {}
    found = [
        TierReport(tier=TIER_NONE, available=True, reason="promises nothing; runs are made in a sandbox all the same")
    ]
    for tier in (TIER_SANDBOX, TIER_GVISOR):
        report = by_tier.get(tier)
        if report is None and tier == TIER_SANDBOX and not sandbox.available:
            report = sandbox
        if report is None:
            report = check_sandbox(launch=launch, tier=tier)
        found.append(TierReport(tier=tier, available=report.available, reason=report.reason))
    found.append(TierReport(tier=TIER_MICROVM, available=False, reason=_microvm()))
    found.append(TierReport(tier=TIER_TEE, available=False, reason=_tee()))
    return tuple(found)


def _microvm(device: Path = Path("/dev/kvm"), find: Callable[[str], str | None] = shutil.which) -> str:
    """What of a virtual machine for each run there is. Hansa makes none yet, so it is never available."""
    kvm = f"{device} can be used" if os.access(device, os.R_OK | os.W_OK) else f"{device} cannot be used"
    monitors = [name for name in MONITORS if find(name)]
    programs = f"{', '.join(monitors)} is here" if monitors else "no monitor is installed"
    return f"Hansa makes no virtual machines yet; {kvm}, {programs}"


def _tee(reports: Path = REPORTS) -> str:
    """Whether this machine could prove what it is. Runs are not made differently on one, so it is never available."""
    if not reports.is_dir():
        return f"no trusted execution environment: the kernel has no {reports}"
    return "this machine gives quotes, which nobody verifies yet; `hansa node status --json` shows this node's"


def _faults_in(facts: Mapping[str, Any], tier: str) -> list[str]:
    """What the probe saw that it should not have."""
    faults = [f"{name} is {facts.get(name)!r}" for name, value in SOUND[tier].items() if facts.get(name) != value]
    if tier == TIER_GVISOR and facts.get("kernel") == f"{os.uname().release} {os.uname().version}":
        faults.append("the kernel is this machine's own")
    return faults


def _probe(timeout_s: float, launch: launcher_link.Launch, tier: str) -> tuple[dict[str, Any], dict[str, str]]:
    process, control = launch()
    try:
        control.settimeout(timeout_s)
        # As the equipment names it: whoever asks, a launcher shows this to every sandbox.
        code = str((Path(hansa.__file__).resolve().parent / "worker").resolve())
        spec = SandboxSpec(
            program="hansa.worker.probe",
            code=code,
            inputs=None,
            tier=tier,
            memory_bytes=MIN_MEMORY_BYTES,
            cpu_millis=1000,
            processes=PROCESSES,
            scratch_bytes=1 << 20,
            output_bytes=1 << 20,
            gpu_minors=(),
        )
        with contextlib.suppress(BrokenPipeError):  # a launcher that does not serve us has said so, and hung up
            send(control, Start(run=b"probe", spec=spec))
        reply, descriptors = receive(control)
        if not isinstance(reply, Started):
            raise SandboxUnavailable(
                getattr(reply, "reason", "the launcher did not answer"), "the message says what it lacks"
            )
        with socket.socket(fileno=descriptors[0]) as line:
            line.settimeout(timeout_s)
            said = b""
            while piece := line.recv(65536):
                said += piece
        if not said:
            ended, _ = receive(control)
            words = getattr(ended, "words", "")
            raise SandboxUnavailable(f"making one failed: {words.strip()[-300:]}", _hint_for(words))
        facts: dict[str, Any] = msgpack.unpackb(said)
        return facts, dict(reply.limits)
    finally:
        control.close()
        if process is not None:
            process.wait(timeout_s)


def _hint_for(words: str) -> str:
    if os.geteuid() == 0 and "not permitted" in words:
        return (
            "root here lacks CAP_SYS_ADMIN, as in most containers: run outside of it, give it that capability, "
            "or run as an ordinary user"
        )
    if "uid map" in words or "namespace" in words:
        return (
            "allow unprivileged user namespaces (kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap)"
        )
    return "the message says what it lacks"
