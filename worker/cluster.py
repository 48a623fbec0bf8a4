"""A Ray cluster as small as it gets: for one run, inside one sandbox, used by nobody else.

The quick way is Ray's private `Node`, without the API server, monitor and log monitor: 2.1 s of CPU and 220 MB against
3.1 s and more for ``ray start``. It is private, so Ray is pinned, and where it does not work the supported command is
used instead. Never ``ray.init()`` without an address: that joins whatever cluster a file in /tmp names.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80 << 20
PORT = 6379


def prepare_environment(threads: int) -> None:
    """What Ray and numeric libraries read from the environment; must happen before ``import ray``."""
    os.environ.update(
        RAY_AUTH_MODE="token",
        # Every process in the sandbox can read it: it keeps others out of the run, never the run away from the host.
        RAY_AUTH_TOKEN=secrets.token_hex(32),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_DEDUP_LOGS="0",
        # The monitor reads the host's memory, not the run's limit, so it can only be wrong in here.
        RAY_memory_monitor_refresh_ms="0",
        GLOO_SOCKET_IFNAME="lo",
        NCCL_SOCKET_IFNAME="lo",
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)


def start_cluster(workers: int, gpus: int) -> Any:
    """Start a cluster with a CPU per worker and connect to it; gives the ``ray`` module."""
    import ray  # noqa: PLC0415 - reads its environment at import

    try:
        address = _start_private_node(workers, gpus)
    except (ImportError, TypeError, AttributeError):
        address = _start_by_command(workers, gpus)
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    return ray


def _start_private_node(workers: int, gpus: int) -> str:
    from ray._private import node  # noqa: PLC0415
    from ray._private.parameter import RayParams  # noqa: PLC0415

    node.Node.start_api_server = lambda *_args, **_kwargs: None
    parameters = RayParams(
        node_ip_address="127.0.0.1",
        num_cpus=workers,
        num_gpus=gpus,
        no_monitor=True,
        include_log_monitor=False,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        temp_dir="/tmp/ray",  # noqa: S108 - the sandbox's own
    )
    head = node.Node(parameters, head=True, shutdown_at_exit=False, spawn_reaper=False)
    return str(head.gcs_address)


def _start_by_command(workers: int, gpus: int) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor",
               "--include-log-monitor=false", "--include-dashboard=false", "--node-ip-address=127.0.0.1",
               f"--port={PORT}", f"--num-cpus={workers}", f"--num-gpus={gpus}",
               f"--object-store-memory={OBJECT_STORE_BYTES}", "--temp-dir=/tmp/ray"]  # fmt: skip
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not {"gcs_server", "raylet"} <= set(ray_processes()):
        if time.monotonic() > deadline:
            raise RuntimeError("Ray did not come up within a minute")
        time.sleep(0.1)
    return f"127.0.0.1:{PORT}"


def ray_processes() -> dict[str, int]:
    """The pids of Ray's two servers, of those that are alive; the sandbox sees no processes but its own."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):
            name, _, rest = entry.joinpath("stat").read_text().partition("(")[2].rpartition(")")
            if name in ("gcs_server", "raylet") and rest.split()[0] not in "ZX":
                found[name] = int(entry.name)
    return found
