"""What a job brings beside its code, seen from inside a real sandbox: packages, an image, a way out, shared memory."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import ray
import trio
from integration.sandbox_harness import LIMITS, a_room, an_order, need_sandbox

from hansa.node.isolation.sandbox_equipment import find_equipment
from hansa.scheduler.run import RunFailed, RunFinished, RunOutput

LOOK = """
import json, os, socket, sys
from pathlib import Path

def look(ctx):
    import hansa.proto.frames, msgpack, numpy, only_in_the_environment, ray
    found = {
        "hansa": hansa.proto.frames.__file__, "ray": ray.__file__, "ray_version": ray.__version__,
        "msgpack": msgpack.__file__, "numpy": numpy.__file__, "numpy_version": numpy.__version__,
        "own": only_in_the_environment.__file__, "python": sys.executable, "path": os.environ["PATH"],
        "release": Path("/etc/image-release").exists(), "opt": sorted(os.listdir("/opt")),
        "inputs": Path("/job/inputs/deep/data.txt").read_text(),
    }
    shm = os.statvfs("/dev/shm")
    found["shm_bytes"] = shm.f_blocks * shm.f_frsize
    for name in ("/opt/environment/x", "/job/inputs/x", "/run/hansa/x", "/usr/x", "/etc/x"):
        try:
            Path(name).touch()
            found.setdefault("written", []).append(name)
        except OSError:
            pass
    if os.path.exists("/run/hansa/egress.sock"):
        with socket.socket(socket.AF_UNIX) as way_out:
            way_out.connect("/run/hansa/egress.sock")
            found["answer"] = way_out.recv(100).decode()
        try:
            os.unlink("/run/hansa/egress.sock")
            found.setdefault("written", []).append("the socket's name")
        except OSError:
            pass
    (ctx.outputs / "found.json").write_text(json.dumps(found))
    ctx.report(step=1)
