"""A machine whose GPUs a test writes down, played by a stand-in for NVIDIA's library that the real bindings load."""

import atexit
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stand_in.c")


@functools.cache
def library_directory() -> Path:
    """Where the stand-in lies, built once; the test is skipped where nothing can build it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to build the stand-in for the NVIDIA driver's library")
    directory = Path(tempfile.mkdtemp(prefix="hansa-nvml-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    flags = ["-shared", "-fPIC", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1"]
    library = directory / "libnvidia-ml.so.1"
    subprocess.run([compiler, *flags, "-o", str(library), str(SOURCE)], check=True)
    return directory


class ScriptedGpus:
    """The machine: set a line to change it, whether or not a program is looking."""

    def __init__(self, directory: Path) -> None:
        """Two GPUs that are well, and the files below ``directory``."""
        self.directory = directory
        self.script = directory / "machine"
        self.log = directory / "log"
        self.proc = directory / "proc"
        self.proc.mkdir()
        self.dev = directory / "dev"
        self.dev.mkdir()
        self.log.touch()
        self.lines: dict[str, str] = {}
        self.set(gpus=2)

    @property
    def environment(self) -> dict[str, str]:
        """What a program must find in its environment to see this machine."""
        return {
            "LD_LIBRARY_PATH": str(library_directory()),
            "NVML_SCRIPT": str(self.script),
            "NVML_LOG": str(self.log),
        }

    def set(self, lines: dict[str, object] | None = None, **more: object) -> None:
        """Write these lines; ``None`` as a value takes a line away. The file changes in one instant."""
        for name, value in {**(lines or {}), **more}.items():
            self.lines.pop(name, None)
            if value is not None:
                self.lines[name] = str(value)
        new = self.script.with_suffix(".new")
        new.write_text("".join(f"{name} {value}\n" for name, value in self.lines.items()))
        new.rename(self.script)

    def put_on_bus(self, *names: str) -> None:
        """Let the kernel module list exactly these cards, as it does in /proc/driver/nvidia/gpus."""
        gpus = self.proc / "nvidia" / "gpus"
        shutil.rmtree(gpus, ignore_errors=True)
        for name in names:
            (gpus / name).mkdir(parents=True)

    def list_capabilities(self, text: str) -> None:
        """Let the kernel module list these MIG capabilities."""
        (self.proc / "nvidia-caps").mkdir(exist_ok=True)
        (self.proc / "nvidia-caps" / "mig-minors").write_text(text)

    def was_told(self) -> list[str]:
        """What the library was told to set, and when it was shut."""
        return self.log.read_text().splitlines()
