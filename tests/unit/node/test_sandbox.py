"""What can be said of a sandbox without starting one; the rest is in tests/integration."""

import dataclasses
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.node.isolation import process_tree, sandbox_equipment, sandbox_image
from hansa.node.isolation.cgroups import GroupLimits, GroupV2, make_group
from hansa.node.isolation.confine import hold, stage, staged
from hansa.node.isolation.launcher_protocol import Ended, Kill, Refused, Start, Started, pack, receive, send, unpack
from hansa.node.isolation.sandbox import SandboxSpec, build_command
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_equipment
from hansa.node.isolation.sandbox_image import find_inside, furnish_from_image
from hansa.node.isolation.seccomp import ARCHITECTURES, DENIED, UNCOUNTED, build_filter
from hansa.node.runs.executor_end import printable
from hansa.proto.errors import Malformed

SPEC = SandboxSpec(
    program="hansa.worker.runner",
    code="/srv/code",
    inputs=None,
    memory_bytes=1 << 30,
    cpu_millis=1500,
    processes=600,
    scratch_bytes=1 << 26,
    output_bytes=1 << 20,
    gpu_minors=(),
)


def command_for(spec):
    return build_command(find_equipment(), spec, 7, lambda _name, _data: 9)


def test_every_namespace_is_unshared_and_everything_ends_with_its_parent():
    command = command_for(SPEC)
    for flag in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{flag}" in command
    assert {"--die-with-parent", "--new-session", "--disable-userns", "--clearenv"} <= set(command)
    assert command[command.index("--cap-drop") + 1] == "ALL"


def test_nothing_of_the_host_is_bound_writable():
    assert "--bind" not in command_for(dataclasses.replace(SPEC, inputs="/srv/inputs"))


