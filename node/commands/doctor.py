"""``hansa doctor``: what this machine can do for the market and what stands in its way, looked at and not changed."""

import platform
import sys
import tempfile
from pathlib import Path

from hansa.node.api.cli_client import DaemonClient
from hansa.node.faults import OperatorError, storage_hint
from hansa.node.settings.chain_config import ChainConfig
from hansa.node.settings.config import Config, load_config
from hansa.proto.market_documents import TIER_NONE, TIER_SANDBOX

Finding = tuple[str, bool, str]


def examine(data_dir: Path) -> list[Finding]:
    """Everything that was found: its name, whether it is as it should be, and what it is in words."""
    findings: list[Finding] = [
        ("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")
    ]
    config: Config | None = None
    try:
        config = load_config(data_dir)
        findings.append(("config", True, f"{data_dir}: reads well"))
    except OperatorError as fault:
        findings.append(("config", False, f"{fault.what}: {fault.hint}"))
    daemon = _daemon(data_dir)
    if config is not None:
        findings.append(_keys(config, daemon_runs=daemon[0][1]))
    findings += daemon
    findings += _network(data_dir)
    if config is not None and config.chain is not None:
        findings.append(_chain(config.chain))
    findings += _sandbox(config)
    if config is not None:
        findings += _furnishings(config)
        findings += _price_program(config)
        findings.append(_devices(config))
    return findings


def _keys(config: Config, *, daemon_runs: bool) -> Finding:
    """Whether the daemon would get its two keys open. Nothing of them is told but the account's address."""
    from hansa.node.chain.keys import load_node_key  # noqa: PLC0415  # late: they bring the cryptography in
    from hansa.node.chain.keystore import open_unattended  # noqa: PLC0415
    from hansa.proto.signing import checksum_address  # noqa: PLC0415

    if daemon_runs and config.keystore.exists() and not (config.node_key.exists() and config.password_file.exists()):
        # systemd hands credentials to the daemon alone, so what is not here was handed to it.
        return "keys", True, "not all are in files here; the daemon runs, so it has them as credentials"
    try:
        load_node_key(config.node_key)
        account = open_unattended(config.keystore, config.password_file)
    except OperatorError as fault:
        return "keys", False, f"{fault.what}: {fault.hint}"
    return (
        "keys",
        True,
        f"the node's key reads well, and the password opens account {checksum_address(account.address)}",
    )


def _daemon(data_dir: Path) -> list[Finding]:
    from hansa.node.plain_text import plain  # noqa: PLC0415  # late, as below

    try:
        daemon = DaemonClient(data_dir)
        try:
            view = daemon.get("/v1/node")
        finally:
            daemon.close()
    except OperatorError as fault:
        return [("daemon", False, f"{fault.what}: {fault.hint}")]
    peers = len(view.get("peers", []))
    found = ("daemon", True, f"{view.get('peer_id')} knows {peers} {'peer' if peers == 1 else 'peers'}")
    waiting = [
        ("money", False, f"job {plain(job.get('job'), 64)[:12]}: {plain(job.get('warning'), 300)}")
        for job in view.get("waiting_for_money", [])
    ]
    return [found, *waiting]


def _network(data_dir: Path) -> list[Finding]:
    """How others reach this node, and its clock: asked of the daemon, and no finding where there is none."""
    from hansa.node.commands.cli_status import clock_fault  # noqa: PLC0415  # late, as below
    from hansa.node.plain_text import plain  # noqa: PLC0415  # late, as below

    try:
        daemon = DaemonClient(data_dir)
        try:
            view = daemon.get("/v1/net")
            wrong = clock_fault(daemon.get("/v1/node"))
        finally:
            daemon.close()
    except OperatorError:
        return []
    reached = plain(view.get("reached"), 40)
    words = f"reached {reached}" if reached not in ("not known", "only outgoing") else reached
    advice = "; ".join(plain(each, 200) for each in view.get("advice", []))
    said = [each for each in view.get("opinions", []) if each.get("dialled")]
    got = sum(each.get("reached_at") is not None for each in said)
    others = ", ".join(plain(each.get("peer_id"), 64)[-10:] for each in said) or "nobody"
    return [
        ("clock", not wrong, wrong or "nothing says that it is wrong"),
        ("network", reached != "only outgoing", f"{words}; {advice}" if advice else words),
        ("autonat", True, f"{plain(view.get('autonat'), 20)}: {got} of {len(said)} that tried got through ({others})"),
        ("upnp", True, plain(view["upnp"], 300) if view.get("upnp") else "not asked"),
    ]


def _chain(config: ChainConfig) -> Finding:
    """Whether the chain's nodes answer, and whether escrow and token are what they must be."""
    from hansa.node.chain.chain_settling import UNAUDITED  # noqa: PLC0415  # late, as below
    from hansa.node.chain.evm_currency import look_at_chain  # noqa: PLC0415

    try:
        symbol = look_at_chain(config)
    except OperatorError as fault:
        return "chain", False, f"{fault.what}: {fault.hint}"
    alone = "; one node alone is believed whatever it says: name two" if len(config.rpc) == 1 else ""
    return "chain", True, f"settles in {symbol} on chain {config.currency.chain_id}; {UNAUDITED}{alone}"


