"""A Ray cluster as small as it gets: for one run, inside one sandbox, used by nobody else.

The quick way is Ray's private `Node`, without the API server, monitor and log monitor: 2.1 s of CPU and 220 MB against
3.1 s and more for ``ray start``. It is private, so Ray is pinned, and where it does not work the supported command is
used instead. Never ``ray.init()`` without an address: that joins whatever cluster a file in /tmp names.
"""

import contextlib
import importlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hansa.proto.gang import GANG_FILE, INTERFACE, Gang, address_of, read_gang_text
from hansa.worker.way_out import PROXY, WAY_OUT

OBJECT_STORE_BYTES = 80 << 20
PORT = 6379
GANG_PORT = 6379
JOIN_S = 60.0
SPILL = Path("/job/work/.ray")
"""What does not fit into Ray's object store goes to the run's disk, and not to /tmp, which is memory."""
STAND_INS = Path("/tmp/hansa-stand-ins")  # noqa: S108 - the sandbox's own
RAY_NAMES = {
    "gcs_server": "gcs_server",
    "raylet": "raylet",
    "ray::DashboardA": "dashboard agent",
    "ray::RuntimeEnv": "runtime environment agent",
}
"""Ray's own processes by what the kernel calls them, cut to 15 characters."""


def read_own_gang() -> Gang | None:
    """The gang that this sandbox belongs to, if its run is on several machines."""
    try:
        return read_gang_text(Path(GANG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def prepare_environment(threads: int) -> None:
    """What Ray and numeric libraries read from the environment; must happen before ``import ray``."""
    hide_broken_library()
    gang = read_own_gang()
    interface = "lo" if gang is None else INTERFACE
    if WAY_OUT.exists():
        # Ray's own connections stay on the loopback: gRPC would otherwise ask the proxy for them.
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            os.environ[name] = PROXY
        for name in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
            places = () if gang is None else range(len(gang.workers))
            os.environ[name] = ",".join(("localhost", "127.0.0.1", "job", *(address_of(place) for place in places)))
    os.environ.update(
        RAY_AUTH_MODE="token",
        # Every process in the sandbox can read it: it keeps others out of the run, never the run away from the host.
        RAY_AUTH_TOKEN=secrets.token_hex(32) if gang is None else gang.token,
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_DEDUP_LOGS="0",
        # The monitor reads the host's memory, not the run's limit, so it can only be wrong in here.
        RAY_memory_monitor_refresh_ms="0",
        GLOO_SOCKET_IFNAME=interface,
        NCCL_SOCKET_IFNAME=interface,
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        os.environ[name] = str(threads)


def hide_broken_library() -> None:
    """Where AMD's library is installed and its driver is not, importing it raises what Ray is not prepared for.

    Every process of the run then finds a module in its place that says, as Ray expects it, that there is none.
    """
    try:
        importlib.import_module("amdsmi")
    except ImportError:
        return
    except Exception:  # noqa: BLE001 - a KeyError in version 7
        STAND_INS.mkdir(exist_ok=True)
        (STAND_INS / "amdsmi.py").write_text('raise ImportError("no driver of AMD is here")\n')
        sys.path.insert(0, str(STAND_INS))
        os.environ["PYTHONPATH"] = f"{STAND_INS}:{os.environ.get('PYTHONPATH', '')}"


def start_cluster(workers: int, gpus: int) -> Any:
    """Start a cluster with a CPU per worker and connect to it; gives the ``ray`` module."""
    import ray  # noqa: PLC0415 - reads its environment at import

    gang = read_own_gang()
    if gang is not None:
        # No way round by command here: a gang is worth the pinned Ray, and the two would not mix.
        address = _start_private_node(gang.workers[0], gang.gpus[0], gang)
    else:
        try:
            address = _start_private_node(workers, gpus)
        except (ImportError, TypeError, AttributeError):
            address = _start_by_command(workers, gpus)
    ray.init(address=address, log_to_driver=False, configure_logging=False)
    if gang is not None:
        _await_members(ray, gang)
    return ray


def join_cluster(gang: Gang) -> None:
    """Be one of the gang's other machines: start a node of the head's cluster."""
    _start_private_node(gang.workers[gang.place], gang.gpus[gang.place], gang)


def place_options(worker: int, workers: int, gpus: int) -> dict[str, Any]:
    """Where a worker's actor goes and what it takes there.

    In a gang each worker belongs to one machine, said by a resource that only this machine has: the shares may be
    uneven, and Ray's own strategies spread evenly or as they like.
    """
    gang = read_own_gang()
    if gang is None:
        # One process alone sees all devices without taking them: its pools of tasks may want them one by one.
        return {"num_cpus": 1, "num_gpus": gpus / workers if gpus and workers > 1 else 0}
    place = gang.place_of(worker)
    return {
        "num_cpus": 1,
        "num_gpus": gang.gpus[place] / gang.workers[place] if gang.gpus[place] else 0,
        "resources": {f"place{place}": 1},
    }


def _start_private_node(workers: int, gpus: int, gang: Gang | None = None) -> str:
    from ray._private import node  # noqa: PLC0415
    from ray._private.parameter import RayParams  # noqa: PLC0415

    node.Node.start_api_server = lambda *_args, **_kwargs: None
    place: dict[str, Any] = {"node_ip_address": "127.0.0.1"}
    if gang is not None:
        place = {"node_ip_address": address_of(gang.place), "resources": {f"place{gang.place}": workers}}
        # The head listens at a known port; the others are told where.
        place |= {"gcs_server_port": GANG_PORT} if gang.place == 0 else {"gcs_address": f"{address_of(0)}:{GANG_PORT}"}
    parameters = RayParams(
        num_cpus=workers,
        num_gpus=gpus,
        no_monitor=True,
        include_log_monitor=False,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        temp_dir="/tmp/ray",  # noqa: S108 - the sandbox's own
        object_spilling_directory=str(SPILL),
        **place,
    )
    is_head = gang is None or gang.place == 0
    own = node.Node(parameters, head=is_head, shutdown_at_exit=False, spawn_reaper=False)
    return str(own.gcs_address)


def _await_members(ray: Any, gang: Gang) -> None:
    deadline = time.monotonic() + JOIN_S
    while sum(1 for one in ray.nodes() if one["Alive"]) < len(gang.workers):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the run's {len(gang.workers)} machines did not find each other in {JOIN_S:g} s")
        time.sleep(0.1)


def _start_by_command(workers: int, gpus: int) -> str:
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--no-monitor",
               "--include-log-monitor=false", "--include-dashboard=false", "--node-ip-address=127.0.0.1",
               f"--port={PORT}", f"--num-cpus={workers}", f"--num-gpus={gpus}",
               f"--object-store-memory={OBJECT_STORE_BYTES}", "--temp-dir=/tmp/ray",
               f"--object-spilling-directory={SPILL}"]  # fmt: skip
    subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not {"gcs_server", "raylet"} <= set(ray_processes()):
        if time.monotonic() > deadline:
            raise RuntimeError("Ray did not come up within a minute")
        time.sleep(0.1)
    return f"127.0.0.1:{PORT}"


def ray_processes() -> dict[str, int]:
    """The pids of Ray's own processes that are alive, by their names; the sandbox sees no processes but its own."""
    found = {}
    for pid in process_ids():
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        if name in RAY_NAMES and rest.split()[0] not in "ZX":
            found[RAY_NAMES[name]] = pid
    return found


def process_ids() -> list[int]:
    """Every process in the sandbox."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def end_processes(spared: Callable[[int], bool]) -> None:
    """Kill every process of the sandbox but this one, its own parents, and those that are spared."""
    ours = {os.getpid(), os.getppid(), 1}
    for pid in process_ids():
        if pid not in ours and not spared(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