"""


def look_inside(directory, **changes):
    """Run a job that brings an environment with a package, its own msgpack, and liars for Hansa and Ray."""
    environment, inputs = directory / "environment", directory / "inputs"
    for path, text in {
        environment / "only_in_the_environment.py": "",
        environment / "msgpack" / "__init__.py": MSGPACK,
        environment / "hansa" / "__init__.py": "raise ImportError('not the real one')",
        environment / "ray" / "__init__.py": "raise ImportError('not the real one')",
        inputs / "deep" / "data.txt": "the data",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    limits = dataclasses.replace(LIMITS, shared_memory_bytes=150 << 20)

    async def act():
        async with a_room() as room:
            order = an_order(
                directory, LOOK, entry="job.py:look", limits=limits, environment=environment, inputs=inputs, **changes
            )
            await room.executor.start(order)
            await room.wait_for((RunFinished, RunFailed), within_s=90)
            assert isinstance(room.events[-1], RunFinished), room.events[-5:]
            (output,) = [event for event in room.events if isinstance(event, RunOutput)]
            return json.loads(room.blobs.kept[output.blob.root])

    return trio.run(act)


# Ray needs a msgpack that works: this one says where the other lies and becomes it.
MSGPACK = """
import importlib.util, sys
for place in sys.path:
    if place.startswith("/opt/site"):
        spec = importlib.util.spec_from_file_location("msgpack", place + "/msgpack/__init__.py",
            submodule_search_locations=[place + "/msgpack"])
        real = importlib.util.module_from_spec(spec)
        sys.modules["msgpack"] = real
        spec.loader.exec_module(real)
        real.__file__ = "/opt/environment/msgpack/__init__.py"
        break
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a job sees that brings packages, inputs and a way out."""
    need_sandbox()
    directory = tmp_path_factory.mktemp("furnished")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "egress.sock"))
    (directory / "egress.sock").chmod(0o666)
    listener.listen()

    def answer():
        with listener.accept()[0] as connection:
            connection.sendall(b"the outside")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield look_inside(directory, egress=directory / "egress.sock")
    thread.join(5)
    listener.close()


def test_hansa_and_ray_are_the_providers_whatever_the_environment_holds(found):
    assert found["hansa"] == "/opt/hansa/hansa/proto/frames.py"
    assert found["ray"] == "/opt/hansa/ray/__init__.py"
    assert found["ray_version"] == ray.__version__


def test_other_packages_of_the_environment_come_before_the_providers(found):
    assert found["own"] == "/opt/environment/only_in_the_environment.py"
    assert found["msgpack"].startswith("/opt/environment/")
    assert found["numpy"].startswith("/opt/site")
    assert found["path"].split(":")[0] == "/opt/environment/bin"


def test_the_way_out_can_be_used_and_not_replaced(found):
    assert found["answer"] == "the outside"


def test_what_a_job_brings_is_read_only(found):
    assert "written" not in found
    assert found["inputs"] == "the data"


def test_shared_memory_has_the_size_that_was_asked_for(found):
    assert found["shm_bytes"] == 150 << 20


def an_image(directory):
    """A root file system with no more than what the interpreter and Ray load, and packages of its own."""
    equipment = find_equipment()
    root = directory / "image"
    site = root / "usr" / "local" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    site.mkdir(parents=True)
    (site / "numpy").symlink_to("/usr/lib/own-numpy")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyi")
    shutil.copytree(Path(np.__file__).parent, root / "usr/lib/own-numpy", ignore=ignored)
    libs = Path(np.__file__).parent.with_name("numpy.libs")
    if libs.is_dir():
        shutil.copytree(libs, root / "usr/lib/numpy.libs")
        (site / "numpy.libs").symlink_to("/usr/lib/numpy.libs")
    programs = [Path(sys.executable).resolve(), Path("/bin/sh").resolve(), *Path(ray.__file__).parent.rglob("*.so")]
    programs += Path(sys.base_prefix).glob("lib/python3.*/lib-dynload/*.so")
    programs += [path for path in Path(ray.__file__).parent.glob("core/src/ray/*/*") if os.access(path, os.X_OK)]
    if not equipment.is_movable:
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        skipped = shutil.ignore_patterns("test", "__pycache__", "config-*", "ensurepip", "idlelib")
        shutil.copytree(Path(sys.base_prefix, "lib", name), root / "usr/lib" / name, ignore=skipped, symlinks=True)
        (root / "usr/bin").mkdir(exist_ok=True)
        shutil.copy2(sys.executable, root / "usr/bin" / name)
    for library in libraries_of(programs):
        target = root / str(library).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, target)
    for name in ("bin", "etc", "opt/tool", "proc", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2("/bin/sh", root / "bin/sh")
    (root / "etc/image-release").write_text("an image")
    (root / "etc/passwd").write_text("root::0:0::/:/bin/sh")
    (root / "var").symlink_to("/does/not/exist")
    return root


def libraries_of(programs):
    found = set()
    for program in programs:
        told = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=False).stdout
        for line in told.splitlines():
            for word in line.replace("=>", " ").split():
                if word.startswith("/") and Path(word).is_file() and not word.startswith(sys.base_prefix + "/lib/lib"):
                    found.add(Path(word))
    return {
        path
        for path in found
        if Path(path).is_relative_to("/lib") or Path(path).is_relative_to("/usr") or Path(path).is_relative_to("/lib64")
    }


def test_a_run_on_an_image_sees_its_files_and_packages_and_not_this_machines(tmp_path):
    need_sandbox()
    seen = look_inside(tmp_path, image=an_image(tmp_path))
    assert seen["release"]
    assert "written" not in seen
    assert "tool" in seen["opt"]
    assert seen["ray"] == "/opt/hansa/ray/__init__.py"
    assert seen["numpy"].startswith("/usr/local/lib/")
    assert seen["own"] == "/opt/environment/only_in_the_environment.py"
