"""Becomes a program at the terminal on its standard input: ``python -m hansa.worker.terminal PROGRAM [ARGUMENT ...]``.

It is started in a session of its own; all that is left to do is to make the terminal that session's.
"""

import fcntl
import os
import signal
import sys
import termios

CANNOT_START = 127


def main() -> None:
    """Take the terminal and become the program, or say there why not."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for signum in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    try:
        os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - there is no shell here, on purpose
    except OSError as error:
        sys.stderr.write(f"{sys.argv[1]}: {error.strerror}\r\n")
        sys.stderr.flush()
        os._exit(CANNOT_START)


if __name__ == "__main__":
    main()
