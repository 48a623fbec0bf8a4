"""When somebody last touched the machine: asked of logind, of terminals, or of the keyboard itself."""

import os
from pathlib import Path

import pytest

from hansa.node.devices.owner_presence import OwnerPresence, on_battery

NOW_MS = 1_800_000_000_000


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    (tmp_path / "dev" / "pts").mkdir(parents=True)
    (tmp_path / "dev" / "input").mkdir()
    return tmp_path / "dev"


def typed(path: Path, ago_ms: int) -> None:
    path.touch()
    os.utime(path, ns=((NOW_MS - ago_ms) * 1_000_000, NOW_MS * 1_000_000))


def logind(directory: Path, *sessions: dict[str, str]) -> str:
    """A program that answers as loginctl does."""
    cases = ""
    for number, fields in enumerate(sessions, start=1):
        shown = "\n".join(f"{name}={value}" for name, value in fields.items())
        cases += f"    {number}) cat <<'END'\n{shown}\nEND\n    ;;\n"
    listed = "\n".join(f"{number} 1000 owner seat0 -" for number in range(1, len(sessions) + 1))
    text = (
        f"#!/bin/sh\nif [ $2 = list-sessions ]; then cat <<'END'\n{listed}\nEND\nelse case $3 in\n{cases}  esac\nfi\n"
    )
    program = directory / "loginctl"
    program.write_text(text)
    program.chmod(0o755)
    return str(program)


DESKTOP = {"Class": "user", "State": "active", "Type": "wayland", "TTY": "tty2", "IdleHint": "no", "IdleSinceHint": "0"}


def presence(dev: Path, loginctl: str = "/no/such/program") -> OwnerPresence:
    return OwnerPresence(dev=dev, loginctl=loginctl, now_ms=lambda: NOW_MS)


def test_a_desktop_that_says_nothing_of_being_idle_is_in_use(dev: Path, tmp_path: Path) -> None:
    assert presence(dev, logind(tmp_path, DESKTOP)).idle_ms() == 0


def test_a_desktop_is_idle_since_it_says_so(dev: Path, tmp_path: Path) -> None:
    since_us = str((NOW_MS - 90_000) * 1000)
    idle = {**DESKTOP, "IdleHint": "yes", "IdleSinceHint": since_us}
    assert presence(dev, logind(tmp_path, idle)).idle_ms() == 90_000


def test_a_terminals_own_last_key_counts_and_the_latest_of_all_sessions(dev: Path, tmp_path: Path) -> None:
    typed(dev / "pts" / "3", 5_000)
    typed(dev / "pts" / "4", 1_000)  # nobody's session
    terminal = {**DESKTOP, "Type": "tty", "TTY": "pts/3"}
    since_us = str((NOW_MS - 90_000) * 1000)
    idle = {**DESKTOP, "IdleHint": "yes", "IdleSinceHint": since_us}
    assert presence(dev, logind(tmp_path, idle, terminal)).idle_ms() == 5_000


def test_a_greeter_and_who_has_logged_out_are_nobody(dev: Path, tmp_path: Path) -> None:
    sessions = ({**DESKTOP, "Class": "greeter"}, {**DESKTOP, "State": "closing"})
    assert presence(dev, logind(tmp_path, *sessions)).idle_ms() is None
    assert presence(dev, logind(tmp_path)).idle_ms() is None


def test_without_logind_all_terminals_are_asked(dev: Path) -> None:
    assert presence(dev).idle_ms() is None
    typed(dev / "tty1", 700_000)
    typed(dev / "pts" / "0", 30_000)
    typed(dev / "pts" / "ptmx", 0)
    assert presence(dev).idle_ms() == 30_000


def test_without_logind_a_keyboard_is_heard_from_the_first_look_on(dev: Path) -> None:
    os.mkfifo(dev / "input" / "event0")
    now = [NOW_MS]
    watching = OwnerPresence(dev=dev, loginctl="/no/such/program", now_ms=lambda: now[0])
    assert watching.idle_ms() is None
    keyboard = os.open(dev / "input" / "event0", os.O_WRONLY)
    os.write(keyboard, b"x" * 10_000)
    assert watching.idle_ms() == 0
    now[0] += 60_000
    assert watching.idle_ms() == 60_000
    os.close(keyboard)
    watching.close()


def test_a_logind_that_does_not_answer_is_not_waited_for(
    dev: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hansa.node.devices.owner_presence.PATIENCE_S", 0.2)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    assert presence(dev, str(slow)).idle_ms() is None


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, False),
        ({"BAT0": {"type": "Battery"}}, True),
        ({"BAT0": {"type": "Battery"}, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"BAT0": {"type": "Battery"}, "AC": {"type": "Mains", "online": "1"}}, False),
        ({"BAT0": {"type": "Battery"}, "usb": {"type": "USB", "online": "1"}}, False),
        ({"mouse": {"type": "Battery", "scope": "Device"}}, False),
        ({"AC": {"type": "Mains", "online": "0"}}, False),
    ],
)
def test_a_machine_is_on_its_battery_if_it_has_one_and_no_mains(
    tmp_path: Path, supplies: dict[str, dict[str, str]], expected: bool
) -> None:
    for name, files in supplies.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text + "\n")
    assert on_battery(tmp_path) is expected
    assert on_battery(tmp_path / "absent") is False
