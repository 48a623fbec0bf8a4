"""Takes the runner over and speaks to the daemon in its name. Nothing stops that: the two share a sandbox.

The runner unpickles what a worker gives to Ray, and unpickling runs code; so the worker gives it code.
"""

import time


class Command:
    """Runs in whatever process unpickles it."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return exec, (
            f"import sys; sys.path.insert(0, '/job/code'); import inside_runner; inside_runner.{self.name}()",
        )


def main(ctx):
    """Have the runner do what the parameter names."""
    ctx.report(step=1)
    time.sleep(0.3)
    ctx._line.tell("log", "stdout", Command(ctx.parameters["forgery"]))
    time.sleep(ctx.parameters.get("then_s", 60))
