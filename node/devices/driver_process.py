"""The GPU drivers' libraries in a process of their own, since they may hang or crash in any call and a daemon may not.

The daemon writes a line, what it wants, and gets a line back, a report. A process that does not answer in time is
killed and the next question starts another; a process whose daemon is gone, however it went, sees its input end, gives
the cards their own power limits back, and ends.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hansa.node.devices.gpus import GpuReport, joined, report_from_json, report_to_json

WAKING_S = 60.0
"""A driver that has to wake its cards first takes one to three seconds for each; one that is well, milliseconds."""
LONGEST_LINE_BYTES = 4 << 20
PROC = Path("/proc/driver")
DEV = Path("/dev")


class DriverSilent(Exception):
    """No report was to be had, and why, in words for the owner."""


class DriverProcess:
    """Asks, and starts the process where it is not there. For one thread at a time; no call outlasts its limit."""

    def __init__(self, *, proc: Path = PROC, dev: Path = DEV, environment: Mapping[str, str] | None = None) -> None:
        """Look below ``proc`` for what kernel modules tell, in ``dev`` for nodes; ``environment`` is added to ours."""
        self._arguments = [sys.executable, "-P", "-m", "hansa.node.devices.driver_process", str(proc), str(dev)]
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._leftover = b""

    def ask(self, power_limits_mw: Mapping[str, int] | None = None, *, timeout_s: float = WAKING_S) -> GpuReport:
        """What there is and how it does.

        Args:
            power_limits_mw: by a card's uuid, the limit that its owner wants for as long as this process lives.
            timeout_s: how long to wait.

        Raises:
            DriverSilent: nothing came, or nothing that was a report.
        """
        deadline_s = time.monotonic() + timeout_s
        try:
            process = self._process or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps({"power_limits_mw": dict(power_limits_mw or {})}).encode() + b"\n")
            process.stdin.flush()
            return report_from_json(json.loads(self._line(process, deadline_s)))
        except DriverSilent:
            self.end()
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as fault:
            words = self._how_it_ended()
            self.end()
            raise DriverSilent(words or f"the driver's process said no report: {type(fault).__name__}") from fault

    def close(self, timeout_s: float = 5.0) -> None:
        """Have it give the cards their power limits back and end."""
        process = self._process
        if process is not None and process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
        self.end()

    def end(self) -> None:
        """End it at once. One that hangs inside the kernel outlives even that, and is not waited for."""
        process, self._process, self._leftover = self._process, None, b""
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            self._arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            cwd="/",
            # A terminal's Ctrl-C goes to the whole process group; this one ends when its input does.
            start_new_session=True,
        )
        return self._process

    def _line(self, process: subprocess.Popen[bytes], deadline_s: float) -> bytes:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._leftover:
                left_s = deadline_s - time.monotonic()
                if left_s <= 0 or not selector.select(left_s):
                    raise DriverSilent("the driver does not answer: a call into it hangs")
                data = os.read(process.stdout.fileno(), 1 << 16)
                self._leftover += data
                if not data or len(self._leftover) > LONGEST_LINE_BYTES:
                    raise DriverSilent(self._how_it_ended() or "the driver's process said too much")
        line, _, self._leftover = self._leftover.partition(b"\n")
        return line

    def _how_it_ended(self) -> str:
        if self._process is None:
            return ""
        with suppress(subprocess.TimeoutExpired):
            status = self._process.wait(1.0)
            if status < 0:
                return f"the driver's library crashed ({signal.Signals(-status).name})"
            return f"the driver's library ended its process (status {status})"
        return ""


def ask_once(*, proc: Path = PROC, timeout_s: float = WAKING_S) -> GpuReport:
    """What the drivers say now; a driver that does not answer has no GPUs, and the report's note says so."""
    process = DriverProcess(proc=proc)
    try:
        return process.ask(timeout_s=timeout_s)
    except DriverSilent as silence:
        return GpuReport(gpus=(), driver_version="", notes=(str(silence),))
    finally:
        process.close()


def _serve(proc: Path, dev: Path) -> None:
    from hansa.node.devices.amd import AmdDriver  # noqa: PLC0415  # only this process may come near a driver's library
    from hansa.node.devices.nvml import NvidiaDriver  # noqa: PLC0415

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no report
    nvidia, amd = NvidiaDriver(proc, dev), AmdDriver()
    try:
        for line in sys.stdin.buffer:
            wanted: dict[str, Any] = json.loads(line)
            report = joined((nvidia.read(wanted["power_limits_mw"]), amd.read()))
            answers.write(json.dumps(report_to_json(report)).encode() + b"\n")
            answers.flush()
    finally:
        amd.close()
        nvidia.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), Path(sys.argv[2]))
