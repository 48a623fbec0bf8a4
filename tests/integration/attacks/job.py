"""The job whose code the attacks are: tries them, and sends what came of each as a result."""

import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(ctx):
    """Try the modules that the parameters name; ``facts`` is what the attempts are told of the host."""
    done = subprocess.run(
        [sys.executable, "-P", str(HERE / "attempt.py"), *ctx.parameters["modules"]],
        input=json.dumps(ctx.parameters["facts"]),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    ctx.report(step=1)
    (ctx.outputs / "found.json").write_text(done.stdout)
