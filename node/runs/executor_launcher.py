"""The executor's launcher: started, listened to, and started again when it dies."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from hansa.node.isolation import launcher_protocol
from hansa.node.isolation.launcher_link import Launch
from hansa.node.isolation.launcher_protocol import Message
from hansa.proto.errors import ProtocolError

AGAIN_S: Final = 1.0
KILL_WAIT_S: Final = 20.0


class Starting(Protocol):
    """trio's task status, as far as it is used here (the name that trio gives it is not in every set of stubs)."""

    def started(self) -> None:
        """The task is ready."""


class LauncherService:
    """A launcher that is always there, but for the moments in which it is being restarted."""

    def __init__(
        self, launch: Launch, *, hear: Callable[[Message, list[int]], Awaitable[None]], lost: Callable[[], None]
    ) -> None:
        """Pass what it says to ``hear``, which owns the descriptors then; call ``lost`` when it has died."""
        self._launch = launch
        self._hear = hear
        self._lost = lost
        self._control: trio.socket.SocketType | None = None

    @property
    def connected(self) -> bool:
        """Whether there is one now."""
        return self._control is not None

    async def ask(self, message: Message) -> None:
        """Tell it something. If it is gone, so is everything that it could be told about."""
        if self._control is not None:
            with contextlib.suppress(OSError):
                await self._control.send(launcher_protocol.pack(message))

    async def serve(self, task_status: Starting = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a launcher until cancelled. To be called in the main thread."""
        while True:
            try:
                process, control = self._launch()
            except OSError:
                if task_status is not trio.TASK_STATUS_IGNORED:
                    raise  # there never was one: that is for the operator to mend
                await trio.sleep(AGAIN_S)  # it is being restarted
                continue
            try:
                await self._listen(control, task_status)
            finally:
                self._control = None
                control.close()  # the launcher ends everything when it sees this
                if process is not None:
                    with trio.CancelScope(shield=True):
                        await _reap(process)
            task_status = trio.TASK_STATUS_IGNORED
            await trio.sleep(AGAIN_S)  # it died; a launcher that always dies must not keep a core busy

    async def _listen(self, control: socket.socket, task_status: Starting) -> None:
        """Take what the launcher says until it is gone."""
        control.setblocking(False)
        self._control = trio.socket.from_stdlib_socket(control)
        task_status.started()
        while True:
            try:
                packet, ancillary, _flags, _address = await self._control.recvmsg(
                    launcher_protocol.MAX_PACKET_BYTES, socket.CMSG_SPACE(16)
                )
            except OSError:
                packet, ancillary = b"", []
            if not packet:
                self._lost()
                return
            descriptors = launcher_protocol.descriptors_in(ancillary)
            try:
                message = launcher_protocol.unpack_beside(packet, descriptors)
            except ProtocolError:
                # No launcher of ours speaks so. It ends with its line, and all of its sandboxes with it.
                self._lost()
                return
            await self._hear(message, descriptors)


def close_all(descriptors: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


async def _reap(process: subprocess.Popen[bytes]) -> None:
    """Wait for a launcher to end its sandboxes and itself."""
    with trio.move_on_after(KILL_WAIT_S):
        while process.poll() is None:  # noqa: ASYNC110 - no event tells it
            await trio.sleep(0.02)
    if process.poll() is None:
        process.kill()
        process.wait()
