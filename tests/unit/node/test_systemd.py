"""The unit files are accepted by systemd itself, and every line of them that hardens says why it is there."""

import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).resolve().parents[3] / "systemd").glob("*.service"))


def test_there_are_four_units() -> None:
    names = ["hansa-agent.service", "hansa-builder.service", "hansa-launcher.service", "hansa.service"]
    assert [unit.name for unit in UNITS] == names


def test_systemd_accepts_the_units() -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run([tool, "verify", *map(str, UNITS)], capture_output=True, text=True, check=False, timeout=60)
    if "Failed to initialize manager" in done.stderr or "Failed to setup working directory" in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.strip()[:200]}")
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_whoever_starts_the_node_again_starts_its_launcher_and_its_builder(tmp_path: Path) -> None:
    """Stopping the node stops both (``PartOf``); a node that came back alone would take no jobs with packages."""
    if shutil.which("systemctl") is None:
        pytest.skip("systemctl is not installed")
    place = tmp_path / "etc" / "systemd" / "system"
    place.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(unit, place)
    enable = ["systemctl", f"--root={tmp_path}", "enable", "hansa", "hansa-builder"]
    subprocess.run(enable, capture_output=True, check=True, timeout=60)
    wanted = {path.name for path in (place / "hansa.service.wants").glob("*")}
    for line in (place / "hansa.service").read_text().splitlines():
        wanted |= set(line.removeprefix("Wants=").split()) if line.startswith("Wants=") else set()
    stopped = {unit.name for unit in UNITS if "PartOf=hansa.service" in unit.read_text()}
    assert stopped == {"hansa-launcher.service", "hansa-builder.service"}
    assert stopped <= wanted


def test_a_broken_unit_would_be_seen(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    broken = tmp_path / "hansa.service"
    broken.write_text(UNITS[3].read_text().replace("ProtectSystem=strict", "ProtectSystem=sometimes"))
    done = subprocess.run([tool, "verify", str(broken)], capture_output=True, text=True, check=False, timeout=60)
    assert "protect system" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_every_paragraph_of_hardening_begins_with_its_reason(unit: Path) -> None:
    """A directive stands below a comment, or below another directive that does."""
    lines = unit.read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(("ProtectSystem", "PrivateNetwork")))
    explained = lines[start - 1].startswith("#")
    assert explained
    for line in lines[start:]:
        if line.startswith("["):
            break
        if not line.strip():
            explained = False
        elif line.startswith("#"):
            explained = True
        else:
            assert explained, f"nothing explains {line}"


@pytest.mark.parametrize("unit", UNITS[1:3], ids=lambda unit: unit.name)
def test_a_unit_that_makes_sandboxes_has_none_of_the_directives_that_break_them(unit: Path) -> None:
    text = unit.read_text()
    directives = {line.partition("=")[0]: line.partition("=")[2] for line in text.splitlines() if line[:1].isalpha()}
    for broken in ("ProtectKernelTunables", "ProtectKernelLogs", "ProcSubset", "ProtectHostname", "PrivateDevices"):
        assert broken not in directives
    assert directives["RestrictNamespaces"] != "yes"
    assert "OOMScoreAdjust" not in directives
