"""``hansa init``: a data directory with a commented config and two keys, made once and never overwritten.

The config is written last: where it stands the directory is complete, and where it does not a second ``hansa init``
picks up the keys that an interrupted first one left behind. One thing it makes in a directory that is complete: a node
key that was lost, which is only a name. An account that was lost is money, and is never replaced.
"""

import json
import os
import secrets
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from hansa.node.faults import ConfigError
from hansa.node.settings.config import FILE_NAME, Config, load_config, parse_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator may say at ``hansa init``; the rest is edited in the file.

    Attributes:
        provides: whether this machine lends its devices.
        gpus: ``None`` lends all GPUs.
        cpu_slots: how many slots of CPU capacity to sell, or ``"auto"``.
    """

    provides: bool = False
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001")
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    region: str = ""
    price_per_hour: str = "0.40"
    gpus: tuple[str, ...] | None = None
    cpu_slots: int | str = 0
    cpu_cores_per_slot: int | str = 2
    memory_per_slot: str = "4 GiB"
    meter_interval: str = "10 s"
    max_job_budget: str = "100.00"
    metrics_port: int = 9477


@dataclass(frozen=True, slots=True, kw_only=True)
class NewNode:
    """What ``hansa init`` made.

    Attributes:
        config: as it reads back.
        account: the address that earns and pays.
        peer_id: the node's name in the network.
        renamed: there was a node already, and only its lost node key was made anew.
    """

    config: Config
    account: bytes
    peer_id: str
    renamed: bool = False


def _toml(value: object) -> str:
    """A value as TOML. JSON's strings, numbers, booleans and lists of them are TOML's too."""
    return json.dumps(value, ensure_ascii=False)


def config_text(wishes: Wishes) -> str:
    """The commented config file with the operator's wishes in it."""
    template = files("hansa.node.settings").joinpath("config_template.toml").read_text(encoding="utf-8")
    return Template(template).substitute(
        region=_toml(wishes.region),
        listen=_toml(list(wishes.listen)),
        announce=_toml(list(wishes.announce)),
        bootstrap=_toml(list(wishes.bootstrap)),
        provider_enabled=_toml(wishes.provides),
        price_per_hour=_toml(wishes.price_per_hour),
        gpus=_toml("all" if wishes.gpus is None else list(wishes.gpus)),
        cpu_slots=_toml(wishes.cpu_slots),
        cpu_cores_per_slot=_toml(wishes.cpu_cores_per_slot),
        memory_per_slot=_toml(wishes.memory_per_slot),
        meter_interval=_toml(wishes.meter_interval),
        max_job_budget=_toml(wishes.max_job_budget),
        metrics_port=_toml(wishes.metrics_port),
    )


def set_up(data_dir: Path, wishes: Wishes) -> NewNode:
    """Make keys and config in a directory of mode 0700; where only the node's key was lost, make that one anew.

    Raises:
        ConfigError: a node lives there already, a wish is out of range, or the directory cannot be used.
    """
    # Late, because `hansa --help` reads this module and these bring the cryptography in.
    from hansa.node.chain.keys import create_node_key, load_node_key  # noqa: PLC0415
    from hansa.node.chain.keystore import account_address, create_account_unattended  # noqa: PLC0415
    from hansa.node.devices.inventory import read_machine, slot_count  # noqa: PLC0415
    from hansa.node.secret_files import ensure_private_directory  # noqa: PLC0415
    from hansa.proto.peer_id import peer_id_of, peer_id_text  # noqa: PLC0415

    data_dir = data_dir.absolute()
    file = data_dir / FILE_NAME
    if file.exists():
        config = load_config(data_dir)
        if config.keystore.exists() and not config.node_key.exists():
            account, node_key = account_address(config.keystore), create_node_key(config.node_key)
            peer_id = peer_id_text(peer_id_of(node_key.public_key))
            return NewNode(config=config, account=account, peer_id=peer_id, renamed=True)
        raise ConfigError(f"a node lives in {data_dir} already", f"edit {file}, or choose another --data DIR")
    text = config_text(wishes)
    config = parse_config(text, file)
    try:
        slot_count(config.provider, read_machine())
    except ConfigError as fault:
        hint = (
            "give fewer --cpu-slots, or auto; for smaller slots set cpu_cores_per_slot in config.toml, then cpu_slots"
        )
        raise ConfigError(fault.what, hint) from None
    ensure_private_directory(data_dir)
    node_key = load_node_key(config.node_key) if config.node_key.exists() else create_node_key(config.node_key)
    if config.keystore.exists():
        account = account_address(config.keystore)
    else:
        # A password that an interrupted set-up left without an account opens nothing and makes way.
        config.password_file.unlink(missing_ok=True)
        account = create_account_unattended(config.keystore, config.password_file).address
    _write_once(file, text)
    return NewNode(config=config, account=account, peer_id=peer_id_text(peer_id_of(node_key.public_key)))


def _write_once(file: Path, text: str) -> None:
    """Write the config whole or not at all, and never over another."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.link(partial, file)
    except FileExistsError:
        raise ConfigError(f"a node lives in {file.parent} already", f"edit {file}") from None
    except OSError as fault:
        raise ConfigError(f"cannot write {file}: {fault.strerror}", "check the directory and the disk") from None
    finally:
        partial.unlink(missing_ok=True)
