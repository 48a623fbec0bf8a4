"""``hansa demo``: the whole market on one machine, with nothing pretended.

Three providers at different prices and one buyer are real daemons that find each other over libp2p on loopback. The
buyer submits ``examples/digits``; the screen is the one of ``hansa watch``; and at the end every node is asked for its
own books. Exit code 0 only if the digits were learnt, every shard finished and the books balance to the last unit.
"""

import json
import signal
import sys
import time
from importlib.resources import as_file, files
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hansa.node.api.cli_client import DaemonAway
from hansa.node.commands.cli_jobs import PATIENCE_S, submit_job
from hansa.node.commands.cli_screen import follow
from hansa.node.commands.demo_nodes import DemoNode, DemoNodes
from hansa.node.commands.demo_verdict import Account, Verdict, judge
from hansa.node.faults import ConfigError, OperatorError
from hansa.node.plain_text import short_account

PRICES = ("0.30", "0.45", "0.60")
MEETING_PATIENCE_S = 90.0
SETTLING_PATIENCE_S = 30.0
POLL_S = 0.25


class _Told(BaseException):
    """SIGTERM came: go, but clean up first. Like KeyboardInterrupt it is no ``Exception`` that code may swallow."""


def _tell(_number: int, _frame: FrameType | None) -> NoReturn:
    raise _Told


def run_demo(*, as_json: bool, keep: bool) -> int:
    """Run the demo and answer the exit code: 0 all held, 1 a claim failed, 143 told to stop.

    Args:
        as_json: one result document on standard output; what happens meanwhile goes to standard error.
        keep: leave the directory where it is.

    Raises:
        OperatorError: a daemon did not start, or the nodes did not find each other.
    """
    signal.signal(signal.SIGTERM, _tell)
    out = sys.stderr if as_json else sys.stdout
    console = Console(file=out, highlight=False, markup=False)
    try:
        with DemoNodes(prices=PRICES) as nodes:
            if keep:
                nodes.keep()
            passed = False
            try:
                verdict = _play(nodes, console, out)
                passed = verdict.passed
            finally:
                failed = not passed and not isinstance(sys.exc_info()[1], KeyboardInterrupt | _Told)
                if failed and not keep:
                    nodes.keep()
                if failed or keep:
                    console.print(f"logs and data are kept: {nodes.directory}/*/node.log", soft_wrap=True)
            _show(verdict, console)
    except _Told:
        return 128 + signal.SIGTERM
    if as_json:
        sys.stdout.write(json.dumps(verdict.as_json()) + "\n")
    return 0 if verdict.passed else 1


def _play(nodes: DemoNodes, console: Console, out: IO[str]) -> Verdict:
    console.print("Three providers and a buyer: four daemons on this machine, found over libp2p.")
    nodes.make()
    nodes.start()
    with console.status("the daemons start"):
        _await_meeting(nodes, console)
    for node in nodes.providers:
        console.print(f"  {node.name}  {node.account}  at {node.price_per_hour} per hour")
    job = _submit(nodes.buyer)
    console.print(f"submitted examples/digits as job {job[:12]}")
    follow(nodes.buyer.daemon.watch(job, PATIENCE_S), out)
    return _settled_verdict(nodes, job)


def _await_meeting(nodes: DemoNodes, console: Console) -> None:
    """Wait until the buyer knows every provider, and say how far that is."""
    deadline = time.monotonic() + MEETING_PATIENCE_S
    known = -1
    while True:
        nodes.check_alive()
        try:
            found = {str(provider.get("account")) for provider in nodes.buyer.daemon.get("/v1/providers")["providers"]}
        except DaemonAway:
            found = set()
        met = len(found & {node.account for node in nodes.providers})
        if met != known:
            known = met
            console.print(f"the buyer knows {met} of {len(nodes.providers)} providers")
        if met == len(nodes.providers):
            return
        if time.monotonic() > deadline:
            raise OperatorError(f"after {MEETING_PATIENCE_S:.0f} s the buyer knows {met} providers", "see the logs")
        time.sleep(POLL_S)


def _submit(buyer: DemoNode) -> str:
    example = files("hansa.node") / "examples" / "digits"
    if not example.is_dir():
        raise ConfigError("examples/digits is missing from this installation", "install hansa again")
    with as_file(example) as directory:
        return submit_job(buyer.daemon, Path(directory))


def _settled_verdict(nodes: DemoNodes, job: str) -> Verdict:
    """Ask everybody, again and again for a while: a last voucher may be on its way when the job has ended."""
    deadline = time.monotonic() + SETTLING_PATIENCE_S
    while True:
        nodes.check_alive()
        view: dict[str, Any] = nodes.buyer.daemon.get(f"/v1/jobs/{job}")
        accounts = [
            Account(name=node.name, account=node.account, balance=node.daemon.get("/v1/balance"))
            for node in nodes.nodes
        ]
        verdict = judge(view, accounts[:-1], accounts[-1])
        if (verdict.passed and view.get("settled")) or view.get("phase") != "succeeded":
            return verdict
        if time.monotonic() > deadline:
            return verdict
        time.sleep(POLL_S)


def _show(verdict: Verdict, console: Console) -> None:
    console.print()
    table = Table(title="who earned what", title_justify="left")
    for name in ("provider", "account", "earned (its books)", "vouched (buyer)", "metered"):
        table.add_column(name, justify="left" if name in ("provider", "account") else "right", overflow="fold")
    for each in verdict.earnings:
        account = short_account(each.account)
        table.add_row(*map(Text, (each.provider, account, each.earned, each.vouched, each.metered)))
    console.print(table)
    for check in verdict.checks:
        mark, style = ("ok ", "green") if check.holds else ("NO ", "bold red")
        console.print(Text(mark, style=style) + Text(f" {check.claim}: {check.found}"), soft_wrap=True)
