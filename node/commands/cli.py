"""The ``hansa`` command. Everything heavy is imported by the command that needs it, so that ``--help`` is quick.

An operator's mistake is one line and a hint on standard error, and exit code 2; never a traceback. A job that has
ended badly is exit code 1. With ``--json`` standard output carries one JSON document, or JSON lines, and nothing else.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from hansa.node.commands.cli_agent import AGENT_COMMANDS
from hansa.node.commands.cli_chain import CHAIN_COMMANDS
from hansa.node.commands.cli_devices import DEVICE_COMMANDS
from hansa.node.commands.cli_import import IMPORT_COMMANDS
from hansa.node.commands.cli_jobs import JOB_COMMANDS
from hansa.node.commands.cli_ledger import LEDGER_COMMANDS
from hansa.node.commands.cli_market import MARKET_COMMANDS, tenders
from hansa.node.commands.cli_metrics import METRICS_COMMANDS
from hansa.node.commands.cli_money import MONEY_COMMANDS
from hansa.node.commands.cli_net import net
from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.commands.cli_price import price
from hansa.node.commands.cli_receipt import RECEIPT_COMMANDS
from hansa.node.commands.cli_reputation import REPUTATION_COMMANDS
from hansa.node.commands.cli_shell import SHELL_COMMANDS
from hansa.node.commands.cli_statements import STATEMENT_COMMANDS
from hansa.node.commands.cli_status import status
from hansa.node.commands.cli_wallet import WALLET_COMMANDS
from hansa.node.faults import OperatorError, operator_error_in

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 130


class _Hansa(click.Group):
    """The group of all commands, and the one place where errors become lines."""

    def main(  # type: ignore[override]  # click's two overloads differ in standalone_mode, which is always ours here
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run a command and exit with its code."""
        extra.pop("standalone_mode", None)
        try:
            result = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.exit(result if isinstance(result, int) else 0)
        except OperatorError as fault:
            _complain(fault.what, fault.hint, fault.quote)
        except NoArgsIsHelpError as fault:
            # A group that is named alone: its help is the answer, and stays the page that it is.
            click.echo(fault.format_message(), err=True)
            sys.exit(EXIT_MISTAKE)
        except click.UsageError as fault:
            command = fault.ctx.command_path if fault.ctx is not None else "hansa"
            _complain(fault.format_message(), f"{command} --help shows what is possible")
        except click.ClickException as fault:
            _complain(fault.format_message(), "hansa --help shows what is possible")
        except (KeyboardInterrupt, click.Abort):
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:
            # Whoever read our output has gone (`hansa jobs | head`). Python would complain again while it exits.
            _say_no_more()
            sys.exit(0)
        except Exception as fault:
            if _is_of_output(fault):
                _say_no_more()
                _complain(f"what this command says cannot be written: {fault}", "have it go elsewhere")
            mistake = operator_error_in(fault)
            if mistake is None:
                raise
            _complain(mistake.what, mistake.hint)


def _is_of_output(fault: Exception) -> bool:
    """Whether it was click that could not write: a full disk behind standard output need not be the node's."""
    *_, (innermost, _) = traceback.walk_tb(fault.__traceback__)
    return isinstance(fault, OSError) and innermost.f_code is click.echo.__code__


def _say_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(what: str, hint: str, quote: str = "") -> NoReturn:
    """One line and a hint, the place between them. All may hold a stranger's words, so all are made plain."""
    from hansa.node.plain_text import plain

    click.echo(f"hansa: {plain(what)}", err=True)
    for line in quote.splitlines()[:4]:
        click.echo(f"    {plain(line)}", err=True)
    if hint:
        click.echo(f"hint: {plain(hint)}", err=True)
    sys.exit(EXIT_MISTAKE)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from hansa.node.commands.installed_from import version_words

        click.echo(f"hansa, version {version_words()}")
        context.exit()


@click.group(cls=_Hansa, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version, with the commit where that is known, and exit.",
)
def cli() -> None:
    """Rent out your GPUs, or train on other people's, with nobody in the middle."""


