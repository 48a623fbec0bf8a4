"""One hostile job alone in a real sandbox: every way out that is known, each by its name."""

import os
import secrets
import socket
import subprocess
from pathlib import Path

import pytest
import trio
from integration.attack_scene import an_attack, host_namespaces, need_known_numbers, what_came_of
from integration.attacks.door_list import CALLS, FAMILIES
from integration.sandbox_harness import WARM, a_room, need_sandbox, server_of_the_host, stands_ready

OWN = {"/job/work", "/job/outputs", "/tmp", "/dev/shm"}
SWITCHES = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug",
    "/proc/sys/vm/overcommit_memory",
    "/proc/sys/kernel/sysrq", "/proc/sys/kernel/ns_last_pid", "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/user/max_user_namespaces", "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger", "/proc/kcore",
    "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/acpi/wakeup", "/proc/driver", "/proc/timer_list",
    "/sys/kernel/uevent_helper", "/sys/kernel/debug", "/sys/kernel/tracing/trace_marker", "/sys/power/state",
    "/sys/fs/cgroup/release_agent", "/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/cgroup.procs",
    "/sys/kernel/mm/hugepages", "/sys/module", "/sys/class/tty", "/sys/devices/system/cpu/cpu0/online",
    "/etc/passwd", "/etc/hosts", "/etc/ld.so.cache", "/usr/bin/env", "/job/code/job.py",
    "/opt/hansa/hansa/proto/frames.py", "/opt/hansa/hansa/worker/runner.py",
)  # fmt: skip
NODES = (
    "kvm", "mem", "kmem", "port", "kmsg", "vda", "vda1", "sda", "nvme0n1", "loop0", "loop-control", "net/tun", "fuse",
    "userfaultfd", "vhost-net", "vhost-vsock", "vsock", "hpet", "rtc0", "cpu/0/msr", "mapper/control", "dri/card0",
    "nvidia0", "nvidiactl", "kfd", "uinput", "input/event0", "snd/timer", "watchdog", "ttyS0", "console", "mqueue",
    "hugepages", "btrfs-control", "autofs", "ppp", "rfkill", "uhid", "vfio/vfio", "nvram", "snapshot", "udmabuf",
)  # fmt: skip
SECRETS = (
    "/etc/shadow", "/etc/gshadow", "/etc/machine-id", "/etc/resolv.conf", "/etc/ssh", "/etc/sudoers", "/root", "/boot",
    "/var/log", "/var/lib", "/var/run", "/run/systemd", "/run/user", "/run/dbus", "/srv", "/mnt", "/media", "/sys",
    "/sys/class/net", "/sys/class/dmi/id/product_uuid", "/sys/firmware", "/sys/fs/cgroup", "/proc/kcore", "/proc/kmsg",
    "/proc/kpagecount", "/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo", "/proc/iomem.x", "/proc/1/mem.x",
    "/proc/sched_debug", "/proc/config.x",
)  # fmt: skip


@pytest.fixture(scope="module", params=["cold", "warm"])
def scene(tmp_path_factory, request):
    """What the attacks found, and what they were told of the host; in a new sandbox, and in one that was prepared."""
    need_sandbox()
    directory = tmp_path_factory.mktemp("alone")
    directory.chmod(0o755)
    secret = directory / "data" / "key"
    secret.parent.mkdir(mode=0o755)
    secret.write_text("secret")
    server = server_of_the_host()
    everywhere = server_of_the_host("0.0.0.0")
    abstract = f"hansa-test-{secrets.token_hex(8)}"
    listeners = [listening("\0" + abstract), listening(str(directory / "api.sock"))]
    facts = {
        "secrets": [str(secret), str(Path.home()), f"/proc/{os.getpid()}/environ", *SECRETS],
        "switches": [*SWITCHES, *(f"/dev/{name}" for name in NODES)],
        "places": [
            "/", "/usr", "/usr/bin", "/etc", "/dev", "/opt", "/opt/hansa/hansa/proto", "/opt/hansa/hansa/worker",
            "/job", "/job/code", "/job/inputs", "/run", "/home", "/proc", "/dev/pts", "/opt/site0",
            "/opt/site1", "/opt/py",
        ],
        "own": sorted(OWN),
        "host_pids": [1, *(pid for pid in host_pids() if pid > 5000)][-40:],
        "ports": [server.getsockname()[1], everywhere.getsockname()[1]],
        "addresses": host_addresses(),
        "abstract": [abstract],
        "sockets": [
            str(directory / "api.sock"), "/run/hansa/launcher.sock", "/var/run/docker.sock",
            "/run/dbus/system_bus_socket",
        ],
    }  # fmt: skip

    async def act():
        async with a_room(**(WARM if request.param == "warm" else {})) as room:
            order = an_attack(directory, ["kernel_doors", "rooms_edges"], facts)
            if request.param == "warm":
                await stands_ready(room, order)
            found = await what_came_of(room, order)
            assert room.executor.pool.begun == (request.param == "warm"), room.words
            return found

    try:
        yield trio.run(act), facts
    finally:
        for line in (server, everywhere, *listeners):
            line.close()


