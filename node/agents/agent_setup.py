"""What the commands of `hansa agent` do: invite, join, list, remove, and be an agent until told to stop."""

import contextlib
import logging
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import trio

from hansa.market.value_forms import duration_ms
from hansa.node.agents.agent import TREES_BYTES, Agent, WrongDaemon, dialled
from hansa.node.agents.agent_cluster import FOLDER, makes_gangs, own_features
from hansa.node.agents.agent_config import (
    FILE_NAME,
    AgentConfig,
    DaemonPlace,
    agent_config_text,
    load_agent_config,
    own_name,
    parse_agent_config,
    write_daemon,
)
from hansa.node.agents.agent_keys import (
    Invitation,
    Register,
    check_name,
    load_identity,
    parse_line,
    write_invitation_key,
)
from hansa.node.agents.agent_messages import Enrol, EnrolmentAnswer, Gone, LentGpu, Report, TurnedAway, Welcome
from hansa.node.agents.agent_trees import TreeStore
from hansa.node.api.cli_client import DaemonClient
from hansa.node.devices.inventory import read_machine, take_inventory
from hansa.node.engine.logs import start_logging
from hansa.node.faults import ConfigError, NoSandbox, OperatorError
from hansa.node.isolation.launcher_link import launch_with
from hansa.node.isolation.preflight import SandboxReport, check_sandbox
from hansa.node.settings.config import load_config
from hansa.proto.market_documents import TIER_NONE, TIER_SANDBOX

ANSWER_S: Final = 15.0
NOTE_BYTES: Final = 2000
_LOG = logging.getLogger("hansa.agent")


def invite(data_dir: Path, *, address: str, lasts: str) -> str:
    """Open an invitation; gives the line to carry to the other machine.

    Raises:
        OperatorError: this node does not listen for machines, or the address or time is none.
    """
    config = load_config(data_dir)
    if config.cluster.listen is None:
        raise ConfigError(
            "this node does not listen for other machines", 'set listen = "0.0.0.0:4011" under [cluster] in config.toml'
        )
    try:
        lasts_ms = duration_ms(lasts)
    except ValueError as fault:
        raise ConfigError(f"--for {lasts}: {fault}", 'for example --for "15 min"') from None
    host, port = _address(address) if address else config.cluster.announce or _guess(config.cluster.listen)
    secret = os.urandom(32)
    identity = load_identity(config.data_dir / FOLDER)
    Register(config.data_dir / FOLDER).invite(secret, _now_ms() + lasts_ms)
    return Invitation(host=host, port=port, pin=identity.pin, secret=secret).line


def join(
    data_dir: Path,
    line: str,
    *,
    name: str,
    gpus: tuple[str, ...] | None,
    cpu_slots: str,
    cpu_cores_per_slot: str,
    memory_per_slot: str,
    launcher: str,
) -> DaemonPlace:
    """Enrol this machine and write its data directory. What is lent is kept if a file says it already.

    Raises:
        OperatorError: the line is none, or the daemon did not take this machine.
    """
    invitation = parse_line(line)
    slots = int(cpu_slots) if cpu_slots.isascii() and cpu_slots.isdigit() and len(cpu_slots) < 9 else cpu_slots
    text = agent_config_text(
        gpus=gpus,
        cpu_slots=slots,
        cpu_cores_per_slot=cpu_cores_per_slot,
        memory_per_slot=memory_per_slot,
        launcher=launcher,
    )
    file = data_dir / FILE_NAME
    parse_agent_config(text, file)  # before the invitation is used up
    own = load_identity(data_dir)
    place = DaemonPlace(
        name=check_name(name or own_name()), host=invitation.host, port=invitation.port, pin=invitation.pin
    )
    guest_file = data_dir / f"invitation.{os.getpid()}.pem"
    guest = write_invitation_key(invitation.secret, guest_file)
    try:
        trio.run(_enrol, guest, place, own.certificate)
    finally:
        guest_file.unlink()
    write_daemon(data_dir, place)
    if not file.exists():
        file.write_text(text, encoding="utf-8")
    return place


async def _enrol(guest: Any, place: DaemonPlace, certificate: bytes) -> None:
    hint = "get a new line with `hansa agent invite`, and see that the daemon runs and can be reached from here"
    try:
        async with dialled(guest, place, "enrol") as wire:
            await wire.send(Enrol(name=place.name, certificate=certificate))
            answer = await wire.receive(EnrolmentAnswer, within_s=ANSWER_S)
    except (Gone, WrongDaemon) as error:
        raise ConfigError(f"the daemon did not take this machine: {error}", hint) from error
    if isinstance(answer, TurnedAway):
        raise ConfigError(f"the daemon did not take this machine: {answer.reason}", "choose another --name, or remove")


