"""The node's systemd units under a real systemd: booted in a container of this very system, with every line in force.

systemd-nspawn boots this machine's own root below an overlay that is thrown away. The control groups are those of the
container; where they hold no controllers, as on a machine with version 1, runs are limited by counting. In one thing
such a container is more lenient than a machine: a unit that covers parts of its own /proc (ProtectKernelLogs=) does not
keep sandboxes from mounting theirs.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from hansa.node.devices.disk import close_disks, make_disk

ROOT = Path(__file__).resolve().parents[2]
UNITS = ("hansa.service", "hansa-launcher.service", "hansa-builder.service")
CHECK = Path(__file__).with_name("units") / "check.sh"
LONGEST_S = 400
# What would change this machine's own settings and devices, which the container sees.
MASKED = (
    "systemd-sysctl", "systemd-binfmt", "systemd-modules-load", "systemd-udevd", "systemd-udev-trigger",
    "systemd-random-seed", "systemd-pstore", "systemd-hwdb-update", "systemd-update-utmp", "systemd-remount-fs",
    "systemd-journal-flush", "systemd-tmpfiles-setup-dev",
)  # fmt: skip
BOOT = """[Service]
Type=oneshot
ExecStart=/bin/sh /opt/check.sh
ExecStopPost=systemctl poweroff --force --force
"""
JOB = 'name = "count"\nentry = "job.py:main"\n[resources]\nkind = "cpu"\nmemory = "1 GiB"\ndisk = "64 MiB"\n'
CODE = """import time
def main(ctx):
    for step in range(1, 16):
        time.sleep(0.4)
        ctx.report(step=step)
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def an_environment(directory):
    """What `pip install` would make in /opt/hansa, of the interpreter and packages that run this test."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    is_movable = not Path(sys.base_prefix).is_relative_to("/usr")
    program = Path("/opt/py/bin", version) if is_movable else Path(sys.executable).resolve()
    (directory / "bin").mkdir(parents=True)
    (directory / "lib" / version / "site-packages").mkdir(parents=True)
    for name in ("python", "python3", version):
        (directory / "bin" / name).symlink_to(program)
    write(directory / "pyvenv.cfg", f"home = {program.parent}\nversion = {sys.version.split()[0]}\n")
    command = directory / "bin" / "hansa"
    write(command, "#!/opt/hansa/bin/python\nimport runpy\nrunpy.run_module('hansa', run_name='__main__')\n")
    command.chmod(0o755)
    uv = Path(sys.executable).parent / "uv"
    if uv.exists():
        shutil.copy2(uv, directory / "bin" / "uv")
    binds = {str(directory): "/opt/hansa", sysconfig.get_paths()["purelib"]: f"/opt/hansa/lib/{version}/site-packages"}
    variables = {"PYTHONPATH": "/opt/source/src"}
    if is_movable:
        binds[sys.base_prefix] = "/opt/py"
        variables["LD_LIBRARY_PATH"] = "/opt/py/lib"
    return binds, variables


def boot(directory, devices):
    """Boot, run the check, and give what was written."""
    out = directory / "out"
    out.mkdir()
    binds, variables = an_environment(directory / "hansa")
    settings = " ".join(f"{name}={value}" for name, value in variables.items())
    write(directory / "dropin" / "test.conf", f"[Service]\nEnvironment={settings}\n")
    write(directory / "check.service", BOOT)
    write(directory / "job" / "job.toml", JOB)
    write(directory / "job" / "job.py", CODE)
    exported = {**variables, "PATH": "/opt/hansa/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEVICES": str(devices)}
    write(out / "environment", "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exported.items()))
    binds |= {str(ROOT): "/opt/source", str(CHECK): "/opt/check.sh", str(directory / "job"): "/opt/job"}
    for unit in UNITS:
        binds[str(ROOT / "systemd" / unit)] = f"/etc/systemd/system/{unit}"
    binds[str(directory / "check.service")] = "/etc/systemd/system/hansa-check.service"
    command = ["systemd-nspawn", "-D", "merged", "--register=no", "--keep-unit", "--private-network"]
    command += ["--capability=all", f"--bind={out}:/opt/out", "--console=pipe"]
    command += [f"--bind-ro={source}:{place}" for source, place in binds.items()]
    command += [f"--bind-ro={directory / 'dropin'}:/etc/systemd/system/{unit}.d" for unit in UNITS]
    nodes = (Path("/dev/loop-control"), Path("/dev/net/tun"), *sorted(Path("/dev").glob("loop[0-9]*")))
    command += [f"--bind={node}" for node in nodes if node.exists()]
    masks = " ".join(f"merged/etc/systemd/system/{name}.service" for name in MASKED)
    place = directory / "place"
    place.mkdir()
    script = f"""
        set -e
        mount -t tmpfs none {place} && cd {place} && mkdir up work merged
        mount -t overlay none -o lowerdir=/,upperdir=up,workdir=work merged
        rm -rf merged/etc/systemd/system/*.wants
        for unit in {masks}; do ln -sf /dev/null $unit; done
        exec {shlex.join(command)} -b systemd.unit=hansa-check.service
    """
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LONGEST_S,
        check=False,
        env={
            "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
            # Else parts of /proc are covered, and nobody in the container may mount another one.
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
            "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
        },
    )
    if not (out / "log").exists():
        pytest.skip(f"no systemd can be booted on this machine: {(done.stdout + done.stderr).strip()[-300:]}")
    return {path.name: path.read_text(errors="replace") for path in out.iterdir()}


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """What was seen below a real systemd."""
    if os.getuid() != 0:
        pytest.skip("only root can boot a container")
    for program in ("systemd-nspawn", "unshare", "runuser", "useradd", "pgrep"):
        if shutil.which(program) is None:
            pytest.skip(
                f"there is no {program} on this machine (Debian: systemd-container, util-linux, passwd, procps)"
            )
    if not any(Path(place, "systemd/systemd").exists() for place in ("/lib", "/usr/lib")):
        pytest.skip("there is no systemd on this machine")
    devices = 2
    try:
        close_disks({"": make_disk(1 << 20, Path("/var/tmp"))})
    except OSError:
        devices = 0
    return boot(tmp_path_factory.mktemp("booted"), devices)


@pytest.mark.slow
def test_the_units_agree_with_the_sandbox_and_survive_what_units_go_through(booted):
    lines = booted["log"].splitlines()
    assert [line for line in lines if line.startswith("FAILED")] == [], booted["words"][-6000:]
    assert lines[-1] == "END"
    assert len(lines) > 15


@pytest.mark.slow
def test_a_launcher_in_its_unit_keeps_what_it_promises(booted):
    sandbox = json.loads(booted["status"])["sandbox"]
    assert sandbox["available"], sandbox
    assert sandbox["tier"] == "sandbox"


@pytest.mark.slow
def test_an_ordinary_user_under_the_same_systemd_can_do_without_the_unit(booted):
    found = {finding["name"]: finding for finding in json.loads(booted["doctor"])["findings"]}
    assert found["sandbox"]["ok"], found["sandbox"]


def price_finding(booted, name):
    return next(found for found in json.loads(booted[name])["findings"] if found["name"] == "price program")


@pytest.mark.slow
def test_the_builder_in_its_unit_makes_the_room_that_the_daemon_in_its_unit_may_not_make(booted):
    without = json.loads(booted["price_without_builder"])["program"]
    assert without["price_per_hour"] is None, "then this unit would be less shut than it says"
    assert "environments.builder" in without["hint"], without
    found = price_finding(booted, "doctor_without_builder")
    assert not found["ok"], found
    program = json.loads(booted["price"])["program"]
    assert program["price_per_hour"] == "0.420000", program
    assert price_finding(booted, "doctor_of_units")["ok"]


@pytest.mark.slow
def test_the_builder_in_its_unit_installs_packages(booted):
    found = {finding["name"]: finding for finding in json.loads(booted["doctor_of_units"])["findings"]}
    assert found["packages"]["ok"], found["packages"]