def listening(address):
    line = socket.socket(socket.AF_UNIX)
    line.bind(address)
    line.listen()
    return line


def host_pids():
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def host_addresses():
    """This machine's own, besides the loopback's."""
    said = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    return [address for address in said if "." in address] or ["192.0.2.2"]


@pytest.fixture(scope="module")
def found(scene):
    return scene[0]


# System calls and sockets.


@pytest.mark.parametrize("name", sorted(CALLS))
def test_a_system_call_that_opens_a_door_is_refused_by_the_filter(found, name):
    need_known_numbers()
    assert found[f"call_{name}"] == "EPERM"


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("form", ["socket", "pair"])
def test_a_family_of_sockets_that_no_namespace_holds_is_refused(found, family, form):
    need_known_numbers()
    assert found[f"{form}_{family}"] == "EAFNOSUPPORT"


def test_a_namespace_cannot_be_asked_for_where_the_filter_does_not_see_it(found):
    need_known_numbers()
    assert found["clone3_user"] == "ENOSYS"


def test_the_32_bit_gate_around_the_filter_is_deadly(found):
    need_known_numbers()
    assert found["legacy_call"] == "SIGSYS"


def test_raw_packets_and_new_interfaces_need_rights_that_are_gone(found):
    assert found["raw_socket"] == "EPERM"
    assert found["new_interface"] == "EPERM"


@pytest.mark.parametrize(
    "name",
    [
        "trace_another",
        "read_anothers_memory",
        "write_anothers_memory",
        "take_anothers_descriptor",
        "compare_with_another",
    ],
)
def test_system_calls_into_another_process_are_refused(found, name):
    need_known_numbers()
    assert found[name] == "EPERM"


def test_nothing_can_be_typed_into_a_terminal(found):
    assert found["type_into_a_terminal"] == ["EPERM", "EPERM"]
    # Nobody belongs to a terminal, nor to a session that began outside (it would show as 0).
    assert {(session == 0, terminal) for _name, _uid, session, terminal in found["processes"]} == {(False, 0)}


def test_no_program_gives_more_rights(found):
    assert found["programs_with_more_rights"] == "none"


def test_nobody_in_there_comes_before_the_hosts_processes(found):
    assert found["real_time_priority"] == "EPERM"
    assert found["higher_priority"] == "EACCES"
    assert found["never_to_be_chosen_when_memory_ends"] == "EACCES"


def test_a_crash_dumps_no_core_with_the_hosts_help(found):
    assert found["dump_core"] == "no core"


# Files, devices, mounts.


def test_nothing_of_the_host_is_read(found):
    assert {path for path, how in found["reads"].items() if how == "done"} == set()


def test_no_switch_of_the_kernel_and_no_program_is_opened_for_writing(found):
    assert {path for path, how in found["writes"].items() if how == "done"} == set()
    assert found["kernel_settings_that_can_be_written"] == []
    assert found["files_of_proc_that_can_be_written"] == []