def _sandbox(config: Config | None) -> list[Finding]:
    """Whether runs can be made in this node's tier; beside it, without blame, every tier that has a name."""
    from hansa.node.isolation.launcher_link import launch_with  # noqa: PLC0415  # late, as below
    from hansa.node.isolation.preflight import check_sandbox, check_tiers  # noqa: PLC0415  # late: it brings the sandbox's parts in

    launch = launch_with(config.sandbox.launcher if config else None)
    wanted = config.provider.tier if config else TIER_SANDBOX
    report = check_sandbox(launch=launch, tier=TIER_SANDBOX if wanted == TIER_NONE else wanted)
    findings: list[Finding] = [("sandbox", report.available, report.reason)]
    for tier in check_tiers(report, launch=launch):
        means = "can be had" if tier.available else "cannot be had"
        findings.append((f"tier {tier.tier}", True, f"{means}: {tier.reason}"))
    return findings


def _furnishings(config: Config) -> list[Finding]:
    """Whether jobs can bring packages and images. A node that lends nothing, or no packages, needs neither."""
    if not config.provider.enabled:
        return []
    try:
        return _try_furnishings(config)
    except OSError as fault:
        hint = storage_hint(fault, f"the node must be able to write below {config.data_dir}")
        return [("packages", False, f"they cannot be tried: {fault.strerror} ({fault.filename}): {hint}")]


def _try_furnishings(config: Config) -> list[Finding]:
    from hansa.node.isolation.trees import Trees  # noqa: PLC0415
    from hansa.node.runs.builder import tool_runner  # noqa: PLC0415  # late, as above
    from hansa.node.runs.environments import check_environments  # noqa: PLC0415
    from hansa.node.runs.images import check_images  # noqa: PLC0415

    run = tool_runner(config.environments.builder)
    # Beside the daemon's own, which it may be filling at this moment; a builder sees only what lies below that.
    place = config.data_dir / "environments"
    with tempfile.TemporaryDirectory(dir=place if place.exists() else None, prefix="hansa-doctor-") as scratch:
        Path(scratch).chmod(0o755)
        trees = Trees(Path(scratch) / "trees", quota_bytes=config.environments.quota_bytes)
        packages = "off, by environments.enabled"
        if config.environments.enabled:
            packages = check_environments(trees, run)
        images = check_images(trees, run)
    works = not packages or not config.environments.enabled
    return [
        ("packages", works, packages or f"jobs can have their own, from {config.environments.index}"),
        ("images", True, f"jobs cannot bring any: {images}" if images else "jobs can bring their own"),
    ]


def _price_program(config: Config) -> list[Finding]:
    """Whether the owner's pricing program names a price: asked of the daemon, since its rights are what matters."""
    from hansa.node.plain_text import plain  # noqa: PLC0415  # late, as above

    if not config.provider.enabled or not config.provider.pricing.program:
        return []
    name = "price program"
    try:
        daemon = DaemonClient(config.data_dir)
        try:
            said = daemon.get("/v1/price?devices=1").get("program")
        finally:
            daemon.close()
    except OperatorError:
        said, tried = _try_price_program(config), "tried without the daemon, whose rights may be others"
    else:
        tried = "asked by the daemon"
        if said is None:
            return [(name, False, "the daemon was started without it: start it again")]
    if said.get("fault"):
        return [(name, False, f"{plain(said['fault'], 300)} ({tried}): {plain(said.get('hint', ''), 200)}")]
    price = said.get("price_per_hour")
    words = (
        f"names {plain(price, 60)} for a device and an hour" if price else f"declines: {plain(said['decline'], 200)}"
    )
    return [(name, True, f"{words} ({tried})")]


def _try_price_program(config: Config) -> dict[str, str]:
    """As ``/v1/price`` tells it, from this very process."""
    from time import time_ns  # noqa: PLC0415  # late, as above

    import trio  # noqa: PLC0415

    from hansa.node.api.price_desk import ask_without_daemon  # noqa: PLC0415
    from hansa.node.chain.keystore import account_address  # noqa: PLC0415
    from hansa.node.devices.inventory import take_inventory  # noqa: PLC0415

    try:
        account = account_address(config.keystore)
        devices = take_inventory(account, config.provider).devices
        if not devices:
            return {"fault": "there is no device to ask about", "hint": "hansa doctor says why below"}
        return trio.run(ask_without_daemon, config, account, devices, time_ns() // 1_000_000)
    except OperatorError as fault:
        return {"fault": fault.what, "hint": fault.hint}


def _devices(config: Config) -> Finding:
    from hansa.node.chain.keystore import account_address  # noqa: PLC0415
    from hansa.node.devices.inventory import take_inventory  # noqa: PLC0415  # late: it loads the driver's bindings

    try:
        found = take_inventory(account_address(config.keystore), config.provider)
    except OperatorError as fault:
        return "devices", False, f"{fault.what}: {fault.hint}"
    lends = bool(found.devices) or not config.provider.enabled or config.cluster.listen is not None
    return "devices", lends, found.note
