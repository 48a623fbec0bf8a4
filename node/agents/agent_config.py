"""The data directory of an agent: ``agent.toml`` says what this machine lends, ``daemon.json`` to whom it belongs.

The file takes the keys of a node's ``config.toml`` that are about devices and the launcher, with the same meaning, and
no others: price, buyers and tier are the daemon's to say.
"""

import base64
import binascii
import json
import socket
from dataclasses import dataclass, replace
from pathlib import Path

from hansa.node.agents.agent_keys import KEY_FILE, Identity, check_name, load_identity, write_private
from hansa.node.faults import ConfigError
from hansa.node.settings.config import Config, parse_config
from hansa.node.settings.provider_config import ProviderConfig
from hansa.node.storage.pinned_tls import pin_of
from hansa.node.toml_reader import parse_toml

FILE_NAME = "agent.toml"
DAEMON_FILE = "daemon.json"
_KEYS = {
    "provider": frozenset({"gpus", "cpu_slots", "cpu_cores_per_slot", "memory_per_slot"}),
    "sandbox": frozenset({"launcher"}),
}
_TEMPLATE = """\
# What this machine lends. Prices and everything else are in the config.toml of the daemon's machine.
# Restart the agent after a change.

[provider]
# "all", or a list of uuids or indices as `nvidia-smi -L` shows them; [] for none.
gpus = {gpus}
# Slots of CPU capacity, each sold as one device; "auto" keeps two cores and a quarter of the memory for you.
cpu_slots = {cpu_slots}
cpu_cores_per_slot = {cpu_cores_per_slot}
memory_per_slot = {memory_per_slot}

[sandbox]
# The unix socket of a launcher that runs as a service of its own. Empty: the agent starts one as a child.
# Gangs over several machines need a launcher that is root, on each of them.
launcher = {launcher}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonPlace:
    """Where the provider's daemon is, and what it is known by."""

    name: str
    host: str
    port: int
    pin: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Everything an agent goes by.

    Attributes:
        provider: what is lent; the rest of it means nothing here.
        launcher: the unix socket of a launcher, or ``None`` to start one.
    """

    data_dir: Path
    provider: ProviderConfig
    launcher: Path | None
    daemon: DaemonPlace
    identity: Identity


def load_agent_config(data_dir: Path) -> AgentConfig:
    """Read and check an agent's data directory.

    Raises:
        ConfigError: it is none, or anything in it is wrong.
    """
    file = data_dir.absolute() / FILE_NAME
    if not file.exists() or not (data_dir / DAEMON_FILE).exists() or not (data_dir / KEY_FILE).exists():
        raise ConfigError(
            f"no agent lives in {data_dir}",
            "on the daemon's machine `hansa agent invite`, here `hansa agent join --data DIR`",
        )
    config = parse_agent_config(file.read_text(encoding="utf-8"), file)
    return AgentConfig(
        data_dir=data_dir.absolute(),
        provider=replace(config.provider, enabled=True),
        launcher=config.sandbox.launcher,
        daemon=_read_daemon(data_dir / DAEMON_FILE),
        identity=load_identity(data_dir),
    )


def parse_agent_config(text: str, file: Path) -> Config:
    """Check the text of an ``agent.toml``.

    Raises:
        ConfigError: anything in it is wrong, or belongs into the daemon's file.
    """
    top = parse_toml(text, file)
    for name, known in _KEYS.items():
        table = top.table(name)
        for key in table.values:
            if key not in known:
                raise table.fault(key, "does not belong here", f"known here: {', '.join(sorted(known))}")
    top.finish()
    return parse_config(text, file)


def agent_config_text(
    *,
    gpus: tuple[str, ...] | None,
    cpu_slots: int | str,
    cpu_cores_per_slot: str,
    memory_per_slot: str,
    launcher: str,
) -> str:
    """The commented file."""
    cores: object = cpu_cores_per_slot
    if cpu_cores_per_slot.replace(".", "", 1).isdigit():
        cores = float(cpu_cores_per_slot) if "." in cpu_cores_per_slot else int(cpu_cores_per_slot)
    return _TEMPLATE.format(
        gpus=json.dumps("all" if gpus is None else list(gpus)),
        cpu_slots=json.dumps(cpu_slots),
        cpu_cores_per_slot=json.dumps(cores),
        memory_per_slot=json.dumps(memory_per_slot),
        launcher=json.dumps(launcher),
    )


def write_daemon(data_dir: Path, daemon: DaemonPlace) -> None:
    """Keep where the daemon is."""
    entry = {
        "name": daemon.name,
        "host": daemon.host,
        "port": daemon.port,
        "pin": base64.b64encode(daemon.pin).decode(),
    }
    write_private(data_dir / DAEMON_FILE, json.dumps(entry).encode())


def own_name() -> str:
    """What a machine calls itself unless it is told otherwise: its host's name, as far as that can be a name."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in socket.gethostname().lower())
    return plain[:32].strip("-") or "machine"


def _read_daemon(file: Path) -> DaemonPlace:
    try:
        entry = json.loads(file.read_bytes())
        place = DaemonPlace(
            name=check_name(entry["name"]),
            host=str(entry["host"]),
            port=int(entry["port"]),
            pin=base64.b64decode(entry["pin"], validate=True),
        )
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as fault:
        raise ConfigError(f"{file} cannot be read", "join again: `hansa agent join`") from fault
    if len(place.pin) != len(pin_of(b"")):
        raise ConfigError(f"{file} cannot be read", "join again: `hansa agent join`")
    return place
