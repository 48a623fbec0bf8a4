"""The settings of one node: ``config.toml`` in its data directory, read into frozen values and checked to the last key.

Nothing is guessed: an unknown key, a wrong type or a negative price is a ``ConfigError`` that names file, line and key.
``hansa.node.commands.first_setup`` writes the file in the first place. A table with much in it is read in a module
named for it: ``provider_config``, ``network_config`` and so on.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hansa.node.faults import ConfigError
from hansa.node.settings.chain_config import ChainConfig, read_chain
from hansa.node.settings.egress_config import EgressConfig, read_egress
from hansa.node.settings.environments_config import EnvironmentsConfig, read_environments
from hansa.node.settings.network_config import NetworkConfig, read_network
from hansa.node.settings.provider_config import ProviderConfig, read_provider
from hansa.node.settings.reputation_config import ReputationConfig, read_reputation
from hansa.node.settings.rules_config import RulesConfig, read_rules
from hansa.node.toml_reader import TomlTable, parse_toml, read_toml
from hansa.proto.market_documents import TIER_NONE
from hansa.proto.units import Address, Amount

FILE_NAME = "config.toml"
SOCKET_NAME = "api.sock"
LONGEST_SOCKET_PATH_BYTES = 107
"""The kernel's sockaddr_un holds 108 bytes with the closing zero."""
_CURRENCY = re.compile(r"[A-Z][A-Z0-9]{1,11}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuyerConfig:
    """What this node buys.

    Attributes:
        max_job_budget: no job with a larger budget is taken.
        payer: the account whose money pays for jobs on a chain; ``None`` is the node's own.
    """

    max_job_budget: Amount
    payer: Address | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Where Prometheus and the service manager look.

    Attributes:
        port: TCP on 127.0.0.1; 0 turns it off.
    """

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """How strangers' code is confined.

    Attributes:
        require: refuse every job where no sandbox can be made.
        launcher: the unix socket of a launcher that runs as a service of its own; ``None`` starts one as a child.
        warm: so many sandboxes are kept prepared, with Ray up in them, for runs to begin in at once.
    """

    require: bool
    launcher: Path | None
    warm: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """Where this node meets the other machines of its owner.

    Attributes:
        listen: address and port; ``None`` if there are no other machines.
        announce: what they are told instead.
    """

    listen: tuple[str, int] | None
    announce: tuple[str, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettlementConfig:
    """How vouchers become final money.

    Attributes:
        backend: ``"ledger"``, the embedded one.
        credit_limit: the most that one buyer may owe at a time, less what it paid.
        netting: whether debts of two nodes that owe each other cancel out by themselves.
    """

    backend: str
    credit_limit: Amount
    netting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that the operator decides.

    Attributes:
        data_dir: where config, keys, journal, blobs and socket lie.
        region: where the machine stands, in the owner's words.
        currency: the unit of account.
        blob_bytes: room for code, files, states and outputs, this node's own and those of jobs.
    """

    data_dir: Path
    region: str
    currency: str
    blob_bytes: int
    network: NetworkConfig
    provider: ProviderConfig
    buyer: BuyerConfig
    metrics: MetricsConfig
    sandbox: SandboxConfig
    egress: EgressConfig
    environments: EnvironmentsConfig
    cluster: ClusterConfig
    settlement: SettlementConfig
    chain: ChainConfig | None
    rules: RulesConfig
    reputation: ReputationConfig

    @property
    def api_socket(self) -> Path:
        """The unix socket that the command line talks to."""
        return self.data_dir / SOCKET_NAME

    @property
    def node_key(self) -> Path:
        """The node's own key, which names it in the network."""
        return self.data_dir / "node.key"

    @property
    def keystore(self) -> Path:
        """The account that earns and pays, in a Keystore V3 file."""
        return self.data_dir / "account.json"

    @property
    def password_file(self) -> Path:
        """The password that opens the account at an unattended start."""
        return self.data_dir / "account.password"


def default_data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """``$HANSA_DATA``, or ``~/.hansa``: one directory that is easy to find, to back up and to remove."""
    chosen = environ.get("HANSA_DATA", "")
    if chosen:
        return Path(chosen).absolute()
    try:
        return Path.home() / ".hansa"
    except RuntimeError:
        raise ConfigError("no home directory to keep the data in", "set HANSA_DATA or give --data DIR") from None


def load_config(data_dir: Path) -> Config:
    """Read and check ``config.toml`` of a data directory.

    Raises:
        ConfigError: it is missing, or anything in it is wrong.
    """
    file = data_dir.absolute() / FILE_NAME
    if not file.exists():
        raise ConfigError(f"no node lives in {data_dir}", f"make one: hansa init --data {data_dir}")
    return _config(read_toml(file))


def parse_config(text: str, file: Path) -> Config:
    """Check a text that is meant for a data directory's ``config.toml``.

    Raises:
        ConfigError: anything in it is wrong.
    """
    return _config(parse_toml(text, file))


def _config(top: TomlTable) -> Config:
    data_dir = top.file.parent
    if len(os.fsencode(data_dir / SOCKET_NAME)) > LONGEST_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the path of the data directory is too long: {data_dir}", "a socket in it needs a shorter one"
        )
    node = top.table("node")
    region = node.text("region", "", empty=True)
    currency = node.text("currency", "USD")
    if not _CURRENCY.fullmatch(currency):
        raise node.fault("currency", "must be 2 to 12 capital letters", 'for example currency = "USD"')
    blob_bytes = node.size_bytes("blobs", "50 GiB", least=1 << 30)
    node.finish()
    provider = read_provider(top.table("provider"))
    settlement = _settlement(top.table("settlement"))
    chain = read_chain(top.table("chain"), wanted=settlement.backend == "evm")
    config = Config(
        data_dir=data_dir,
        region=region,
        currency=currency if chain is None else chain.currency.name,
        blob_bytes=blob_bytes,
        network=read_network(top.table("network")),
        provider=provider,
        buyer=_buyer(top.table("buyer"), settlement),
        metrics=_metrics(top.table("metrics")),
        sandbox=_sandbox(top.table("sandbox"), provider),
        egress=read_egress(top.table("egress")),
        environments=read_environments(top.table("environments")),
        cluster=_cluster(top.table("cluster")),
        settlement=settlement,
        chain=chain,
        rules=read_rules(top.table("rules")),
        reputation=read_reputation(top.table("reputation")),
    )
    top.finish()
    if not _sets_something(top.values):
        # A full disk or an editor that was stopped leaves such a file, and the owner's prices and limits were others.
        anew = f"; or remove it and run hansa init --data {data_dir}, which keeps the keys"
        hint = f"put a copy of it back{anew if top.file.name == FILE_NAME else ''}"
        raise ConfigError(f"{top.file}: is empty: it sets nothing", hint)
    return config


