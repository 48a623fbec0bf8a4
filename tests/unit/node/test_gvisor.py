"""What gVisor is given, read from the bundle alone."""

import dataclasses
import json

import pytest
from unit.node.test_sandbox import SPEC

from hansa.node.isolation import gvisor
from hansa.node.isolation.gvisor import furnish_gvisor, run_command, write_bundle
from hansa.node.isolation.sandbox import Places
from hansa.node.isolation.sandbox_equipment import SandboxUnavailable, find_equipment

GVISOR = dataclasses.replace(SPEC, tier="gvisor", inputs="/srv/inputs", environment="/srv/environment")
DISKS = Places(disk={"/job/work": "/mnt/disk-work/files", "/job/outputs": "/mnt/disk-outputs/files"})


def mounts_of(places):
    return {mount["destination"]: mount for mount in furnish_gvisor(find_equipment(), GVISOR, places).mounts}


def test_only_the_jobs_own_directories_can_be_written_to():
    mounts = mounts_of(DISKS)
    writable = {path for path, mount in mounts.items() if mount["type"] == "bind" and "ro" not in mount["options"]}
    assert writable == {"/job/work", "/job/outputs"}
    for path in ("/usr", "/job/code", "/job/inputs", "/opt/environment", "/opt/hansa/ray"):
        assert "ro" in mounts[path]["options"], path


def test_every_mount_gives_no_rights_and_every_tmpfs_has_a_size():
    for places in (DISKS, Places()):
        for path, mount in mounts_of(places).items():
            assert {"nosuid", "nodev"} <= set(mount["options"]), path
            if mount["type"] == "tmpfs" and not path.startswith("/opt/"):
                assert any(option.startswith("size=") for option in mount["options"]), path
    assert "size=67108864" in mounts_of(Places())["/job/work"]["options"]


def test_nothing_of_this_machines_kernel_is_bound():
    assert {path for path in mounts_of(DISKS) if path.startswith(("/proc/", "/sys", "/dev/"))} == {"/dev/shm"}


def test_what_is_written_down_gives_the_job_no_capability_and_a_root_that_is_read_only(tmp_path):
    bundle = furnish_gvisor(find_equipment(), dataclasses.replace(GVISOR, inputs=None, environment=None), Places())
    write_bundle(bundle, tmp_path, None)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["root"] == {"path": str(tmp_path / "root"), "readonly": True}
    assert set(map(tuple, written["process"]["capabilities"].values())) == {()}
    assert written["process"]["noNewPrivileges"]
    assert written["process"]["args"][-3:] == ["-m", "hansa.worker.runner", "0"]
    assert {kind["type"] for kind in written["linux"]["namespaces"]} == {"pid", "network", "ipc", "uts", "mount"}
    assert (tmp_path / "root/etc/hosts").read_text().startswith("127.0.0.1 localhost")
    for path in ("job/code", "job/work", "tmp", "proc", "dev/shm", "usr"):
        assert (tmp_path / "root" / path).exists(), path


@pytest.mark.parametrize("change", [{"gpu_minors": (1,)}, {"device_nodes": ("/dev/kfd",)}])
def test_a_gpu_is_refused(change):
    with pytest.raises(SandboxUnavailable, match="no GPUs"):
        furnish_gvisor(find_equipment(), dataclasses.replace(GVISOR, **change), Places())


def test_a_way_out_is_refused_by_a_program_that_cannot_be_told_of_one(monkeypatch):
    flags = {"overlay2"}
    monkeypatch.setattr(gvisor, "find_runsc", lambda: "/opt/runsc")
    monkeypatch.setattr(gvisor, "_known_flags", lambda _program: frozenset(flags))
    assert "--overlay2=none" in run_command("/bundle", with_egress=False)
    with pytest.raises(SandboxUnavailable, match="sockets of outside"):
        run_command("/bundle", with_egress=True)
    flags.add("host-uds")
    assert "--host-uds=open" in run_command("/bundle", with_egress=True)
    assert "--host-uds=open" not in run_command("/bundle", with_egress=False)
