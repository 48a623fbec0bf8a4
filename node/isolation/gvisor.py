"""A run in gVisor: between the job and this machine's kernel stands a second kernel, in a process without rights.

The room is furnished exactly as bubblewrap's is, because it is made from the same command line: every flag becomes a
directory, link or file in an empty root, or a mount in the bundle that runsc is given. runsc runs as the unprivileged
uid (rootless), with no network but a loopback of its own, and its processes end with the one that the launcher started.

What differs for the job: system calls are slower (its start takes four to six times as long where runsc must use
ptrace), and there is no GPU: the versions of runsc that pass one through have not been tried.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hansa.node.isolation.sandbox import Places, SandboxSpec, build_command
from hansa.node.isolation.sandbox_equipment import Equipment, SandboxUnavailable

UID: Final = 0
"""Whom the job is inside: without a single capability. No other uid could own files on a real disk, because this is the
only one that stands for somebody outside, namely for the run's unprivileged uid."""
STDIN: Final = 0
"""The one descriptor beside output that gVisor takes over from outside; the runner's socket comes as this."""
OPEN_FILES: Final = 65_536
PREFIX: Final = "hansa-gvisor-"
_ASK_S: Final = 20.0
_WORDS: Final[Mapping[str, int]] = {
    "--uid": 1, "--gid": 1, "--hostname": 1, "--cap-drop": 1, "--seccomp": 1, "--chdir": 1, "--setenv": 2,
    "--perms": 1, "--size": 1, "--tmpfs": 1, "--dir": 1, "--proc": 1, "--dev": 1, "--remount-ro": 1,
    "--symlink": 2, "--bind": 2, "--ro-bind": 2, "--ro-bind-try": 2, "--dev-bind": 2, "--dev-bind-try": 2,
    "--ro-bind-data": 2,
}  # fmt: skip
"""How many words follow each flag of bubblewrap's that our command line has; none after any other."""


@dataclass(slots=True, kw_only=True)
class Bundle:
    """What runsc is given.

    Attributes:
        directories, links, files: what lies in the root itself, by their absolute paths inside.
        mounts: everything else, in order, as the OCI specification writes it.
        environment: the program's.
        arguments: the program and its arguments.
        directory: where it starts.
    """

    directories: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    directory: str = "/"


def find_runsc() -> str:
    """The program.

    Raises:
        SandboxUnavailable: there is none.
    """
    found = shutil.which("runsc", path=f"{os.environ.get('PATH', os.defpath)}:/usr/local/bin:/usr/bin")
    if found is None:
        raise SandboxUnavailable("gVisor is missing", "install runsc (https://gvisor.dev, or your system's package)")
    return str(Path(found).resolve())


def furnish_gvisor(equipment: Equipment, spec: SandboxSpec, places: Places) -> Bundle:
    """The bundle for a run.

    Raises:
        SandboxUnavailable: it needs what gVisor is not given here.
    """
    if spec.gpu_minors or spec.device_nodes:
        raise SandboxUnavailable("runs in gVisor have no GPUs here", "use the tier sandbox")
    if spec.gang is not None:
        raise SandboxUnavailable("runs in gVisor have no network between machines", "use the tier sandbox")
    data: list[bytes] = []

    def keep(_name: str, content: bytes) -> int:
        data.append(content)
        return len(data) - 1

    command = build_command(equipment, spec, STDIN, keep, places)
    end = command.index("--")
    bundle = Bundle(arguments=command[end + 1 :])
    tmpfs: list[str] = []
    for flag, words in _read_flags(command[1:end]):
        if flag == "--perms":
            tmpfs.append(f"mode={words[0]}")
        elif flag == "--size":
            tmpfs += [f"size={words[0]}", f"uid={UID}", f"gid={UID}"]
        else:
            _translate(bundle, flag, words, tmpfs, data)
            tmpfs = []
    bundle.files["/etc/passwd"] = f"job:x:{UID}:{UID}::/job/work:/bin/sh\n".encode()
    bundle.files["/etc/group"] = f"job:x:{UID}:\n".encode()
    return bundle


def run_command(bundle_dir: str, *, with_egress: bool) -> list[str]:
    """The command line that runs a bundle, for whichever version of runsc is here.

    Raises:
        SandboxUnavailable: there is none, or it lacks something.
    """
    program = find_runsc()
    known = _known_flags(program)
    command = [program, "--root", f"{bundle_dir}/state", "--rootless", "--network=none", "--ignore-cgroups"]
    if "overlay2" in known:
        command.append("--overlay2=none")  # newer ones would make the root writable, in a file beside it
    if with_egress:
        if "host-uds" not in known:
            raise SandboxUnavailable("this runsc lets nobody use sockets of outside", "install a newer one")
        command.append("--host-uds=open")
    return [*command, "run", "--bundle", bundle_dir, "job"]


