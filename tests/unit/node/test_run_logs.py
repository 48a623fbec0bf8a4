"""What runs print reaches who pays for them, and nobody else can put words there."""

from pathlib import Path

import pytest
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub

from hansa.node.daemon import run_logs
from hansa.proto.messages import RunLogSent


@pytest.mark.trio
async def test_what_is_said_of_a_lease_that_nobody_bought_here_is_not_kept_and_ends_nothing(tmp_path: Path) -> None:
    async with a_daemon(tmp_path, MemoryHub(), 1) as daemon:
        before = sorted(daemon.config.data_dir.rglob("*"))
        run_logs.keep(daemon, b"\x07" * 20, RunLogSent(lease=bytes(32), text="hello"))
        assert sorted(daemon.config.data_dir.rglob("*")) == before
