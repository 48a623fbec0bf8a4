"""What two nodes say about a shell in a run: the lease's buyer asks, the provider answers.

Protocol ``/hansa/shell/1``. A shell is known by a number that its buyer drew, so that opening it twice opens one. What
is typed and what is read are counted apart, each request by its own sequence: a request that is repeated because its
answer was lost types nothing twice and loses nothing that was written.
"""

from dataclasses import dataclass
from typing import Annotated

from hansa.proto.units import AtMost, Bytes32, Exactly, Int64, Uint16, Uint32

MAX_TYPED_BYTES = 16 << 10
MAX_SAID_BYTES = 64 << 10
MAX_ARGUMENTS = 64
MAX_ARGUMENT_BYTES = 4096
MAX_SHELL_REQUEST_BYTES = 40 << 10
MAX_SHELL_ANSWER_BYTES = MAX_SAID_BYTES + 1024

ShellId = Annotated[bytes, Exactly(16)]
Argument = Annotated[str, AtMost(MAX_ARGUMENT_BYTES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellWanted:
    """Start a program in the run of a lease.

    Attributes:
        shell: its number, drawn by the buyer.
        lease: whose run.
        argv: the program and its arguments; none means a shell.
        piped: not at a terminal but with pipes: what it writes and reads comes in the frames of ``hansa.proto.pipes``.
        columns, rows: the size of the terminal.
    """

    shell: ShellId
    lease: Bytes32
    argv: Annotated[tuple[Argument, ...], AtMost(MAX_ARGUMENTS)]
    piped: bool
    columns: Uint16
    rows: Uint16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellTyped:
    """Type these bytes, and let the terminal have this size.

    Attributes:
        sequence: 1, 2, 3 and so on; the next only when the one before was taken.
    """

    shell: ShellId
    sequence: Uint32
    data: Annotated[bytes, AtMost(MAX_TYPED_BYTES)]
    columns: Uint16
    rows: Uint16


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellAwaited:
    """Tell what the program wrote since the last answer; the answer may wait for a second until there is something.

    Attributes:
        sequence: 1, 2, 3 and so on; the next only when the one before was answered.
    """

    shell: ShellId
    sequence: Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellClosed:
    """Hang up."""

    shell: ShellId


ShellRequest = ShellWanted | ShellTyped | ShellAwaited | ShellClosed


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellTaken:
    """Done; or, of what was typed, not yet: the program has not read what came before, so ask again."""

    taken: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellSaid:
    """What the program wrote.

    Attributes:
        data: the next bytes, often none.
        ended: it has ended, and these were its last bytes.
        status: how it ended: its exit status, 128 and more for a signal, -1 if it went with its sandbox.
    """

    data: Annotated[bytes, AtMost(MAX_SAID_BYTES)]
    ended: bool
    status: Int64


ShellAnswer = ShellTaken | ShellSaid