def test_a_package_that_fails_where_amds_library_is_not_is_kept_from_ray(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    (site / "amdsmi").mkdir(parents=True)
    sites = sandbox_equipment._find_sites()
    monkeypatch.setattr(sandbox_equipment, "_find_sites", lambda: {**sites, "numpy": str(site)})
    assert [inside.rpartition("/")[2] for inside in find_equipment().hidden].count("amdsmi") == 1


def test_slices_and_gpus_of_amd_have_their_own_nodes_and_their_names_in_the_environment():
    slices = ("/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13")
    sliced = command_for(dataclasses.replace(SPEC, gpu_minors=(0,), device_nodes=slices, cuda_devices=("MIG-1",)))
    nodes = [sliced[at + 1] for at, flag in enumerate(sliced) if flag == "--dev-bind"]
    assert nodes == ["/dev/nvidiactl", "/dev/nvidia0", *slices]
    variables = {sliced[at + 1]: sliced[at + 2] for at, flag in enumerate(sliced) if flag == "--setenv"}
    assert variables["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    radeon = ("/dev/dri/renderD128", "/dev/kfd")
    other = command_for(dataclasses.replace(SPEC, device_nodes=radeon, rocm_devices=("GPU-a", "GPU-b")))
    assert [other[at + 1] for at, flag in enumerate(other) if flag == "--dev-bind"] == list(radeon)
    variables = {other[at + 1]: other[at + 2] for at, flag in enumerate(other) if flag == "--setenv"}
    assert variables["ROCR_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    assert "CUDA_VISIBLE_DEVICES" not in variables
    assert not [word for word in command_for(SPEC) if "VISIBLE_DEVICES" in word or word.startswith("/sys")]


def test_only_the_leased_devices_are_there_and_after_dev():
    command = command_for(dataclasses.replace(SPEC, gpu_minors=(3,)))
    nodes = [command[at + 1] for at, flag in enumerate(command) if flag == "--dev-bind"]
    assert nodes == ["/dev/nvidiactl", "/dev/nvidia3"]
    assert command.index("--dev-bind") > command.index("--dev")
    assert "--dev-bind" not in command_for(SPEC)


def test_every_tmpfs_has_a_size_but_the_empty_covers():
    command = command_for(SPEC)
    for at, flag in enumerate(command):
        if flag == "--tmpfs" and not command[at + 1].startswith("/opt/"):
            assert command[at - 2] == "--size", command[at + 1]


def test_a_job_that_brings_nothing_gets_nothing():
    assert not {"/opt/environment", "/run/hansa/egress.sock", "/opt/driver"} & set(command_for(SPEC))


def test_a_job_with_gpus_on_an_image_gets_the_drivers_libraries_from_this_machine(tmp_path, monkeypatch):
    image, driver = tmp_path / "image", tmp_path / "driver"
    for path in (image / "lib64/ld-linux-x86-64.so.2", image / "lib/ld-linux-aarch64.so.1", image / "usr/x"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (image / "usr/bin").mkdir()
    (image / "usr/bin" / version).touch(mode=0o755)
    driver.mkdir()
    for name in ("libcuda.so.1", "libnvidia-gpucomp.so.570.1", "libnvidia-ml.so.1", "libGL.so.1"):
        (driver / name).touch()
    monkeypatch.setattr(sandbox_image, "DRIVER_DIRECTORIES", (str(driver),))
    command = command_for(dataclasses.replace(SPEC, image=str(image), gpu_minors=(0,)))
    shown = {command[at + 2] for at, flag in enumerate(command) if flag == "--ro-bind-try"}
    assert {path for path in shown if path.startswith("/opt/driver/")} == {
        "/opt/driver/libcuda.so.1", "/opt/driver/libnvidia-gpucomp.so.570.1", "/opt/driver/libnvidia-ml.so.1",
    }  # fmt: skip
    libraries = command[command.index("LD_LIBRARY_PATH") + 1]
    assert libraries.startswith("/opt/driver")
    without = command_for(dataclasses.replace(SPEC, image=str(image)))
    assert not any(word.startswith("/opt/driver") for word in without)


def an_image(directory):
    loader = directory / "lib64/ld-linux-x86-64.so.2"
    for path in (loader, directory / "lib/ld-linux-aarch64.so.1", directory / "srv/data"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return directory


def test_of_an_image_everything_is_shown_but_what_every_sandbox_has_of_its_own(tmp_path):
    image = an_image(tmp_path)
    for name in ("proc", "dev", "job", "run", "tmp", "etc", "opt/hansa", "opt/site0", "opt/tool"):
        (image / name).mkdir(parents=True)
    for name in ("etc/passwd", "etc/hosts", "etc/os-release"):
        (image / name).touch()
    (image / "home").symlink_to("/var/home")
    equipment = dataclasses.replace(find_equipment(), is_movable=True)
    command = build_command(equipment, dataclasses.replace(SPEC, image=str(image)), 7, lambda _name, _data: 9)
    assert "/usr" not in [command[at + 1] for at, flag in enumerate(command) if flag == "--ro-bind"]
    shown = {command[at + 1] for at, word in enumerate(command) if word.startswith(str(image))}
    assert shown == {"/lib", "/lib64", "/srv", "/etc/os-release", "/opt/tool"}
    at = command.index("--symlink")
    assert command[at + 1 : at + 3] == ["/var/home", "/home"]


@pytest.mark.parametrize("directory", ["", "etc", "opt"])
def test_an_image_of_more_entries_than_are_bound_one_by_one_is_refused_in_words(tmp_path, monkeypatch, directory):
    """Each costs bubblewrap flags of its own, and a stranger made the image."""
    image = an_image(tmp_path)
    (image / directory).mkdir(exist_ok=True)
    equipment = dataclasses.replace(find_equipment(), is_movable=True)
    missing = 8 - len(list((image / directory).iterdir()))
    for number in range(missing):
        (image / directory / f"entry{number}").touch()
    monkeypatch.setattr(sandbox_image, "MOST_ENTRIES", 8)
    shown = furnish_from_image(equipment, str(image), "/image").flags
    assert f"/image/{directory}/entry0".replace("//", "/") in shown
    (image / directory / "one-more").touch()
    with pytest.raises(SandboxUnavailable, match=f"more than 8 entries in /{directory}$"):
        furnish_from_image(equipment, str(image), "/image")


def test_an_image_on_which_nothing_can_run_the_runner_is_refused_in_words(tmp_path):
    spec, equipment = dataclasses.replace(SPEC, image=str(tmp_path)), find_equipment()
    for is_movable, words in ((True, "no glibc"), (False, "the image has no python3")):
        with pytest.raises(SandboxUnavailable, match=words):
            build_command(dataclasses.replace(equipment, is_movable=is_movable), spec, 7, lambda _name, _data: 9)


def test_an_images_own_python_of_our_version_is_used_where_ours_cannot_leave_its_system(tmp_path):
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin" / name).touch(mode=0o755)
    (tmp_path / "usr/local/lib" / name / "site-packages").mkdir(parents=True)
    equipment = dataclasses.replace(find_equipment(), is_movable=False, system_binds=(("/usr/p", "/opt/site7"),))
    command = build_command(equipment, dataclasses.replace(SPEC, image=str(tmp_path)), 7, lambda _name, _data: 9)
    assert command[command.index("--") + 1] == f"/usr/local/bin/{name}"
    path = command[command.index("PYTHONPATH") + 1].split(":")
    assert path[:3] == ["/opt/hansa", f"/usr/local/lib/{name}/site-packages", "/opt/site7"]


def test_links_in_an_image_never_lead_out_of_it(tmp_path):
    root = tmp_path / "root"
    (root / "usr/lib64").mkdir(parents=True)
    (root / "usr/lib64/loader").touch()
    (root / "lib64").symlink_to("/usr/lib64")
    (root / "up").symlink_to("../../../../../etc/passwd")
    (root / "loop").symlink_to("loop")
    (root / "deep").symlink_to("lib64/../lib64/./loader")
    assert find_inside(str(root), "/lib64/loader") == f"{root}/usr/lib64/loader"
    assert find_inside(str(root), "/deep") == f"{root}/usr/lib64/loader"
    assert find_inside(str(root), "/up") is None
    assert find_inside(str(root), "/loop") is None


def test_what_was_held_is_what_is_shown_or_nothing(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "link").symlink_to("one")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        hold(str(tmp_path / "link"))
    with pytest.raises(NotADirectoryError):
        hold(str(tmp_path / "file"))
    with pytest.raises(PermissionError, match="does not belong"):
        hold(str(tmp_path / "one"), os.getuid() + 1)
    os.close(hold(str(tmp_path / "one"), os.getuid()))
    if os.getuid() != 0:
        pytest.skip("only a root launcher binds what it holds")
    held = hold(str(tmp_path / "one"))
    (tmp_path / "one").rename(tmp_path / "other")
    (tmp_path / "one").mkdir()
    out, into = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            stage([str(tmp_path / "one")], {str(tmp_path / "one"): held})
        except OSError as error:
            os.write(into, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(into)
    assert "exchanged" in os.read(out, 1000).decode()
    os.close(out)
    os.close(held)


def interpret(program, number, arguments=(0, 0), *, architecture):
    """Run a filter as the kernel would, over a call; gives the action and its data."""
    padded = (*arguments, *([0] * (6 - len(arguments))))
    data = struct.pack("<IIQ6Q", number, architecture, 0, *padded)
    operations = list(struct.iter_unpack("<HBBI", program))
    at = value = 0
    while True:
        code, if_true, if_false, operand = operations[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, operand)
            case 0x06:
                return operand & 0xFFFF0000, operand & 0xFFFF
            case 0x15 | 0x35 | 0x45:
                hit = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[code]
                at += if_true if hit else if_false


ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000


@pytest.mark.parametrize("machine", list(ARCHITECTURES))
def test_the_filter_refuses_what_it_names_and_allows_the_rest(machine):
    column = list(ARCHITECTURES).index(machine)
    program, architecture = build_filter(machine), ARCHITECTURES[machine]
    denied = {numbers[column] for numbers in DENIED.values()} - {None}
    special = {pair[column] for pair in ((56, 220), (41, 198), (53, 199), (16, 29), (435, 435))}
    for number in range(480):
        action = interpret(program, number, architecture=architecture)
        if number in denied:
            assert action == (ERRNO, errno.EPERM), number
        elif number not in special:
            assert action == (ALLOW, 0), number


@pytest.mark.parametrize("machine", list(ARCHITECTURES))
def test_the_filter_looks_at_arguments(machine):
    column = list(ARCHITECTURES).index(machine)
    program, architecture = build_filter(machine), ARCHITECTURES[machine]

    def act(pair, *arguments):
        return interpret(program, pair[column], arguments, architecture=architecture)

    clone, make_socket, ioctl, clone3 = (56, 220), (41, 198), (16, 29), (435, 435)
    assert act(clone, 0x11) == (ALLOW, 0)
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert act(clone, flag | 0x11) == (ERRNO, errno.EPERM)
    assert act(clone3, 0) == (ERRNO, errno.ENOSYS)
    for call in (make_socket, (53, 199)):
        families = {family for family in range(50) if act(call, family) == (ALLOW, 0)}
        assert families == {socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16}
        assert act(call, 40) == (ERRNO, errno.EAFNOSUPPORT)
    assert act(ioctl, 0, 0x5412) == (ERRNO, errno.EPERM)
    assert act(ioctl, 0, 0xFFFFFFFF_00005412) == (ERRNO, errno.EPERM), "the kernel looks at the low half only"
    assert act(ioctl, 0, 0x5401) == (ALLOW, 0)
    options = (54, 208)
    assert act(options, 5, socket.SOL_SOCKET, socket.SO_LINGER) == (ERRNO, 0), "it is told yes"
    assert act(options, 5, 0xFFFFFFFF_00000001, 0xFFFFFFFF_0000000D) == (ERRNO, 0), "the kernel looks at the low half"
    assert act(options, 5, socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (ALLOW, 0)
    assert act(options, 5, socket.IPPROTO_TCP, socket.SO_LINGER) == (ALLOW, 0)


@pytest.mark.parametrize("machine", list(ARCHITECTURES))
def test_memory_that_nobody_could_count_is_refused_where_there_are_no_groups(machine):
    column = list(ARCHITECTURES).index(machine)
    # System V's queues hold half a gibibyte that belongs to no process, its segments and nameless files far more.
    assert set(UNCOUNTED) == {"memfd_create", "memfd_secret", "shmget", "msgget", "semget"}
    for number in (numbers[column] for numbers in UNCOUNTED.values()):
        outcomes = [
            interpret(build_filter(machine, uncounted=uncounted), number, architecture=ARCHITECTURES[machine])
            for uncounted in (True, False)
        ]
        assert outcomes == [(ALLOW, 0), (ERRNO, errno.EPERM)]


def test_the_filter_knows_one_architecture_and_no_x32():
    program = build_filter("x86_64")
    assert interpret(program, 1, architecture=0x40000003)[0] == KILL
    assert interpret(program, 0x40000001, architecture=ARCHITECTURES["x86_64"]) == (ERRNO, errno.EPERM)


def test_a_machine_without_a_table_gets_no_filter():
    with pytest.raises(KeyError):
        build_filter("riscv64")


@pytest.mark.parametrize(
    "message",
    [
        Start(run=b"r", spec=SPEC),
        Kill(run=b"r"),
        Started(run=b"r", pid=4, limits={"memory": "cgroup v1"}),
        Refused(run=b"r", reason="no"),
        Ended(run=b"r", status=-9, memory_kills=1, peak_bytes=5, words="w"),
    ],
)
def test_launcher_messages_come_out_as_they_went_in(message):
    assert unpack(pack(message)) == message


@pytest.mark.parametrize(
    "change",
    [
        {"code": "relative/path"},
        {"code": "/a\0b"},
        {"inputs": 5},
        {"program": "os"},
        {"memory_bytes": 0},
        {"processes": -1},
        {"cpu_millis": True},
        {"gpu_minors": (-1,)},
        {"gpu_minors": ("0 --bind / /",)},
        {"device_nodes": ("/dev/sda",)},
        {"device_nodes": ("/dev/dri/card0",)},
        {"device_nodes": ("/dev/nvidia-modeset",)},
        {"device_nodes": ("/dev/nvidia-caps/../sda",)},
        {"device_nodes": ("/dev/kfd\n",)},
        {"device_nodes": (7,)},
        {"cuda_devices": ("0",)},
        {"cuda_devices": ("GPU-1,GPU-2",)},
        {"rocm_devices": ("MIG-1",)},
        {"environment": "packages"},
        {"image": "/image/../etc"},
        {"egress": "/a\0b"},
        {"egress": 7},
        {"inputs": ""},
        {"shared_memory_bytes": 0},
        {"shared_memory_bytes": "1"},
        {"tier": "none"},
        {"tier": ["sandbox"]},
    ],
)
def test_a_request_out_of_range_is_refused(change):
    with pytest.raises(Malformed):
        unpack(pack(Start(run=b"r", spec=dataclasses.replace(SPEC, **change))))


@pytest.mark.parametrize(
    "message",
    [
        Refused(run=b"r", reason=5),
        Refused(run=b"r", reason=None),
        Started(run=b"r", pid=1, limits={"memory": 5}),
        Started(run=b"r", pid=1, limits=["memory"]),
        Ended(run=b"r", status=0, memory_kills=0, peak_bytes=0, words={"x": "y"}),
    ],
)
def test_what_a_launcher_says_in_words_is_words(message):
    """It may stand on another machine."""
    with pytest.raises(Malformed):
        unpack(pack(message))


@given(st.binary(max_size=100))
def test_any_packet_is_a_message_or_malformed(packet):
    try:
        unpack(packet)
    except Malformed:
        return


def test_descriptors_travel_beside_messages():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    with ours, theirs:
        send(ours, Kill(run=b"r"), (writing,))
        message, (received,) = receive(theirs)
        os.write(received, b"through")
        assert os.read(reading, 10) == b"through"
        assert message == Kill(run=b"r")
        for descriptor in (reading, writing, received):
            os.close(descriptor)
        ours.close()
        assert receive(theirs) == (None, [])


@pytest.mark.parametrize(
    "packet", [pack(Start(run=b"r", spec=dataclasses.replace(SPEC, scratch_bytes=0))), b"nothing", b"\xc1"]
)
def test_what_comes_beside_a_packet_that_is_refused_is_closed(packet):
    """Each such order left four of them open in the launcher."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe()
    with ours, theirs:
        socket.send_fds(ours, [packet], [writing] * 4)
        os.close(writing)
        with pytest.raises(Malformed):
            receive(theirs)
        os.set_blocking(reading, False)
        assert os.read(reading, 1) == b"", "somebody can still write to it"
    os.close(reading)


def test_staged_paths_follow_their_source_and_others_stay():
    place = staged(["/root/env", "/data/code"])
    assert place("/root/env/bin/x") == "/mnt/0/bin/x"
    assert place("/data/code") == "/mnt/1"
    assert place("/root/environment") == "/root/environment"


def test_version_2_limits_are_written_where_the_kernel_reads_them(tmp_path):
    # A plain directory stands in for the hierarchy: the files and values are what is tested, not the kernel.
    group = GroupV2(tmp_path / "hansa-1", GroupLimits(memory_bytes=1 << 30, cpu_millis=1500, processes=600))
    written = {path.name: path.read_text() for path in (tmp_path / "hansa-1").iterdir()}
    assert written == {
        "memory.max": str(1 << 30), "memory.swap.max": "0", "memory.oom.group": "1", "pids.max": "600",
        "cpu.max": "150000 100000",
    }  # fmt: skip
    group.freeze(frozen=True)
    group.kill()
    assert (tmp_path / "hansa-1" / "cgroup.freeze").read_text() == "1"
    assert (tmp_path / "hansa-1" / "cgroup.kill").read_text() == "1"
    assert group.peak_bytes() == 0


def test_where_no_group_can_be_made_there_is_none(tmp_path):
    assert make_group("1-1", GroupLimits(memory_bytes=1, cpu_millis=1, processes=1), root=tmp_path / "absent") is None


BUSY = "while :; do :; done"


def test_a_real_group_is_made_held_and_removed():
    group = make_group(f"{os.getpid()}-test", GroupLimits(memory_bytes=1 << 28, cpu_millis=500, processes=50))
    if group is None:
        pytest.skip("this user may make no control groups")
    process = subprocess.Popen(["/bin/sh", "-c", BUSY])
    try:
        group.add(process.pid)
        assert computes(process.pid)
        group.freeze(frozen=True)
        time.sleep(0.1)
        assert not computes(process.pid)
        group.kill()
        assert process.wait(5) == -9
        assert group.memory_kills() == 0
        assert group.peak_bytes() >= 0
    finally:
        process.kill()
        process.wait()
        group.remove()


def test_what_the_host_keeps_in_its_own_directories_is_not_a_sandboxs_memory():
    """Before a sandbox is furnished, its processes still see the host's /tmp, which may hold many gigabytes."""
    used = process_tree.memory_bytes([os.getpid()])
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * process_tree.PAGE_BYTES
    assert 0 < used <= resident * 1.05
    assert process_tree.memory_bytes([os.getpid()], enough_bytes=1 << 40) == pytest.approx(resident, rel=0.05)


@pytest.mark.parametrize("rollup", ["smaps_rollup", "absent"])
def test_pages_that_processes_share_are_counted_once(monkeypatch, rollup):
    if rollup == "absent":  # as on kernels that have no such file
        real = Path.read_text

        def read(path):
            return real(path.with_name("absent") if path.name == "smaps_rollup" else path)

        monkeypatch.setattr(Path, "read_text", read)
    size = 64 << 20
    program = (
        "import mmap, os, sys, time\n"
        f"shared = mmap.mmap(-1, {size})\n"
        f"shared.write(bytes({size}))\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        f"        sum(shared[at] for at in range(0, {size}, 4096))\n"
        "        break\n"
        "print('x', end='', flush=True)\n"
        "time.sleep(20)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.read(1) == b"x"
        pids = process_tree.descendants(process.pid)
        used, most = process_tree.memory_bytes(pids), process_tree.memory_bytes(pids, enough_bytes=1 << 40)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    assert len(pids) == 4
    assert most > 4 * size
    assert used < 2 * size
    if rollup == "smaps_rollup":
        assert used > size


def test_a_tree_is_counted_and_paused_without_control_groups():
    process = subprocess.Popen(["/bin/sh", "-c", f"({BUSY}) & wait"])
    deadline = time.monotonic() + 5
    while len(pids := process_tree.descendants(process.pid)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        assert len(pids) == 2
        assert process_tree.thread_count(pids) == 2
        assert process_tree.memory_bytes(pids[:1]) > 10_000
        process_tree.set_paused(process.pid, paused=True)
        time.sleep(0.05)
        assert not computes(pids[1])
        process_tree.set_paused(process.pid, paused=False)
        assert computes(pids[1])
    finally:
        for pid in reversed(pids):
            os.kill(pid, 9)
        process.wait()


def computes(pid):
    """Whether a process gets CPU time; on a busy machine it may take a while until it does."""
    before = cpu_ticks(pid)
    for _ in range(20):
        time.sleep(0.02)
        if cpu_ticks(pid) > before:
            return True
    return False


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@given(st.text())
def test_what_is_shown_cannot_steer_a_terminal(text):
    assert not any(c in printable(text) for c in "\x1b\x07\x08\r\x9b\u202e\u2066")
    assert printable("plain text, ümläut 漢字\n\t") == "plain text, ümläut 漢字\n\t"
