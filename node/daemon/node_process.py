"""The process of ``hansa node run``: open the keys, try the sandbox, be a node until a signal says to stop."""

import contextlib
import ctypes
import json
import os
import resource
import signal
from collections.abc import Iterator

import trio

from hansa.node.chain.keys import load_node_key
from hansa.node.chain.keystore import open_unattended
from hansa.node.chain.secrecy import keep_memory_private
from hansa.node.daemon.daemon import Daemon
from hansa.node.daemon.garbage import set_started_things_aside
from hansa.node.engine.logs import start_logging
from hansa.node.faults import NoSandbox, operator_error_in
from hansa.node.isolation.launcher_link import launch_with
from hansa.node.isolation.preflight import check_sandbox, check_tiers
from hansa.node.runs.environments import find_furnishings
from hansa.node.settings.config import Config
from hansa.proto.market_documents import TIER_NONE
from hansa.proto.signing import checksum_address

PR_SET_PDEATHSIG = 1
MOST_FILES = 65_536


def _have_many_files() -> None:
    """Take as many descriptors as the system lets us: each connection is one. A sandbox's own limit is set there."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _die_with_parent() -> None:
    """Have the kernel end this process when the one that started it ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() == 1:
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _open(config: Config) -> Iterator[Daemon]:
    node, account = load_node_key(config.node_key), open_unattended(config.keystore, config.password_file)
    sandbox, launch = None, launch_with(config.sandbox.launcher)
    if config.provider.enabled and config.provider.tier != TIER_NONE:
        sandbox = check_sandbox(launch=launch, tier=config.provider.tier)
    if sandbox is not None and not sandbox.available and config.sandbox.require:
        hint = "strangers' jobs are refused until this is mended; set provider.enabled = false to only buy"
        raise NoSandbox(f"no sandbox can be made here: {sandbox.reason}", hint)
    tiers = () if sandbox is None else check_tiers(sandbox, launch=launch)
    daemon = Daemon(config, account, node, sandbox, tiers)
    if daemon.lends and sandbox is not None:
        daemon.furnishings = find_furnishings(daemon.trees, config.environments)
    try:
        yield daemon
    finally:
        daemon.close()


async def _say_when_ready(daemon: Daemon, as_json: bool) -> None:
    await daemon.ready.wait()
    facts = {
        "ready": True,
        "peer_id": daemon.net.peer_id,
        "account": checksum_address(daemon.account.address),
        "addresses": list(daemon.net.addrs()),
        "api": str(daemon.config.api_socket),
        "devices": daemon.inventory.note,
        "sandbox": daemon.sandbox_view,
    }
    lines = [
        f"hansa: ready. Account {facts['account']}",
        *(f"  listening  {address}" for address in daemon.net.addrs()),
        f"  devices    {daemon.inventory.note}",
        f"  sandbox    {daemon.sandbox_view['tier']}: {daemon.sandbox_view['reason'] or 'tested and sound'}",
    ]
    print(json.dumps(facts) if as_json else "\n".join(lines), flush=True)  # noqa: T201 - the operator's terminal


async def _serve_until_told(daemon: Daemon, as_json: bool) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon.serve)
        nursery.start_soon(_say_when_ready, daemon, as_json)
        nursery.start_soon(set_started_things_aside)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def run(config: Config, *, as_json: bool = False, stop_on_parent_exit: bool = False) -> None:
    """Be a node until a signal says to stop.

    Args:
        config: what the operator decided.
        as_json: say that it is ready, and log, in lines of JSON.
        stop_on_parent_exit: end when the process that started this one ends, as ``hansa demo`` needs it.

    Raises:
        OperatorError: something that the operator must mend first.
    """
    if stop_on_parent_exit:
        _die_with_parent()
    start_logging(as_json=as_json)
    keep_memory_private()
    _have_many_files()
    try:
        with _open(config) as daemon:
            trio.run(_serve_until_told, daemon, as_json)
    except Exception as fault:
        mistake = operator_error_in(fault, config.data_dir)
        if mistake is None:
            raise
        raise mistake from None
