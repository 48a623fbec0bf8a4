"""The settings of one node: ``config.toml`` in its data directory, read into frozen values and checked to the last key.

Nothing is guessed: an unknown key, a wrong type or a negative price is a ``ConfigError`` that names file, line and key.
``hansa.node.first_setup`` writes the file in the first place.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hansa.market.needs_text import NeedsError
from hansa.market.requirements import parse_rules
from hansa.node.chain_config import ChainConfig, read_chain
from hansa.node.environments_config import EnvironmentsConfig, read_environments
from hansa.node.faults import ConfigError
from hansa.node.machine_facts import read_owners_facts
from hansa.node.pricing_config import PricingConfig, read_pricing
from hansa.node.reputation_config import ReputationConfig, read_reputation
from hansa.node.rules_config import RulesConfig, read_rules
from hansa.node.share_config import ShareConfig, read_share
from hansa.node.splits_config import read_percent
from hansa.node.toml_reader import TomlTable, parse_toml, read_toml
from hansa.proto.egress import normalise
from hansa.proto.errors import Malformed
from hansa.proto.market_documents import LEASE_FIRM, LEASE_SPOT, TIER_GVISOR, TIER_NONE, TIER_SANDBOX, Clause, Fact
from hansa.proto.signing import parse_address
from hansa.proto.units import Address, Amount, DurationMs, PriceE18, Uint32

FILE_NAME = "config.toml"
SOCKET_NAME = "api.sock"
LONGEST_SOCKET_PATH_BYTES = 107
"""The kernel's sockaddr_un holds 108 bytes with the closing zero."""
_MULTIADDR = re.compile(r"/(ip4|ip6|dns|dns4|dns6|dnsaddr)/[A-Za-z0-9:._\-%]+(/[A-Za-z0-9\-]+(/[A-Za-z0-9:._\-]+)?)*")
_CURRENCY = re.compile(r"[A-Z][A-Z0-9]{1,11}")
PREPAY_STRANGERS, PREPAY_EVERYBODY = "strangers", "everybody"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """Where this node listens and whom it starts from, as multiaddrs; and whether it looks for others nearby."""

    listen: tuple[str, ...]
    announce: tuple[str, ...]
    bootstrap: tuple[str, ...]
    lan: bool = True
    relay: bool = False
    """Whether it hands on the bytes of nodes that cannot be dialled."""
    upnp: bool = False
    """Whether it may ask its router to forward its port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderConfig:
    """What this node lends, to whom, and on which terms.

    Attributes:
        enabled: whether it lends anything at all.
        price_e18_per_device_ms: the posted price.
        gpus: uuids or indices of the GPUs to lend; ``None`` lends all.
        cpu_slots: how many slots of CPU capacity to sell; ``None`` lets the inventory decide.
        cpu_cores_milli_per_slot: CPU cores of one slot, in thousandths.
        memory_bytes_per_slot: main memory of one slot.
        accept_buyers: accounts whose jobs are taken; ``None`` takes anybody's.
        payee: the account that is paid; ``None`` is the node's own.
        tier: the isolation that every job gets.
        meter_interval_ms: a receipt at most this often.
        voucher_timeout_ms: a run is paused without a voucher for this long after a receipt.
        max_unpaid: a run is paused with more than this run up and not vouched for.
        prepay_ms: how much device time is paid ahead; 0 for none.
        prepay_from: who pays ahead: ``strangers``, who never settled anything here, or ``everybody``.
        max_splits_bps: the most of a payment that may go to others than this provider, in ten-thousandths.
        grace_ms: a run that has been paused for this long is stopped.
        reclaim_notice_ms: how long before taking a device back the buyer is told.
        leases: the kinds of lease that are offered; the first is for who does not mind.
        firm_penalty_ms: what a firm lease withholds until it has ended well, as time of all its devices.
        shells: whether buyers may open shells in their own runs.
        max_fetch_bytes: what one shard may bring beside its package at most.
        mirror_bytes: what the copies of checkpoints may weigh that are held for shards elsewhere; 0 holds none.
        accepts: the owner's rules over a job's facts, all of which must hold.
        facts: what the owner says of the machine.
        pricing: what makes the price of a bid out of the posted one.
        share: how devices are lent in parts; ``None`` lends them whole.
    """

    enabled: bool
    price_e18_per_device_ms: PriceE18
    gpus: tuple[str, ...] | None
    cpu_slots: int | None
    cpu_cores_milli_per_slot: int
    memory_bytes_per_slot: int
    accept_buyers: frozenset[Address] | None
    payee: Address | None
    tier: str
    meter_interval_ms: DurationMs
    voucher_timeout_ms: DurationMs
    max_unpaid: Amount
    prepay_ms: DurationMs
    prepay_from: str
    max_splits_bps: Uint32
    grace_ms: DurationMs
    reclaim_notice_ms: DurationMs
    leases: tuple[str, ...]
    firm_penalty_ms: DurationMs
    shells: bool
    max_fetch_bytes: int
    mirror_bytes: int
    accepts: tuple[Clause, ...]
    facts: tuple[Fact, ...]
    pricing: PricingConfig
    share: ShareConfig | None


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
class EgressConfig:
    """Where jobs may be let out to.

    Attributes:
        allow: patterns of hosts as in ``hansa.proto.egress``; none means that no job has any network.
        deny: networks that no job reaches, public or not.
        bytes_per_s: of all jobs together, both ways together.
        bytes_per_run: what one run may exchange at most, both ways together.
    """

    allow: tuple[str, ...]
    deny: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    bytes_per_s: int
    bytes_per_run: int


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
    provider = _provider(top.table("provider"))
    settlement = _settlement(top.table("settlement"))
    chain = read_chain(top.table("chain"), wanted=settlement.backend == "evm")
    config = Config(
        data_dir=data_dir,
        region=region,
        currency=currency if chain is None else chain.currency.name,
        blob_bytes=blob_bytes,
        network=_network(top.table("network")),
        provider=provider,
        buyer=_buyer(top.table("buyer"), settlement),
        metrics=_metrics(top.table("metrics")),
        sandbox=_sandbox(top.table("sandbox"), provider),
        egress=_egress(top.table("egress")),
        environments=read_environments(top.table("environments")),
        cluster=_cluster(top.table("cluster")),
        settlement=settlement,
        chain=chain,
        rules=read_rules(top.table("rules")),
        reputation=read_reputation(top.table("reputation")),
    )
    top.finish()
    return config


def _network(table: TomlTable) -> NetworkConfig:
    network = NetworkConfig(
        listen=_multiaddrs(table, "listen", ("/ip4/0.0.0.0/tcp/4001", "/ip6/::/tcp/4001"), "/tcp/"),
        announce=_multiaddrs(table, "announce", (), "/tcp/"),
        bootstrap=_multiaddrs(table, "bootstrap", (), "/p2p/"),
        lan=table.boolean("lan", default=True),
        relay=table.boolean("relay", default=False),
        upnp=table.boolean("upnp", default=True),
    )
    if not network.listen:
        raise table.fault("listen", "must name at least one address", 'for example ["/ip4/0.0.0.0/tcp/4001"]')
    table.finish()
    return network


def _multiaddrs(table: TomlTable, key: str, default: tuple[str, ...], part: str) -> tuple[str, ...]:
    addresses = table.texts(key, default, most=64)
    for address in addresses:
        if not _MULTIADDR.fullmatch(address):
            raise table.fault(key, "holds something that is no multiaddr", 'for example "/ip4/0.0.0.0/tcp/4001"')
        if part not in address:
            tail = "/ip4/203.0.113.7/tcp/4001" + ("/p2p/16Uiu2HAm..." if part == "/p2p/" else "")
            raise table.fault(key, f"holds an address without {part}", f'for example "{tail}"')
    return addresses


def _provider(table: TomlTable) -> ProviderConfig:
    provider = ProviderConfig(
        enabled=table.boolean("enabled", False),
        price_e18_per_device_ms=table.price_e18("price_per_hour", "0.40"),
        gpus=_gpus(table),
        cpu_slots=_cpu_slots(table),
        cpu_cores_milli_per_slot=table.cores_milli("cpu_cores_per_slot", 2),
        memory_bytes_per_slot=table.size_bytes("memory_per_slot", "4 GiB", least=1 << 20),
        accept_buyers=_accept_buyers(table),
        payee=_account(table, "payee"),
        tier=table.choice("tier", TIER_SANDBOX, (TIER_SANDBOX, TIER_GVISOR, TIER_NONE)),
        meter_interval_ms=table.duration_ms("meter_interval", "10 s", least=100),
        voucher_timeout_ms=table.duration_ms("voucher_timeout", "60 s", least=1_000),
        max_unpaid=table.amount("max_unpaid", "0.25", least=1),
        prepay_ms=table.duration_ms("prepay", "0 s", least=0),
        prepay_from=table.choice("prepay_from", PREPAY_STRANGERS, (PREPAY_STRANGERS, PREPAY_EVERYBODY)),
        max_splits_bps=read_percent(table, "max_splits", "10 %"),
        grace_ms=table.duration_ms("grace", "2 min"),
        reclaim_notice_ms=table.duration_ms("reclaim_notice", "1 min"),
        leases=_leases(table),
        firm_penalty_ms=table.duration_ms("firm_penalty", "10 min"),
        shells=table.boolean("shells", True),
        max_fetch_bytes=table.size_bytes("max_fetch", "100 GiB"),
        mirror_bytes=table.size_bytes("mirrors", "10 GiB"),
        accepts=_accepts(table),
        facts=read_owners_facts(table.table("facts")),
        pricing=read_pricing(table.table("pricing")),
        share=read_share(table, table.cores_milli("cpu_cores_per_slot", 2)),
    )
    if provider.tier == TIER_GVISOR and provider.gpus != ():
        raise table.fault("gpus", 'must be empty with tier = "gvisor"', "runs in gVisor get no GPU here: gpus = []")
    table.finish()
    return provider


def _leases(table: TomlTable) -> tuple[str, ...]:
    leases = table.texts("leases", (LEASE_SPOT,))
    if not leases or len(set(leases)) != len(leases) or not set(leases) <= {LEASE_SPOT, LEASE_FIRM}:
        raise table.fault("leases", 'must name "spot", "firm" or both', 'leases = ["spot", "firm"]')
    return leases


def _gpus(table: TomlTable) -> tuple[str, ...] | None:
    if not table.has("gpus"):
        return None
    value = table.raw("gpus")
    if value == "all":
        return None
    if not isinstance(value, list) or not all(type(item) in (str, int) for item in value):
        raise table.fault("gpus", 'must be "all" or a list', 'for example gpus = ["GPU-6f1c...", "1"], or [] for none')
    return tuple(str(item).strip() for item in value)


def _cpu_slots(table: TomlTable) -> int | None:
    if table.has("cpu_slots") and isinstance(table.raw("cpu_slots"), str):
        if table.raw("cpu_slots") == "auto":
            return None
        raise table.fault("cpu_slots", 'must be a whole number or "auto"', "cpu_slots = 0 sells no CPU capacity")
    return table.integer("cpu_slots", 0, least=0, most=1024)


def _accept_buyers(table: TomlTable) -> frozenset[Address] | None:
    if not table.has("accept_buyers") or table.raw("accept_buyers") == "any":
        return None
    accounts = table.texts("accept_buyers", (), most=4096)
    if not accounts:
        raise table.fault("accept_buyers", "names nobody", "set enabled = false to lend nothing")
    try:
        return frozenset(parse_address(account) for account in accounts)
    except Malformed as fault:
        hint = 'accept_buyers = "any", or a list of accounts as `hansa balance` shows them'
        raise table.fault("accept_buyers", f"an account {fault.why}", hint) from None


def _accepts(table: TomlTable) -> tuple[Clause, ...]:
    if not table.has("accepts"):
        return ()
    text = table.raw("accepts")
    if not isinstance(text, str):
        raise table.fault("accepts", "must be text", 'for example accepts = "wall <= 24 h and network = none"')
    try:
        return parse_rules(text)
    except NeedsError as fault:
        raise table.fault("accepts", str(fault), fault.hint, fault.shown) from None


def _account(table: TomlTable, key: str) -> Address | None:
    text = table.text(key, "", empty=True)
    if not text:
        return None
    hint = f'{key} = "0x..." as `hansa wallet address` shows it, or leave it out'
    try:
        account = parse_address(text)
    except Malformed as fault:
        raise table.fault(key, fault.why, hint) from None
    if not any(account):
        raise table.fault(key, "is the zero address, which nobody holds", hint)
    return account


def _buyer(table: TomlTable, settlement: SettlementConfig) -> BuyerConfig:
    buyer = BuyerConfig(max_job_budget=table.amount("max_job_budget", "100.00"), payer=_account(table, "payer"))
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


def _egress(table: TomlTable) -> EgressConfig:
    egress = EgressConfig(
        allow=_hosts(table, "allow"),
        deny=_networks(table, "deny"),
        bytes_per_s=table.size_bytes("rate", "16 MiB", least=16 << 10),
        bytes_per_run=table.size_bytes("max_per_run", "20 GiB", least=1),
    )
    table.finish()
    return egress


def _hosts(table: TomlTable, key: str) -> tuple[str, ...]:
    try:
        return tuple(dict.fromkeys(normalise(text) for text in table.texts(key, ())))
    except ValueError as fault:
        hint = f'for example {key} = ["*.huggingface.co", "pypi.org:443"], or ["*"] for every public host'
        raise table.fault(key, f"holds something that is no host: {fault}", hint) from None


def _networks(table: TomlTable, key: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    try:
        return tuple(ipaddress.ip_network(text) for text in table.texts(key, ()))
    except ValueError as fault:
        raise table.fault(key, f"holds something that is no network: {fault}", f'{key} = ["11.22.0.0/16"]') from None


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
