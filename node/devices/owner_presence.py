"""Whether somebody sits at this machine, and whether it has mains power: what the owner's rules ask of it.

Where logind runs, it says who is logged in and whether their desktop is idle. Terminals remember their last key by
themselves; where there is no logind they are all asked. A keyboard's or a mouse's own device tells nobody when it was
last used, so where neither can answer, this process listens at those that it may open and forgets what it hears.
"""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 3.0
GRAPHICAL = ("x11", "wayland", "mir")
INPUT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Somebody who is logged in, as logind tells it.

    Attributes:
        kind: ``"x11"``, ``"wayland"``, ``"tty"`` …
        idle_since_ms: when its desktop was left alone; ``None`` while it is used, or where nothing says so.
        tty: its terminal, if it has one.
    """

    kind: str
    idle_since_ms: int | None
    tty: str


class OwnerPresence:
    """Looks when somebody last touched the machine. May block for seconds: use it in a worker thread."""

    def __init__(
        self,
        *,
        dev: Path = Path("/dev"),
        loginctl: str = "loginctl",
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Look below ``dev`` for terminals and input devices; ``loginctl`` speaks with logind."""
        self._dev = dev
        self._loginctl = loginctl
        self._now_ms = now_ms
        self._inputs: dict[Path, int] = {}
        self._touched_ms: int | None = None

    def idle_ms(self) -> int | None:
        """For how long nobody has touched the machine; ``None`` where nobody is there who could."""
        now_ms = self._now_ms()
        sessions = self._sessions()
        if sessions is None:
            touched = [*self._terminals(sorted(self._dev.glob("tty[0-9]*"))), *self._pseudo_terminals()]
            touched += self._listen(now_ms)
        else:
            moments = [self._touched(session, now_ms) for session in sessions]
            touched = [moment for moment in moments if moment is not None]
        last = max(touched, default=None)
        return None if last is None else max(0, now_ms - last)

    def close(self) -> None:
        """Stop listening."""
        for descriptor in self._inputs.values():
            os.close(descriptor)
        self._inputs.clear()

    def _touched(self, session: Session, now_ms: int) -> int | None:
        """When a session was last used; a desktop that says nothing of being idle is in use now."""
        if session.kind in GRAPHICAL:
            return now_ms if session.idle_since_ms is None else session.idle_since_ms
        if session.tty:
            return next(iter(self._terminals([self._dev / session.tty])), None)
        return None

    def _sessions(self) -> list[Session] | None:
        """Who is logged in; ``None`` where logind does not run."""
        listed = self._ask("list-sessions", "--no-legend")
        if listed is None:
            return None
        found = []
        for line in listed.splitlines():
            name = (line.split() or [""])[0]
            shown = self._ask("show-session", name, *(f"--property={key}" for key in _PROPERTIES)) if name else None
            fields = dict(entry.split("=", 1) for entry in (shown or "").splitlines() if "=" in entry)
            if fields.get("Class") != "user" or fields.get("State") == "closing":
                continue  # a greeter's screen is nobody, and who has logged out is gone
            idle_us = fields.get("IdleSinceHint", "0")
            is_idle = fields.get("IdleHint") == "yes" and idle_us.isdigit()
            found.append(
                Session(
                    kind=fields.get("Type", ""),
                    idle_since_ms=int(idle_us) // 1000 if is_idle else None,
                    tty=fields.get("TTY", ""),
                )
            )
        return found

    def _ask(self, *arguments: str) -> str | None:
        try:
            done = subprocess.run(
                [self._loginctl, "--no-pager", *arguments],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PATIENCE_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    def _pseudo_terminals(self) -> list[int]:
        return self._terminals([path for path in sorted(self._dev.glob("pts/*")) if path.name.isdigit()])

    def _terminals(self, paths: Sequence[Path]) -> list[int]:
        """When each was last typed at: the kernel keeps it as the time of its last access."""
        found = []
        for path in paths:
            with contextlib.suppress(OSError):
                found.append(path.stat().st_atime_ns // 1_000_000)
        return found

    def _listen(self, now_ms: int) -> list[int]:
        """When an input device last said anything, since we began to listen."""
        for path in sorted(self._dev.glob("input/event*")):
            if path not in self._inputs:
                with contextlib.suppress(OSError):
                    self._inputs[path] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        for path, descriptor in list(self._inputs.items()):
            try:
                while os.read(descriptor, INPUT_BYTES):
                    self._touched_ms = now_ms  # that it spoke is all that we keep
            except BlockingIOError:
                pass
            except OSError:
                os.close(descriptor)
                del self._inputs[path]
        return [] if self._touched_ms is None else [self._touched_ms]


_PROPERTIES = ("Class", "State", "Type", "TTY", "IdleHint", "IdleSinceHint")


def on_battery(supplies: Path = Path("/sys/class/power_supply")) -> bool:
    """Whether the machine has a battery of its own and no mains power. A battery of a mouse is not the machine's."""
    has_battery, has_mains = False, False
    try:
        entries = sorted(supplies.iterdir())
    except OSError:
        return False
    for entry in entries:
        kind, scope = (_line(entry / name) for name in ("type", "scope"))
        if kind == "Battery" and scope != "Device":
            has_battery = True
        elif kind in ("Mains", "USB") and _line(entry / "online") == "1":
            has_mains = True
    return has_battery and not has_mains


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