@cli.command()
@with_data
@with_json
@click.option(
    "--provider/--buyer", "provides", default=False, help="Lend this machine's devices, or only buy (default)."
)
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Where to listen: /ip4/0.0.0.0/tcp/4001")
@click.option("--announce", multiple=True, metavar="MULTIADDR", help="What to tell others instead.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="A node to start from, with its /p2p/ name.")
@click.option("--region", default="", help="Where the machine stands, in your own words.")
@click.option("--price", "price_per_hour", default="0.40", show_default=True, help="For one device and one hour.")
@click.option("--cpu-slots", default="0", show_default=True, help="Slots of CPU capacity to sell, or auto.")
@click.option("--metrics-port", default=9477, show_default=True, help="On 127.0.0.1; 0 turns it off.")
def init(data_dir: Path, as_json: bool, cpu_slots: str, **wishes: Any) -> None:
    """Make a node: keys, and a config file that explains itself. Nothing is ever overwritten.

    In a directory whose node.key was lost it makes a new one, and nothing else: the node gets a new name.
    """
    from hansa.node.commands.first_setup import Wishes, set_up
    from hansa.proto.signing import checksum_address

    wishes["listen"] = wishes["listen"] or Wishes().listen
    slots = int(cpu_slots) if cpu_slots.isascii() and cpu_slots.isdigit() and len(cpu_slots) < 9 else cpu_slots
    made = set_up(data_dir, Wishes(cpu_slots=slots, **wishes))
    account = checksum_address(made.account)
    if as_json:
        view = {"data": str(made.config.data_dir), "account": account, "peer_id": made.peer_id}
        print_json(view | ({"renamed": True} if made.renamed else {}))
        return
    if made.renamed:
        click.echo(
            f"Made a new node key in {made.config.data_dir}: this node has a new name. Nothing else was changed."
        )
        click.echo(f"  account  {account}   as before")
        click.echo(f"  node     {made.peer_id}   its new name; whoever has the old one under bootstrap needs this one")
        return
    provides = "lends its devices" if made.config.provider.enabled else "only buys; provider.enabled lends devices"
    click.echo(f"Made a node in {made.config.data_dir} (mode 0700).")
    click.echo(f"  account  {account}   earns and pays; its key is in account.json")
    click.echo(f"  node     {made.peer_id}   its name in the network")
    click.echo(f"  config   {made.config.data_dir / 'config.toml'}   {provides}")
    click.echo("Keep a copy of account.json and account.password, apart from each other: nobody else can restore them.")
    click.echo(f"Next: hansa node run{_data_argument(data_dir)}")


def _data_argument(data_dir: Path) -> str:
    from hansa.node.settings.config import default_data_dir

    return "" if data_dir == default_data_dir() else f" --data {data_dir}"


@cli.group()
def node() -> None:
    """Run this machine's node."""


@node.command()
@with_data
@with_json
@click.option("--relay", is_flag=True, help="Hand on the bytes of nodes that nobody can dial, as [network] relay does.")
@click.option(
    "--stop-on-parent-exit", is_flag=True, hidden=True, help="End when the process that started this one has."
)
def run(data_dir: Path, as_json: bool, relay: bool, stop_on_parent_exit: bool) -> None:
    """Run the daemon until it is told to stop (Ctrl-C or SIGTERM)."""
    from dataclasses import replace

    from hansa.node.api.daemon_lock import locked
    from hansa.node.settings.config import load_config

    config = load_config(data_dir)
    if relay:
        config = replace(config, network=replace(config.network, relay=True))
    with locked(config.data_dir):
        # Only now: to import all of a daemon takes a second or two, and others are told meanwhile that one is starting.
        from hansa.node.daemon import node_process

        node_process.run(config, as_json=as_json, stop_on_parent_exit=stop_on_parent_exit)


for _node_command in (status, price, tenders, *DEVICE_COMMANDS):
    node.add_command(_node_command)


cli.add_command(net)


@cli.command(hidden=True)
@click.argument("socket")
def builder(socket: str) -> None:
    """Run tools in rooms for a daemon that may not make any: listens at a path."""
    from hansa.node.runs.builder import main as serve_builder

    serve_builder([socket])


@cli.command(hidden=True)
@click.argument("socket")
def launcher(socket: str) -> None:
    """Make sandboxes for a daemon: on an inherited socket (its number), or listening at a path."""
    from hansa.node.isolation.launcher import main as serve_launcher

    serve_launcher([socket])


@cli.command()
@with_json
@click.option("--keep", is_flag=True, help="Keep the four nodes' directory, logs included.")
def demo(as_json: bool, keep: bool) -> int:
    """Show the whole market on this machine: three providers train a real job and are paid for it."""
    from hansa.node.commands.demo import run_demo

    return run_demo(as_json=as_json, keep=keep)


@cli.command()
@with_data
@with_json
def doctor(data_dir: Path, as_json: bool) -> int:
    """Look at this machine: config, keys, daemon, sandbox, devices. Changes nothing."""
    from hansa.node.commands.doctor import examine

    findings = examine(data_dir)
    if as_json:
        print_json({"findings": [{"name": name, "ok": ok, "what": what} for name, ok, what in findings]})
    else:
        from hansa.node.plain_text import plain

        for name, ok, what in findings:
            click.echo(f"{'ok ' if ok else 'BAD'}  {name:8} {plain(' '.join(what.split()))}")
    return 0 if all(ok for _, ok, _ in findings) else 1


for _command in (
    *AGENT_COMMANDS,
    *CHAIN_COMMANDS,
    *IMPORT_COMMANDS,
    *JOB_COMMANDS,
    *SHELL_COMMANDS,
    *MARKET_COMMANDS,
    *METRICS_COMMANDS,
    *LEDGER_COMMANDS,
    *MONEY_COMMANDS,
    *REPUTATION_COMMANDS,
    *RECEIPT_COMMANDS,
    *STATEMENT_COMMANDS,
    *WALLET_COMMANDS,
):
    cli.add_command(_command)


def main() -> None:
    """The console script's entry point."""
    cli.main(prog_name="hansa")
