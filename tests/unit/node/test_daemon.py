"""One directory, one daemon: who comes second fails on the journal, and has touched nothing of the first's."""

from pathlib import Path

import pytest
from kit.memory_party import key

from hansa.node.config import FILE_NAME, parse_config
from hansa.node.daemon import Daemon
from hansa.node.faults import OperatorError
from hansa.node.first_setup import Wishes, config_text


def test_a_second_daemon_on_a_directory_fails_before_it_touches_the_first_ones_runs(tmp_path: Path) -> None:
    config = parse_config(config_text(Wishes(metrics_port=0)), tmp_path / FILE_NAME)
    first = Daemon(config, key(1), key(1001), None)
    try:
        (first.runs_dir / "a run").mkdir()
        with pytest.raises(OperatorError):
            Daemon(config, key(1), key(1001), None)
        assert (first.runs_dir / "a run").is_dir()
    finally:
        first.close()
