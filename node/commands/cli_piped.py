"""What a piped program's line says, sorted into one's own standard output and error."""

import sys

from hansa.node.commands.cli_terminal import write_all
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.proto.pipes import GREETING, STDERR, STDOUT, BrokenPipes, PipeReader

LONGEST_COMPLAINT_BYTES = 4096


class PipedOutput:
    """Takes the line's bytes as they come."""

    def __init__(self) -> None:
        """The greeting has not come yet."""
        self._before = bytearray()
        self._greeted = False
        self._reader = PipeReader((STDOUT, STDERR))

    def take(self, data: bytes) -> bool:
        """Write what these bytes say; gives whether the greeting has come with them, and input may be sent.

        Raises:
            OperatorError: they are not what a piped program's line says.
        """
        greets = False
        if not self._greeted:
            self._before += data
            at = self._before.find(GREETING)
            if at < 0:
                del self._before[:-LONGEST_COMPLAINT_BYTES]
                return False
            self._greeted = greets = True
            data = bytes(self._before[at + len(GREETING) :])
            self._before.clear()
        try:
            for kind, piece in self._reader.feed(data):
                write_all(sys.stdout.fileno() if kind == STDOUT else sys.stderr.fileno(), piece)
        except BrokenPipes as fault:
            raise OperatorError(f"the far side is not understood: {fault}", "it may run another version") from fault
        return greets

    def finish(self) -> None:
        """The program has ended. What came instead of a greeting is shown, made plain."""
        for line in self._before.decode("utf-8", "replace").splitlines():
            sys.stderr.write(plain(line) + "\n")
