"""What somebody types who has never seen the command: nothing, too little, or what is nearly right."""

import pytest
from click.testing import CliRunner

from hansa.node.commands.cli import cli


@pytest.mark.parametrize("group", [[], ["node"], ["net"], ["ledger"], ["wallet"], ["chain"], ["agent"]])
def test_a_group_that_is_named_alone_shows_its_help_as_a_page(group: list[str]) -> None:
    alone, helped = CliRunner().invoke(cli, group), CliRunner().invoke(cli, [*group, "--help"])
    assert alone.exit_code == 2
    assert alone.stderr == helped.stdout
    assert alone.stdout == ""
    assert len(helped.stdout.splitlines()) > 5