def machines(data_dir: Path) -> list[dict[str, Any]]:
    """The enrolled machines as the daemon sees them; from the register alone where no daemon runs."""
    config = load_config(data_dir)
    with contextlib.suppress(OperatorError):
        daemon = DaemonClient(data_dir)
        try:
            found = daemon.get("/v1/node").get("machines")
        finally:
            daemon.close()
        if isinstance(found, list):
            return found
    known = Register(config.data_dir / FOLDER).machines().values()
    note = "the daemon does not run, or does not listen for machines"
    return [
        {"name": one.name, "since_ms": one.since_ms, "connected": None, "devices": 0, "note": note, "gangs": False}
        for one in sorted(known, key=lambda machine: machine.name)
    ]


def remove(data_dir: Path, name: str) -> None:
    """Take a machine out of the register. A daemon that runs sees it within a second.

    Raises:
        ConfigError: there is none of that name.
    """
    config = load_config(data_dir)
    if not Register(config.data_dir / FOLDER).remove(name):
        raise ConfigError(f"no machine is called {name}", "hansa agent list shows their names")


def run_agent(data_dir: Path) -> None:
    """Be this machine's agent until a signal says to stop.

    Raises:
        OperatorError: something that the owner must mend first.
    """
    config = load_agent_config(data_dir)
    start_logging(as_json=False)
    launch = launch_with(config.launcher)
    # The walls of every provider stand on these; what this one promises beside them is tried when it has said so.
    trials = {TIER_SANDBOX: check_sandbox(launch=launch)}
    if not trials[TIER_SANDBOX].available:
        raise NoSandbox(f"no sandbox can be made here: {trials[TIER_SANDBOX].reason}", "the line says what is missing")

    def report(welcome: Welcome) -> Report:
        tier = TIER_SANDBOX if welcome.tier == TIER_NONE else welcome.tier
        if tier not in trials:
            trials[tier] = check_sandbox(launch=launch, tier=tier)
        return report_of(config, welcome.account, trials[tier])

    trees = TreeStore(config.data_dir / "trees", quota_bytes=TREES_BYTES)
    agent = Agent(
        identity=config.identity,
        daemon=config.daemon,
        trees=trees,
        sockets=config.data_dir / "sockets",
        launch=launch,
        report=report,
        log=_say,
    )
    _say(f"machine {config.daemon.name}: {trials[TIER_SANDBOX].reason}")
    trio.run(_serve_until_told, agent)


def report_of(config: AgentConfig, account: bytes, sandbox: SandboxReport) -> Report:
    """What this machine has to lend under this account."""
    # Machines that were copied from one image share the serial that the kernel knows; their keys they do not.
    machine = replace(read_machine(), serial=config.identity.pin.hex())
    # Who has parts of devices is watched by the daemon on its own machine only.
    inventory = take_inventory(account, replace(config.provider, share=None), machine=machine)
    return Report(
        devices=inventory.devices,
        gpus=tuple(
            LentGpu(
                device=device,
                gpu_minors=inventory.gpu_minors((device,)),
                device_nodes=inventory.device_nodes((device,)),
                cuda_devices=inventory.cuda_devices((device,)),
                rocm_devices=inventory.rocm_devices((device,)),
            )
            for device in inventory.gpus
        ),
        tier=sandbox.tier,
        features=own_features(),
        overlay=makes_gangs(sandbox),
        note=inventory.note[:NOTE_BYTES],
        reason=sandbox.reason[:NOTE_BYTES],
    )


async def _serve_until_told(agent: Agent) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agent.serve)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                nursery.cancel_scope.cancel()
                return


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise ConfigError(f"{text} is no address", "for example --address 192.0.2.7:4011")
    return host.strip("[]"), int(port)


def _guess(listen: tuple[str, int]) -> tuple[str, int]:
    """Where others most likely reach us: the address that this machine itself would use to go elsewhere."""
    host, port = listen
    if host not in ("0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        return host, port
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return probe.getsockname()[0], port
    raise ConfigError("it is not known how others reach this machine", "say so: --address HOST:PORT")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _say(text: str) -> None:
    _LOG.info("%s", text)
