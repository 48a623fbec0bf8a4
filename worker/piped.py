"""Runs a program with pipes, at a terminal: ``python -m hansa.worker.piped PROGRAM [ARGUMENT ...]``.

For whoever has no terminal at the other end: ``hansa exec JOB -- cat model.bin > model.bin``. The bytes are passed as
they are, standard output and error stay apart, and the end of the input is told; see ``hansa.proto.pipes``.
"""

import contextlib
import os
import subprocess
import sys
import termios
import threading
import tty

from hansa.proto.pipes import (
    GREETING,
    MAX_PIPE_BYTES,
    STDERR,
    STDIN,
    STDOUT,
    BrokenPipes,
    PipeReader,
    pack_piped,
)

CANNOT_START = 127


class SharedTerminal:
    """The terminal, written to by two threads."""

    def __init__(self) -> None:
        """Nobody writes yet."""
        self._writing = threading.Lock()

    def say(self, data: bytes) -> None:
        """Write all of it, or end with whoever was there to read it."""
        with self._writing, contextlib.suppress(OSError):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]

    def pass_on(self, kind: int, source: int) -> None:
        """Frame what comes out of a pipe until its end."""
        while data := os.read(source, MAX_PIPE_BYTES):
            self.say(pack_piped(kind, data))


def feed(sink: int) -> None:
    """Unframe what is typed into the program's input, until the frame that says that it has ended."""
    reader = PipeReader((STDIN,))
    with os.fdopen(sink, "wb", buffering=0) as pipe, contextlib.suppress(OSError, BrokenPipes):
        while typed := os.read(0, MAX_PIPE_BYTES):
            for _, data in reader.feed(typed):
                if not data:
                    return
                view = memoryview(data)
                while view:
                    view = view[pipe.write(view) or 0 :]


def main() -> int:
    """Run it; gives its exit status."""
    tty.setraw(0, termios.TCSANOW)
    line = SharedTerminal()
    line.say(GREETING)
    try:
        process = subprocess.Popen(
            sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        line.say(pack_piped(STDERR, f"{sys.argv[1]}: {error.strerror}\n".encode()[:MAX_PIPE_BYTES]))
        return CANNOT_START
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    threading.Thread(target=feed, args=(os.dup(process.stdin.fileno()),), daemon=True).start()
    process.stdin.close()
    passing = [
        threading.Thread(target=line.pass_on, args=(kind, pipe.fileno()), daemon=True)
        for kind, pipe in ((STDOUT, process.stdout), (STDERR, process.stderr))
    ]
    for thread in passing:
        thread.start()
    status = process.wait()
    for thread in passing:
        thread.join()  # what it wrote may still be on its way; the line is slower than a pipe
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    ended = main()
    # Without waiting for threads that still read.
    os._exit(ended)