def _sets_something(values: Mapping[str, Any]) -> bool:
    """Whether there is a single key with a value; headings of tables alone are none."""
    return any(_sets_something(value) if isinstance(value, dict) else True for value in values.values())


def _buyer(table: TomlTable, settlement: SettlementConfig) -> BuyerConfig:
    buyer = BuyerConfig(max_job_budget=table.amount("max_job_budget", "100.00"), payer=table.account("payer"))
    if buyer.payer is not None and settlement.backend != "evm":
        why = (
            'cannot be set while settlement.backend is "ledger": a debt there is owed by the account that signs for it'
        )
        raise table.fault("payer", why, 'payer = "", or settle on a chain: settlement.backend = "evm"')
    table.finish()
    return buyer


def _metrics(table: TomlTable) -> MetricsConfig:
    metrics = MetricsConfig(port=table.integer("port", 9477, least=0, most=65535))
    table.finish()
    return metrics


def _sandbox(table: TomlTable, provider: ProviderConfig) -> SandboxConfig:
    launcher = table.text("launcher", "", empty=True)
    if launcher and not launcher.startswith("/"):
        raise table.fault("launcher", "must be an absolute path", 'for example launcher = "/run/hansa/launcher.sock"')
    sandbox = SandboxConfig(
        require=table.boolean("require", True),
        launcher=Path(launcher) if launcher else None,
        warm=table.integer("warm", 0, least=0, most=64),
    )
    if not sandbox.require and provider.accept_buyers is None:
        raise table.fault("require", "may not be false while anybody's jobs are taken", "list provider.accept_buyers")
    if sandbox.require and provider.tier == TIER_NONE:
        raise table.fault("require", 'cannot hold with provider.tier = "none"', 'set provider.tier = "sandbox"')
    table.finish()
    return sandbox


def _cluster(table: TomlTable) -> ClusterConfig:
    cluster = ClusterConfig(listen=_host_and_port(table, "listen"), announce=_host_and_port(table, "announce"))
    table.finish()
    return cluster


def _host_and_port(table: TomlTable, key: str) -> tuple[str, int] | None:
    text = table.text(key, "", empty=True)
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise table.fault(key, "must be an address and a port", f'for example {key} = "192.0.2.7:4011"')
    return host.strip("[]"), int(port)


def _settlement(table: TomlTable) -> SettlementConfig:
    settlement = SettlementConfig(
        backend=table.choice("backend", "ledger", ("ledger", "evm")),
        credit_limit=table.amount("credit_limit", "10.00"),
        netting=table.boolean("netting", True),
    )
    table.finish()
    return settlement
