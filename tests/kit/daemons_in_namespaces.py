"""Real daemons in the namespaces of a small internet, each a process, asked over its socket."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from kit.namespaces import Site

from hansa.node.api.cli_client import DaemonAway, DaemonClient
from hansa.node.settings.config import FILE_NAME

HANSA = [sys.executable, "-m", "hansa"]


def until(holds: Callable[[], Any], patience_s: float, what: str) -> Any:
    """What ``holds`` gives when it gives something, or a failure that says what was waited for."""
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, f"after {patience_s:.0f} s it does not hold that {what}"
        time.sleep(0.2)
    return found


class PlacedDaemon:
    """A daemon in a namespace."""

    def __init__(
        self,
        stack: ExitStack,
        site: Site,
        place: Path,
        *options: str,
        relay: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        """``settings`` are keys of its ``config.toml`` and what stands behind them instead."""
        self.place, self.site = place, site
        subprocess.run(
            [*HANSA, "init", "--data", place, "--listen", "/ip4/0.0.0.0/tcp/4077", "--metrics-port", "0", *options],
            check=True,
            capture_output=True,
        )
        file = place / FILE_NAME
        for name, value in (settings or {}).items():
            text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", file.read_text())
            assert count == 1, f"{name} is no line of the config"
            file.write_text(text)
        with (place.parent / f"{place.name}.log").open("wb") as log:
            command = ["ip", "netns", "exec", site.name, *HANSA, "node", "run", "--data", place]
            self.process = subprocess.Popen([*command, "--relay"] if relay else command, stdout=log, stderr=log)
        stack.callback(self.stop)
        self.daemon = DaemonClient(place)
        stack.callback(self.daemon.close)
        until(lambda: self.asked("/v1/net"), 60, "the daemon answers")

    def asked(self, path: str) -> Any:
        """An answer of its local API, or None while it gives none."""
        try:
            return self.daemon.get(path)
        except DaemonAway:
            return None

    def outside(self) -> str:
        """Where it is dialled from elsewhere."""
        return next(addr for addr in self.asked("/v1/net")["addresses"] if "45.33." in addr and "circuit" not in addr)

    def kill(self) -> None:
        """As the kernel does it when memory is short."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask it to end, and make it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
