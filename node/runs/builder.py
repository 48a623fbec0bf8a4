"""`hansa builder`: makes rooms for tools on behalf of a daemon that may make no namespaces itself.

Under systemd the daemon is shut in so tightly that it could not start bubblewrap, and the launcher, which can, has no
network to download packages with. The builder is the third: the daemon's own user, no keys within its reach, and a
socket on which it is told what to run. It does exactly what `hansa.node.isolation.build_room.run_tool` does.

One connection is one tool: a packet with the tool, a packet with the outcome. When the daemon hangs up, the tool ends.

It makes the room of an owner's pricing program in the same way. What the program reads and prints goes through the
daemon's own pipes, which come with the packet: what strangers wrote is never part of what says what is run.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from hansa.node.isolation.build_room import Outcome, Tool, run_tool
from hansa.node.pricing.price_process import LONGEST_RUN_S, WATCH_S, OwnRoom, read_order

LARGEST_PACKET_BYTES = 64 << 10
ASK_S = 10.0
PIPES = 4
"""Of a pricing program: its standard input, output and error, and what closes when its room begins."""

RunTool = Callable[[Tool, threading.Event | None], Outcome]


def tool_runner(builder: Path | None) -> RunTool:
    """How this node runs tools: in rooms of its own making, or of a builder's at this socket."""
    if builder is None:
        return run_tool

    def ask(tool: Tool, given_up: threading.Event | None) -> Outcome:
        return ask_builder(builder, tool, given_up)

    return ask


def ask_builder(path: Path, tool: Tool, given_up: threading.Event | None) -> Outcome:
    """Have a builder run a tool; blocks until it has ended."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.connect(str(path))
            control.sendall(json.dumps(asdict(tool)).encode())
            while not select.select([control], [], [], 0.1)[0]:
                if given_up is not None and given_up.is_set():
                    return Outcome(ok=False, words="nobody waits for it any more")
            said = control.recv(LARGEST_PACKET_BYTES)
    except OSError as fault:
        return Outcome(ok=False, words=f"no builder answers at {path}: {fault.strerror or fault}")
    if not said:
        return Outcome(ok=False, words="the builder ended")
    return Outcome(**json.loads(said))


def read_tool(data: bytes) -> Tool:
    """A tool as ``ask_builder`` sends it.

    Raises:
        ValueError: it is none.
    """
    facts = json.loads(data)
    if not isinstance(facts, dict) or set(facts) != {field.name for field in fields(Tool)}:
        raise ValueError("not the fields of a tool")
    command, read, variables = facts["command"], facts["read"], facts["variables"]
    texts = [*command, facts["work"], *(part for pair in read for part in pair), *variables, *variables.values()]
    if not command or not all(isinstance(text, str) and "\0" not in text for text in texts):
        raise ValueError("not a tool")
    if any(len(pair) != 2 for pair in read) or not facts["work"].startswith("/"):
        raise ValueError("not a tool")
    numbers = [facts[name] for name in ("most_bytes", "most_files", "most_s", "most_memory_bytes")]
    if type(facts["network"]) is not bool or not all(type(each) in (int, float) and each > 0 for each in numbers):
        raise ValueError("not a tool")
    return Tool(**{**facts, "command": tuple(command), "read": tuple((host, inside) for host, inside in read)})


def listen(path: str) -> None:
    """Serve whoever may connect to this socket: by its mode, the same user."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with contextlib.suppress(FileNotFoundError):
            Path(path).unlink()
        before = os.umask(0o077)
        listener.bind(path)
        os.umask(before)
        listener.listen()
        while True:
            control, _ = listener.accept()
            threading.Thread(target=_serve, args=(control,), daemon=True).start()


def _serve(control: socket.socket) -> None:
    """One tool, or one program. This thread lives until it has ended, as its room wants it."""
    with control, contextlib.ExitStack() as held:
        control.settimeout(ASK_S)
        try:
            data, descriptors, _flags, _address = socket.recv_fds(control, LARGEST_PACKET_BYTES, PIPES)
            for descriptor in descriptors:
                held.callback(os.close, descriptor)
                os.set_inheritable(descriptor, False)
            control.settimeout(None)
            answer = _run_priced(control, data, descriptors, held) if descriptors else asdict(_run(control, data))
        except (ValueError, TypeError, OSError) as fault:
            answer = asdict(Outcome(ok=False, words=f"the builder cannot run that: {fault}"))
        with contextlib.suppress(OSError):
            control.sendall(json.dumps(answer).encode())


def _run(control: socket.socket, data: bytes) -> Outcome:
    given_up = threading.Event()
    tool = read_tool(data)
    threading.Thread(target=_watch, args=(control, given_up), daemon=True).start()
    return run_tool(tool, given_up)


def _run_priced(
    control: socket.socket, data: bytes, pipes: Sequence[int], held: contextlib.ExitStack
) -> dict[str, int]:
    """The owner's pricing program, until it has ended, nobody waits any more, or it was given all the time there is."""
    facts = json.loads(data)
    if len(pipes) != PIPES or not isinstance(facts, dict) or set(facts) != {"price"}:
        raise ValueError("not an order for a program")
    room = OwnRoom(read_order(facts["price"]), pipes)
    try:
        held.close()  # the program's end must be the end of its pipes
        until_s = time.monotonic() + LONGEST_RUN_S
        while time.monotonic() < until_s:
            ready, _, _ = select.select([control.fileno(), room.ended_fd], [], [], WATCH_S)
            if room.ended_fd in ready:
                return {"status": room.status()}
            if ready:
                break
            if room.is_too_large():
                return {"is_too_large": True}
        raise TimeoutError("nobody waits for it any more")
    finally:
        room.close()


def _watch(control: socket.socket, given_up: threading.Event) -> None:
    """Whatever comes after the one packet, an end above all, means that nobody waits any more."""
    with contextlib.suppress(OSError, ValueError):
        select.select([control], [], [])
    given_up.set()


def main(arguments: list[str]) -> None:
    """``hansa builder PATH``."""
    listen(arguments[0])


if __name__ == "__main__":
    main(sys.argv[1:])
