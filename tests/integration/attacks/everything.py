"""Every attack that leaves its run alive, one after the other, and then the runner's own voice."""

import time

import forger
import job


def main(ctx):
    """Try all modules, then speak to the daemon in the runner's name until it believes that we have finished."""
    job.main(ctx)
    time.sleep(0.5)
    ctx._line.tell("log", "stdout", forger.Command("floods"))
    time.sleep(60)
