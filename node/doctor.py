"""``hansa doctor``: what this machine can do for the market and what stands in its way, looked at and not changed."""

import platform
import sys
from pathlib import Path

from hansa.node.cli_client import Daemon
from hansa.node.config import Config, load_config
from hansa.node.faults import OperatorError

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
    findings.append(_daemon(data_dir))
    findings.append(_sandbox(config))
    if config is not None:
        findings.append(_devices(config))
    return findings


def _daemon(data_dir: Path) -> Finding:
    try:
        daemon = Daemon(data_dir)
        try:
            view = daemon.get("/v1/node")
        finally:
            daemon.close()
    except OperatorError as fault:
        return "daemon", False, f"{fault.what}: {fault.hint}"
    return "daemon", True, f"{view.get('peer_id')} knows {len(view.get('peers', []))} peers"


def _sandbox(config: Config | None) -> Finding:
    from hansa.node.launcher import launch_with  # noqa: PLC0415  # late, as below
    from hansa.node.sandbox import check_sandbox  # noqa: PLC0415  # late: it brings the sandbox's own libraries in

    report = check_sandbox(launch=launch_with(config.sandbox.launcher if config else None))
    return "sandbox", report.available, report.reason


def _devices(config: Config) -> Finding:
    from hansa.node.inventory import take_inventory  # noqa: PLC0415  # late: it loads the driver's bindings
    from hansa.node.keys import account_address  # noqa: PLC0415

    try:
        found = take_inventory(account_address(config.keystore), config.provider)
    except OperatorError as fault:
        return "devices", False, f"{fault.what}: {fault.hint}"
    return "devices", True, found.note
