"""`hansa agent`: the other machines of a provider. Invite and remove them where the daemon runs, join and run there."""

import sys
from pathlib import Path
from typing import Any

import click

from hansa.node.commands.cli_options import print_json, with_data, with_json
from hansa.node.faults import ConfigError

LONGEST_LINE_CHARS = 4096


@click.group()
def agent() -> None:
    """Lend several machines as one provider."""


@agent.command()
@with_data
@with_json
@click.option("--address", default="", metavar="HOST:PORT", help="Where the other machine reaches this one.")
@click.option("--for", "lasts", default="15 min", show_default=True, help="How long the line can be used.")
def invite(data_dir: Path, as_json: bool, address: str, lasts: str) -> None:
    """Print a line that joins one more machine; it works once. To be run on the daemon's machine."""
    from hansa.node.agents.agent_setup import invite as make

    line = make(data_dir, address=address, lasts=lasts)
    if as_json:
        print_json({"line": line})
        return
    click.echo("On the other machine, within " + lasts + ":")
    click.echo("  hansa agent join --data DIR")
    click.echo("which asks for this line:")
    click.echo(f"  {line}")


@agent.command()
@with_data
@with_json
@click.argument("line", required=False, default="")
@click.option("--line-file", type=click.Path(path_type=Path), help="A file with the line in it; - is standard input.")
@click.option("--name", default="", help="What to call this machine. Default: its host's name.")
@click.option("--gpu", "gpus", multiple=True, metavar="UUID", help="A GPU to lend; all, if none is named.")
@click.option("--no-gpus", is_flag=True, help="Lend no GPU.")
@click.option("--cpu-slots", default="0", show_default=True, help="Slots of CPU capacity to sell, or auto.")
@click.option("--cpu-cores-per-slot", default="2", show_default=True, help="CPU cores of one slot.")
@click.option("--memory-per-slot", default="4 GiB", show_default=True, help="Main memory of one slot.")
@click.option("--launcher", default="", help="The socket of a launcher that runs as a service of its own.")
def join(data_dir: Path, as_json: bool, line: str, line_file: Path | None, no_gpus: bool, **wishes: Any) -> None:
    """Join this machine to a provider, with a line that `hansa agent invite` printed.

    The line is a secret. It is asked for at the terminal, or read from standard input or a file. As an argument (LINE)
    every user of this machine could read it while the command runs.
    """
    from hansa.node.agents.agent_setup import join as enrol

    if line:
        click.echo("warning: other users of this machine can read the line while it is an argument", err=True)
    else:
        line = _read_line(line_file)
    wishes["gpus"] = () if no_gpus else wishes["gpus"] or None
    place = enrol(data_dir, line, **wishes)
    if as_json:
        print_json({"name": place.name, "host": place.host, "port": place.port, "data": str(data_dir)})
        return
    click.echo(f"This machine is {place.name} now, of the provider at {place.host}:{place.port}.")
    click.echo(f"What it lends is in {data_dir / 'agent.toml'}.")
    click.echo(f"Next: hansa agent run --data {data_dir}")


def _read_line(file: Path | None) -> str:
    """The line, from where it does not show."""
    if file is not None and str(file) != "-":
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"{file} cannot be read: {fault}", "name a file that holds the line") from None
    if file is None and sys.stdin.isatty():
        return str(click.prompt("The line that `hansa agent invite` printed", hide_input=True, err=True)).strip()
    return sys.stdin.readline(LONGEST_LINE_CHARS).strip()


@agent.command()
@with_data
def run(data_dir: Path) -> None:
    """Lend this machine's devices until told to stop (Ctrl-C or SIGTERM)."""
    from hansa.node.agents.agent_setup import run_agent

    run_agent(data_dir)


@agent.command(name="list")
@with_data
@with_json
def list_machines(data_dir: Path, as_json: bool) -> None:
    """Show the machines that are enrolled, and what each lends."""
    from hansa.node.agents.agent_setup import machines
    from hansa.node.plain_text import plain

    found = machines(data_dir)
    if as_json:
        print_json({"machines": found})
        return
    if not found:
        click.echo("No machine is enrolled; `hansa agent invite` begins it.")
    for machine in found:
        state = {True: "here", False: "away", None: "?   "}[machine["connected"]]
        click.echo(f"{plain(machine['name']):32} {state}  {plain(machine['note'])}")


@agent.command()
@with_data
@click.argument("name")
def remove(data_dir: Path, name: str) -> None:
    """Admit a machine no longer. What runs on it is ended within a second or two."""
    from hansa.node.agents.agent_setup import remove as forget

    forget(data_dir, name)
    click.echo(f"{name} is not one of this provider's machines any more.")


AGENT_COMMANDS = (agent,)
