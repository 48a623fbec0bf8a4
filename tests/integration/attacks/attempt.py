"""Tries things from inside a sandbox and writes down what came of each. Job code: nothing of Hansa is imported here.

Every attempt runs in a process of its own, which may be killed or hang without hurting the next.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 10.0
ATTEMPTS: dict[str, Callable[[dict[str, Any]], Any]] = {}

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def attempt(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    """Have a function tried under its own name. It is given what the test knows of the host."""
    ATTEMPTS[function.__name__] = function
    return function


def outcome(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the attempt gave (``"done"`` for nothing), or the name of its error."""
    try:
        result = function(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno)) if error.errno else type(error).__name__
    return "done" if result is None else result


def call(number: int, *arguments: Any) -> None:
    """A system call by its number; its result is of no interest, only whether it was made."""
    values = [a if isinstance(a, (bytes, ctypes.Array, ctypes._Pointer)) else ctypes.c_long(a) for a in arguments]
    if libc.syscall(ctypes.c_long(number), *values) == -1:
        raise OSError(ctypes.get_errno(), "")


def alone(function: Callable[[dict[str, Any]], Any], facts: dict[str, Any]) -> Any:
    """Run an attempt in a child; a signal that ended it, or its hanging, is an outcome too."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            os.setsid()
            answer = json.dumps(outcome(function, facts))
        except BaseException as error:  # noqa: BLE001 - any end of an attempt is a finding
            answer = json.dumps(f"{type(error).__name__}: {error}")
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    said = b""
    while select.select([reading], [], [], PATIENCE_S)[0]:
        piece = os.read(reading, 65536)
        if not piece:
            break
        said += piece
    else:
        os.kill(pid, signal.SIGKILL)
    os.close(reading)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # who it left behind
    if said:
        return json.loads(said)
    return signal.Signals(-status).name if status < 0 else f"left with {status}"


def try_all(facts: dict[str, Any]) -> dict[str, Any]:
    """Every attempt's outcome by its name."""
    return {name: alone(function, facts) for name, function in ATTEMPTS.items()}


if __name__ == "__main__":
    # As a program, so that the attempts run in a process with one thread and none of Ray's.
    sys.path.insert(0, str(Path(__file__).parent))
    sys.modules["attempt"] = sys.modules["__main__"]
    for name in sys.argv[1:]:
        __import__(name)
    print(json.dumps(try_all(json.loads(sys.stdin.read()))))
