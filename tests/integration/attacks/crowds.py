"""As many threads and processes as can be had."""

import errno
import os
import threading
import time
from pathlib import Path

from attempt import attempt


@attempt
def threads(facts):
    """How many could be begun, and what stopped it."""
    ending = threading.Event()
    begun = 0
    threading.stack_size(64 << 10)
    try:
        while begun < 3 * facts["processes"]:
            threading.Thread(target=ending.wait, daemon=True).start()
            begun += 1
    except RuntimeError as error:
        return [begun, str(error)]
    finally:
        ending.set()
    return [begun, "done"]


@attempt
def forks_of_forks(facts):
    """Each child makes two, so that nobody is the parent of all."""
    reading, writing = os.pipe()
    deadline = time.monotonic() + 3

    def split():
        while time.monotonic() < deadline:
            for _ in range(2):
                try:
                    if os.fork() == 0:
                        split()
                except OSError as error:
                    os.write(writing, errno.errorcode[error.errno].encode() + b"\n")
                    time.sleep(0.2)
        os._exit(0)

    if os.fork() == 0:
        split()
    time.sleep(2)
    alive = sum(1 for entry in Path("/proc").iterdir() if entry.name.isdigit())
    os.close(writing)
    return [alive, os.read(reading, 6).decode().strip()]
