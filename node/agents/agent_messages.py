"""What a provider's daemon and the agents on its other machines say to each other, and how it goes over a stream.

Every connection is dialled by an agent, goes through a mutual TLS handshake, and begins with `Hello`: it is the one on
which everything is agreed (``control``), or it carries the bytes of one thing (``stream``) that a token named there, or
it brings a new machine's certificate (``enrol``). A connection for each stream costs a
handshake, 6 ms of CPU for both sides together, and saves a multiplexer with windows of its own: TCP's are there.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import trio

from hansa.proto.codec import decode, encode
from hansa.proto.errors import Malformed, TooLarge
from hansa.proto.market_documents import Device
from hansa.proto.units import Address, AtMost, Bytes32, DurationMs, Line, Note, Uint32

LARGEST_FRAME_BYTES = 512 << 10
MOST_DEVICES = 1024
MOST_NODES = 16
Packet = Annotated[bytes, AtMost(64 << 10)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """The first words on a connection.

    Attributes:
        purpose: ``"control"``, ``"stream"`` or ``"enrol"``.
        token: which stream it is; zeros for the others.
    """

    purpose: Line
    token: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrol:
    """Agent → daemon, on a connection that an invitation opened: this is my certificate."""

    name: Line
    certificate: Annotated[bytes, AtMost(4096)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """Daemon → agent: you are known.

    Attributes:
        name: what the machine is called here.
        account: the provider's account, to which the devices' ids are bound.
        tier: how strongly the provider's runs are walled in; what the machine is to try.
        silence_ms: who hears nothing for so long takes the other for gone.
    """

    name: Line
    account: Address
    tier: Line
    silence_ms: DurationMs


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedAway:
    """Either → the other: no, and why; the connection ends with it."""

    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class LentGpu:
    """What a sandbox is given for a GPU; see the fields of ``SandboxSpec`` with the same names."""

    device: Bytes32
    gpu_minors: Annotated[tuple[Uint32, ...], AtMost(MOST_NODES)]
    device_nodes: Annotated[tuple[Line, ...], AtMost(MOST_NODES)]
    cuda_devices: Annotated[tuple[Line, ...], AtMost(MOST_NODES)]
    rocm_devices: Annotated[tuple[Line, ...], AtMost(MOST_NODES)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Agent → daemon: what this machine has, and how strongly it walls strangers in. Said again when it changes.

    Attributes:
        tier: of the sandboxes that were tried on it.
        features: what it has beside devices.
        overlay: whether its launcher may give a sandbox an interface of its own, for gangs over several machines.
        note: what is lent and what is not, in one line.
        reason: what the trial of the sandbox showed.
    """

    devices: Annotated[tuple[Device, ...], AtMost(MOST_DEVICES)]
    gpus: Annotated[tuple[LentGpu, ...], AtMost(MOST_DEVICES)]
    tier: Line
    features: tuple[Line, ...]
    overlay: bool
    note: Note
    reason: Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Either → the other: I am here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """A directory that a sandbox is furnished with.

    Attributes:
        field: the field of the launcher's ``SandboxSpec`` that names it.
        digest: of everything in it, see ``hansa.node.agents.agent_trees``.
        token: of the stream on which the agent fetches it, if it does not have it.
    """

    field: Line
    digest: Bytes32
    token: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class StartThere:
    """Daemon → agent: hand this `Start` to your launcher, with the directories put in.

    Attributes:
        packet: a packet of the launcher's protocol.
        trees: what stands in it for directories of the daemon's machine.
        way_out: the token of all streams that carry the run's way out; `NO_TOKEN` if it has none.
    """

    packet: Packet
    trees: tuple[Tree, ...]
    way_out: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class ToLauncher:
    """Daemon → agent: hand this to your launcher."""

    packet: Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class FromLauncher:
    """Agent → daemon: your launcher's words, had it been here.

    Attributes:
        packet: a packet of the launcher's protocol.
        streams: tokens of the connections that stand for the file descriptors which came with it.
    """

    packet: Packet
    streams: tuple[Bytes32, ...]


FromAgent = Report | Beat | FromLauncher | TurnedAway
FromDaemon = Welcome | TurnedAway | Beat | StartThere | ToLauncher
EnrolmentAnswer = Welcome | TurnedAway
NO_TOKEN = bytes(32)


class Gone(Exception):
    """The other side has hung up, or has been silent for too long."""


class Wire:
    """Messages over one stream. Several tasks may send, one receives."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        """Whoever holds the wire closes the stream."""
        self.stream = stream
        self._sending = trio.Lock()

    async def send(self, message: Any) -> None:
        """Send one message.

        Raises:
            Gone: it cannot be sent any more.
        """
        data = encode(message)
        assert len(data) <= LARGEST_FRAME_BYTES, "our own message is too large"
        try:
            async with self._sending:
                await self.stream.send_all(len(data).to_bytes(4, "big") + data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise Gone("the connection broke") from error

    async def receive(self, kinds: Any, *, within_s: float) -> Any:
        """The next message, of one of these kinds.

        Not a byte more is read from the stream: what follows may be no message.

        Raises:
            Gone: there is none, or none came in time.
            ProtocolError: it is none of these.
        """
        with trio.move_on_after(within_s):
            size_bytes = int.from_bytes(await self._exactly(4), "big")
            if size_bytes > LARGEST_FRAME_BYTES:
                raise TooLarge("message", f"more than {LARGEST_FRAME_BYTES} bytes")
            return decode(await self._exactly(size_bytes), kinds, limit_bytes=LARGEST_FRAME_BYTES)
        raise Gone(f"nothing was heard for {within_s:g} s")

    async def _exactly(self, size_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < size_bytes:
            try:
                piece = await self.stream.receive_some(size_bytes - len(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise Gone("the connection broke") from error
            if not piece:
                raise Gone("the connection was closed")
            data += piece
        return bytes(data)


def purpose_of(hello: Hello) -> str:
    """What a connection is for.

    Raises:
        Malformed: nothing that there is.
    """
    if hello.purpose not in ("control", "stream", "enrol"):
        raise Malformed("Hello.purpose", "is none that there is")
    return hello.purpose
