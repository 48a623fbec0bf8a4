"""What commands print of a view goes through something that makes it plain, or is one of this node's own few words.

Read from the source: a value that is taken out of a view (``view["x"]``, ``view.get("x")``) and put into a text that is
printed as it stands is found here, wherever somebody writes it. Tables make their cells plain themselves.
"""

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).resolve().parents[3] / "node" / "commands").glob("cli*.py"))
OWN = {
    "cli_chain.py": {"chain_id", "config", "escrow", "state", "token", "tokens", "url", "words"},
    "cli_devices.py": {"lease"},
    "cli_jobs.py": {"budget", "job", "phase"},
    "cli_ledger.py": {
        *("account", "file", "ledger", "may_owe_us", "netted", "owes_us", "paid_by_us", "paid_to_us", "root", "size"),
        *("we_owe", "words"),
    },
    "cli_market.py": {"unseen"},
    "cli_net.py": {"barred_for_ms", "bytes", "circuits", "live_direct", "live_relayed", "places", "strikes"},
    "cli_reputation.py": {"account"},
    "cli_wallet.py": {"address", "keystore", "name"},
}
"""What is this node's own: ids and accounts that it worked out or checked, amounts and counts that it formatted, words
of its code, and what the operator's own commands made on this machine."""
PRINTS = ("echo", "secho", "_say", "say")


def printed(tree: ast.AST) -> Iterator[ast.expr]:
    """The arguments of everything that prints."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in PRINTS:
                yield from call.args


def raw_parts(value: ast.expr) -> Iterator[ast.expr]:
    """What of a text is there as it came: not what is handed to a function first."""
    match value:
        case ast.JoinedStr(values=parts):
            for part in parts:
                yield from raw_parts(part)
        case ast.FormattedValue(value=inner):
            yield from raw_parts(inner)
        case ast.BinOp(left=left, right=right):
            yield from raw_parts(left)
            yield from raw_parts(right)
        case ast.IfExp(body=body, orelse=otherwise):
            yield from raw_parts(body)
            yield from raw_parts(otherwise)
        case ast.BoolOp(values=parts):
            for part in parts:
                yield from raw_parts(part)
        case ast.Subscript() | ast.Call():
            yield value


def key_of(value: ast.expr) -> str | None:
    """The key by which a part was taken out of a view, if it was."""
    match value:
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Subscript(value=inner, slice=ast.Slice()):
            return key_of(inner)
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]):
            return key
        case ast.Call(func=ast.Name(id="str"), args=[inner]):
            return key_of(inner)
    return None


def found_in(source: str, own: Collection[str] = ()) -> list[tuple[int, str]]:
    return [
        (part.lineno, key)
        for argument in printed(ast.parse(source))
        for part in raw_parts(argument)
        if (key := key_of(part)) is not None and key not in own
    ]


def test_the_commands_are_where_they_are_looked_for() -> None:
    assert {"cli_jobs.py", "cli_tables.py", "cli_screen.py"} <= {file.name for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_nothing_of_a_view_is_printed_as_it_came(file: Path) -> None:
    assert found_in(file.read_text(), OWN.get(file.name, ())) == []


@pytest.mark.parametrize(
    "line",
    [
        'click.echo(view["reason"])',
        "click.echo(f\"x {view['reason']}\")",
        'click.echo("x " + view.get("why", ""))',
        'click.echo(f"x {view.get(\'why\') or 1}" if view else "")',
        'click.echo(str(view["reason"])[:12])',
        "say(f\"{view['reason'][:20]}\")",
    ],
)
def test_such_a_line_would_be_found(line: str) -> None:
    assert found_in(line)


@pytest.mark.parametrize(
    "line", ['click.echo(plain(view["reason"]))', "click.echo(f\"{len(view['peers'])}\")", 'f(view["x"])']
)
def test_and_a_line_that_makes_it_plain_would_not(line: str) -> None:
    assert not found_in(line)
