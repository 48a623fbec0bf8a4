"""A prepared sandbox becomes a run's, if it is there still."""

import subprocess
from types import SimpleNamespace

import pytest

from hansa.node.isolation.launcher_adoption import _inner_process


def test_a_sandbox_with_nobody_in_it_any_more_is_gone_and_ends_nothing():
    """The launcher hears of a sandbox that is gone as it does of a process; anything else would end all sandboxes."""
    with subprocess.Popen(["sleep", "60"]) as alone:
        try:
            with pytest.raises(ProcessLookupError, match="nobody in the sandbox"):
                _inner_process(SimpleNamespace(pid=alone.pid))
        finally:
            alone.kill()
    with pytest.raises(ProcessLookupError, match="nobody in the sandbox"):
        _inner_process(SimpleNamespace(pid=alone.pid))
