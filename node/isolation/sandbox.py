"""The room in which a stranger's code runs: one bubblewrap command line, each flag with its reason.

What is inside: a read-only /usr, or the job's own image in its place; the Python and the packages of the environment
that this daemon runs in; of Hansa only ``proto`` and ``worker``; the job's packages, code and inputs, read-only; and a
few writable directories with sizes. What is not: the host's files, processes, network, keys, data directory, devices.

Modules are looked for in this order: Hansa and Ray, which are always the provider's; the job's environment; its image;
the provider's packages.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hansa.node.devices.sandbox_devices import gpu_flags, gpu_variables
from hansa.node.isolation.sandbox_equipment import Equipment
from hansa.node.isolation.sandbox_image import ImageRoot, driver_flags, furnish_from_image
from hansa.proto.gang import GANG_FILE, Gang, address_of, gang_text

INSIDE_UID = 1000
ENVIRONMENT = "/opt/environment"
EGRESS_SOCKET = "/run/hansa/egress.sock"
TEMPORARY_BYTES = 256 << 20
MIN_MEMORY_BYTES = 512 << 20
"""Ray alone takes 415 MB; with less a run could only ever end as out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What one run gets.

    Attributes:
        program: the module inside that is started, ``hansa.worker.runner``, ``.member`` or ``.probe``.
        code: host directory of the job's code; ``None`` for a sandbox that is prepared before its run is known. Then
            code, inputs and disks are brought into it later (`hansa.node.isolation.launcher_adoption`).
        inputs: host directory of the job's inputs, if it has any.
        environment: host directory with the job's own Python packages, if it has any.
        image: host directory of an unpacked container image that is the root file system, if it has one.
        egress: host path of the unix socket of the run's way out, if it has one.
        memory_bytes: main memory, with all that is written to what is no real disk.
        shared_memory_bytes: size of /dev/shm.
        cpu_millis: thousandths of a CPU.
        processes: processes and threads.
        scratch_bytes: size of /job/work.
        output_bytes: size of /job/outputs.
        gpu_minors: minor numbers of the leased GPUs' device nodes.
        device_nodes: further nodes that the leased GPUs have: of MIG slices, and of AMD's.
        cuda_devices: what CUDA calls the leased GPUs.
        rocm_devices: what ROCm calls the leased GPUs.
        tier: how strongly it is walled in, ``"sandbox"`` or one of the stronger ones that preflight found.
        gang: its place among the sandboxes of a run on several machines, if it is one of these.
    """

    program: str
    code: str | None
    inputs: str | None
    environment: str | None = None
    image: str | None = None
    egress: str | None = None
    tier: str = "sandbox"
    memory_bytes: int
    shared_memory_bytes: int = 192 << 20
    cpu_millis: int
    processes: int
    scratch_bytes: int
    output_bytes: int
    gpu_minors: tuple[int, ...]
    device_nodes: tuple[str, ...] = ()
    cuda_devices: tuple[str, ...] = ()
    rocm_devices: tuple[str, ...] = ()
    gang: Gang | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Everything of the host that it names."""
        named = (self.code, self.inputs, self.environment, self.image, self.egress)
        return tuple(path for path in named if path is not None)

    @property
    def disk_sizes(self) -> dict[str, int]:
        """The directories that the job may fill, and how far. In one that is prepared, disks will cover them."""
        return {"/job/work": self.scratch_bytes, "/job/outputs": min(self.output_bytes, self.scratch_bytes)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the things are that a sandbox is made of, for those who make it.

    Attributes:
        reach: where a path of the host can be reached by the uid that starts bubblewrap.
        look: where this process itself can look at it.
        disk: directories of a real disk for what the job writes, by their name inside; what is missing is a tmpfs.
    """

    reach: Callable[[str], str] = str
    look: Callable[[str], str] = str
    disk: Mapping[str, str] = field(default_factory=dict)


def build_command(
    equipment: Equipment,
    spec: SandboxSpec,
    socket_fd: int,
    open_data: Callable[[str, bytes], int],
    places: Places | None = None,
) -> list[str]:
    """The whole command line.

    Args:
        equipment: what to furnish it with.
        spec: what the run gets.
        socket_fd: the runner's end of the socket to the daemon, which is inherited through bubblewrap.
        open_data: makes a readable file descriptor of some bytes, ``open_data(name, data)``.
        places: where things are reached; by default where they are.

    Raises:
        SandboxUnavailable: the job's image cannot be used here.
    """
    places = places or Places()
    reach = places.reach
    image = None
    if spec.image is not None:
        image = furnish_from_image(equipment, places.look(spec.image), reach(spec.image))
    flags: list[str] = [
        *("--unshare-user", "--uid", str(INSIDE_UID), "--gid", str(INSIDE_UID)),  # a user namespace, and nobody in it
        *("--disable-userns", "--assert-userns-disabled"),  # no second one inside: most kernel exploits begin there
        *("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"),
        # Ray listens on every interface; here there is only a loopback of its own. A gang's launcher has made a
        # network with one interface more, and has entered it.
        *(("--unshare-net",) if spec.gang is None else ()),
        "--die-with-parent",  # the launcher's end is the sandbox's end
        "--new-session",  # no terminal to push characters into
        *("--hostname", "job", "--cap-drop", "ALL"),
        *(system_flags() if image is None else image.flags),
    ]
    for host, inside in (*equipment.binds, *(() if image is None else equipment.system_binds)):
        flags += ["--ro-bind", reach(host), inside]
    for inside in equipment.hidden:
        if image is not None or inside.startswith(equipment.site_path):
            flags += ["--tmpfs", inside, "--remount-ro", inside]
    flags += [
        *("--proc", "/proc"),
        *("--ro-bind", "/proc/sys", "/proc/sys"),  # second lock on core_pattern; the first is never being uid 0
        *("--dev", "/dev"),
        *gpu_flags(spec.gpu_minors, spec.device_nodes),
        *(driver_flags() if spec.gpu_minors and image is not None else ()),
        *_tmpfs("/dev/shm", spec.shared_memory_bytes, "1777"),  # noqa: S108 - Ray's object store
        *_tmpfs("/tmp", TEMPORARY_BYTES, "1777"),  # noqa: S108 - the sandbox's own
        *("--dir", "/run", "--dir", "/home", "--dir", "/job"),
        *_runs_own_flags(spec, places),
        "--clearenv",
    ]
    for name, value in _environment(equipment, spec, image).items():
        flags += ["--setenv", name, value]
    for path, text in {**_ETC, **_gang_files(spec.gang)}.items():
        flags += ["--perms", "0644", "--ro-bind-data", str(open_data(path, text.encode())), path]
    flags += [
        *("--chdir", "/job/work"),
        # Without these two, / and /dev are tmpfs without a size: half of the host's memory to write into.
        *("--remount-ro", "/dev", "--remount-ro", "/"),
    ]
    python = equipment.python if image is None else image.python
    return [reach(equipment.bwrap), *flags, "--", python, "-P", "-m", spec.program, str(socket_fd)]


def _runs_own_flags(spec: SandboxSpec, places: Places) -> list[str]:
    """What is this run's alone: its code, inputs, packages, way out and disks."""
    reach = places.reach
    flags = ["--ro-bind", reach(spec.code), "/job/code"] if spec.code is not None else ["--dir", "/job/code"]
    flags += ["--ro-bind", reach(spec.inputs), "/job/inputs"] if spec.inputs else ["--dir", "/job/inputs"]
    if spec.environment is not None:
        flags += ["--ro-bind", reach(spec.environment), ENVIRONMENT]
    if spec.egress is not None:
        # Whether one may connect is said by the socket's own mode; a read-only mount does not forbid it.
        flags += ["--ro-bind", reach(spec.egress), EGRESS_SOCKET]
    for inside, size_bytes in spec.disk_sizes.items():
        disk = places.disk.get(inside)
        flags += ["--bind", disk, inside] if disk is not None else _tmpfs(inside, size_bytes, "0700")
    return flags


_ETC: Mapping[str, str] = {
    "/etc/passwd": f"job:x:{INSIDE_UID}:{INSIDE_UID}::/job/work:/bin/sh\n",
    "/etc/group": f"job:x:{INSIDE_UID}:\n",
    "/etc/hosts": "127.0.0.1 localhost job\n",  # gloo resolves its own host name
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def _gang_files(gang: Gang | None) -> dict[str, str]:
    if gang is None:
        return {}
    hosts = f"127.0.0.1 localhost\n{address_of(gang.place)} job\n"  # others must find what gloo says that it is
    return {GANG_FILE: gang_text(gang), "/etc/hosts": hosts}


def _environment(equipment: Equipment, spec: SandboxSpec, image: ImageRoot | None) -> dict[str, str]:
    own = [ENVIRONMENT] if spec.environment is not None else []
    packages = [*equipment.python_path, *own]
    if image is not None:
        packages += [*image.packages, *(inside for _host, inside in equipment.system_binds)]
    libraries = ["/opt/driver"] if image is not None and spec.gpu_minors else []
    libraries += [equipment.library_path] if equipment.library_path is not None else []
    variables = {
        "PATH": ":".join([*(f"{path}/bin" for path in own), "/opt/py/bin", "/usr/local/bin", "/usr/bin", "/bin"]),
        "HOME": "/job/work",
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "PYTHONPATH": ":".join([*packages, *equipment.site_path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        **gpu_variables(spec.cuda_devices, spec.rocm_devices),
    }
    if libraries:
        variables["LD_LIBRARY_PATH"] = ":".join(libraries)
    return variables


def system_flags() -> list[str]:
    """This machine's own programs and libraries, read-only, at the places where they are known."""
    flags = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib64", "lib32"):
        path = Path("/") / name
        if path.is_symlink():
            flags += ["--symlink", f"usr/{name}", f"/{name}"]
        elif path.is_dir():  # a system from before the merge
            flags += ["--ro-bind", f"/{name}", f"/{name}"]
    flags += ["--ro-bind-try", "/nix/store", "/nix/store", "--dir", "/etc"]
    for path_text in ("/etc/ld.so.cache", "/etc/ssl/certs", "/etc/alternatives"):
        flags += ["--ro-bind-try", path_text, path_text]
    return flags


def _tmpfs(path: str, size_bytes: int, mode: str) -> list[str]:
    return ["--perms", mode, "--size", str(max(size_bytes, 1 << 20)), "--tmpfs", path]
