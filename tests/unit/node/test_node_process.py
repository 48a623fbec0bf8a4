"""What the process of a node asks of the system before it opens anything."""

import json
import subprocess
import sys
from pathlib import Path

from hansa.node.commands.first_setup import Wishes, config_text
from hansa.node.daemon.node_process import MOST_FILES
from hansa.node.settings.config import FILE_NAME

PROGRAM = """
import json, resource, sys
from pathlib import Path
from hansa.node.daemon.node_process import run
from hansa.node.faults import OperatorError
from hansa.node.settings.config import load_config
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
try:
    run(load_config(Path(sys.argv[1])))
except OperatorError:
    print(json.dumps([resource.getrlimit(resource.RLIMIT_NOFILE), hard]))
"""


def test_a_node_takes_as_many_descriptors_as_it_may(tmp_path: Path) -> None:
    """In a process of its own, since it changes what the whole process may do. Without keys it ends right after."""
    (tmp_path / FILE_NAME).write_text(config_text(Wishes(metrics_port=0)))
    told = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    (soft, still_hard), hard = json.loads(told.stdout)
    assert still_hard == hard
    assert soft == (MOST_FILES if hard < 0 else min(MOST_FILES, hard))