def write_bundle(bundle: Bundle, directory: Path, owner: int | None) -> None:
    """Write a bundle down in an empty directory; ``owner`` will run it, if that is somebody else."""
    root, state = directory / "root", directory / "state"
    root.mkdir()
    state.mkdir()
    if owner is not None:
        os.chown(state, owner, owner)
    # Mount points, too: a root that is not ours to write to must hold them already.
    for inside in (*bundle.directories, *_mount_points(bundle)):
        (root / inside.lstrip("/")).mkdir(parents=True, exist_ok=True)
    for inside, target in bundle.links.items():
        place = root / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for inside, content in bundle.files.items():
        place = root / inside.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        place.chmod(0o444)
    for mount in bundle.mounts:
        place = root / mount["destination"].lstrip("/")
        if mount["type"] == "bind" and not Path(mount["source"]).is_dir() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
    (directory / "config.json").write_text(json.dumps(_configuration(bundle, str(root))))


def remove_bundles(parent: Path) -> None:
    """Take away the bundles of launchers that were killed; their names begin with the launcher's pid."""
    for directory in parent.glob(f"{PREFIX}*"):
        owner = directory.name.removeprefix(PREFIX).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists() and directory.lstat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)


def _translate(bundle: Bundle, flag: str, words: list[str], tmpfs: list[str], data: list[bytes]) -> None:
    """Add what one of bubblewrap's flags does; ``tmpfs`` are the options of the next one."""
    match flag, words:
        case "--setenv", [name, value]:
            bundle.environment[name] = value
        case "--chdir", [path]:
            bundle.directory = path
        case "--dir", [path]:
            bundle.directories.append(path)
        case "--symlink", [target, path]:
            bundle.links[path] = target
        case "--ro-bind-data", [number, path]:
            bundle.files[path] = data[int(number)]
        case "--tmpfs", [path]:
            _mount(bundle, "tmpfs", "tmpfs", path, [*tmpfs, "nosuid", "nodev"])
        case "--remount-ro", [path]:
            for mount in bundle.mounts:
                if mount["destination"] == path:
                    mount["options"].append("ro")
        case "--proc", [path]:
            _mount(bundle, "proc", "proc", path, ["nosuid", "nodev", "noexec"])
        case (("--ro-bind" | "--ro-bind-try" | "--bind"), [source, path]):
            if path.startswith(("/proc/", "/dev/")) or (flag == "--ro-bind-try" and not Path(source).exists()):
                return  # gVisor's own /proc and /dev are not this machine's
            mode = "rw" if flag == "--bind" else "ro"
            _mount(bundle, "bind", source, path, [mode, "rbind", "nosuid", "nodev"])
        case _:
            # Namespaces, capabilities and rights are said below, and gVisor makes /dev by itself.
            assert flag in _WORDS or flag.startswith(
                ("--unshare-", "--die-", "--new-", "--disable-", "--assert-", "--c")
            )


def _mount(bundle: Bundle, kind: str, source: str, path: str, options: list[str]) -> None:
    bundle.mounts.append({"destination": path, "type": kind, "source": source, "options": options})


def _mount_points(bundle: Bundle) -> Iterator[str]:
    """Directories that mounts cover and that no mount before them brings."""
    brought: list[str] = []
    for mount in bundle.mounts:
        path = mount["destination"]
        is_file = mount["type"] == "bind" and not Path(mount["source"]).is_dir()
        if not is_file and not path.startswith(tuple(f"{one}/" for one in brought)):
            yield path
        brought.append(path)


def _configuration(bundle: Bundle, root: str) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": UID, "gid": UID},
            "args": bundle.arguments,
            "env": [f"{name}={value}" for name, value in bundle.environment.items()],
            "cwd": bundle.directory,
            "capabilities": {kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")},
            "noNewPrivileges": True,
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": OPEN_FILES, "soft": OPEN_FILES},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            ],
        },
        "root": {"path": root, "readonly": True},
        "hostname": "job",
        "mounts": bundle.mounts,
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _read_flags(flags: list[str]) -> Iterator[tuple[str, list[str]]]:
    at = 0
    while at < len(flags):
        count = _WORDS.get(flags[at], 0)
        yield flags[at], flags[at + 1 : at + 1 + count]
        at += 1 + count


@functools.cache
def _known_flags(program: str) -> frozenset[str]:
    """What this version of runsc can be told."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([program, "flags"], capture_output=True, timeout=_ASK_S, check=False)
        text = (told.stdout + told.stderr).decode("utf-8", "replace")
        return frozenset(line.split()[0].lstrip("-") for line in text.splitlines() if line.startswith("  -"))
    return frozenset()