def test_a_file_can_be_made_in_the_four_own_directories_only(found):
    assert {path for path, how in found["creates"].items() if how == "done"} == set()


def test_every_mount_but_the_jobs_own_is_read_only_and_none_brings_devices_or_rights(found):
    writable = {where for where, _type, options in found["mounts"] if "rw" in options}
    # /dev's own nodes and terminals are bound in one by one; /proc guards itself by who owns its files.
    assert {where for where in writable if not where.startswith("/dev/") and where != "/proc"} == OWN - {"/dev/shm"}
    nodes = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/pts"}
    assert {where for where in writable if where.startswith("/dev/")} <= nodes | {"/dev/shm"}
    for where, kind, options in found["mounts"]:
        assert "nosuid" in options, where
        assert "nodev" in options or where in nodes, where
        assert kind not in ("sysfs", "cgroup", "cgroup2", "debugfs", "tracefs", "bpf", "mqueue", "binfmt_misc"), where


def test_the_only_devices_are_those_that_hold_nothing(found):
    names = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    assert {path for path in found["devices"] if not path.startswith("/dev/pts/")} <= {f"/dev/{name}" for name in names}
    assert set(found["devices"].values()) == {"char"}


def test_no_device_can_be_made(found):
    assert set(found["makes_devices"].values()) == {"EPERM"}


# Processes.


def test_the_hosts_processes_are_neither_seen_nor_signalled(found):
    assert {how for pid, how in found["signals_the_host"].items() if pid != "1"} <= {"ESRCH"}
    names = {name for name, *_ in found["processes"]}
    assert {name for name in names if not name.startswith(("bwrap", "python", "ray", "gcs_server", "sleep"))} == set()
    assert {uid for _name, uid, *_ in found["processes"]} <= {1000, 65534}


def test_no_process_shows_a_way_out(found):
    assert found["ways_out_by_proc"] == {}


def test_nothing_that_is_open_in_there_leads_out(found):
    inside = ("socket:[", "pipe:[", "anon_inode:", "/dev/null", "/dev/shm/", "/dev/urandom", "/memfd:", "/tmp/",
              "/job/", "/opt/", "/usr/", "/proc/")  # fmt: skip
    assert [name for name in found["open_descriptors"] if not name.startswith(inside)] == []


@pytest.mark.parametrize("kind", ["user", "pid", "net", "ipc", "uts", "mnt", "cgroup"])
def test_it_has_a_namespace_of_its_own(found, kind):
    assert found["namespaces"][kind] != host_namespaces()[kind]


# The network.


def test_no_server_of_the_host_is_reached(found):
    assert set(found["loopback_servers"].values()) == {"ECONNREFUSED"}
    assert set(found["the_hosts_own_address"].values()) == {"ENETUNREACH"}
    assert set(found["abstract_sockets"].values()) == {"ECONNREFUSED"}
    assert set(found["sockets_by_path"].values()) == {"ENOENT"}


def test_nothing_outside_is_reached_by_any_protocol(found):
    assert found["the_metadata_service"] == "ENETUNREACH"
    assert found["datagrams"] == "ENETUNREACH"
    assert found["broadcast"] == "ENETUNREACH"
    assert found["other_addresses"] in ("ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT")
    assert found["names_of_this_machine"] == {"host": "job", "interfaces": ["lo"]}


# What is told without being asked.


def test_it_learns_no_user_of_this_machine(found):
    assert found["names_of_users"] == ["job"]


def test_no_process_in_there_carries_the_daemons_environment(found):
    both = [name for name in found["environment"] if name in os.environ and name not in EXPECTED_IN_BOTH]
    assert not [name for name in both if not name.startswith(SET_BY_LIBRARIES)], both


EXPECTED_IN_BOTH = {"PATH", "HOME", "LANG", "PWD", "TMPDIR", "LD_LIBRARY_PATH", "HOSTNAME"}
SET_BY_LIBRARIES = ("PYTHON", "RAY_", "OMP_", "LC_", "OPENBLAS_", "MKL_", "NUMEXPR_")
"""By what a test imports, also after this module was read."""
