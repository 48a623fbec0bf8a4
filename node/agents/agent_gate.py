"""Where a provider's other machines knock: TLS to a pinned key or not a word, then what each connection is for."""

import ipaddress
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import trio

from hansa.node.agents.agent_keys import (
    Enrolled,
    Identity,
    Register,
    check_name,
    machine_naming,
)
from hansa.node.agents.agent_messages import Enrol, Gone, Hello, TurnedAway, Welcome, Wire, purpose_of
from hansa.node.faults import ConfigError, PortInUse
from hansa.node.storage.agent_streams import BROKEN
from hansa.node.storage.pinned_tls import check_certificate, pin_of, serving_context
from hansa.proto.errors import ProtocolError

HANDSHAKE_S: Final = 10.0
MOST_UNPROVEN: Final = 32
MOST_OF_ONE: Final = 8
"""Connections that have not said who they are, of all sources together and of one. One more puts out the oldest of the
source that has the most, so that nobody keeps others from knocking."""


def source_of(stream: trio.SocketStream) -> str:
    """Whom a connection counts for: its address, or of an IPv6 address the network, all of which is one host's."""
    try:
        address = ipaddress.ip_address(stream.socket.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)


class Gate:
    """Listens for machines, and hands those that are enrolled to whoever serves them."""

    def __init__(
        self,
        *,
        register: Register,
        identity: Identity,
        now_ms: Callable[[], int],
        serve_control: Callable[[Enrolled, Wire], Awaitable[None]],
        serve_stream: Callable[[Enrolled, bytes, trio.abc.Stream], Awaitable[None]],
    ) -> None:
        """Both callbacks return when the connection has served its purpose; it is closed then."""
        self._register = register
        self._identity = identity
        self._now_ms = now_ms
        self._serve_control = serve_control
        self._serve_stream = serve_stream
        self._unproven: dict[trio.CancelScope, str] = {}
        self.refused = 0
        self.enrolled = trio.Event()

    async def serve(self, host: str, port: int, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled. Tells the port once it does.

        Raises:
            PortInUse: somebody else has the port.
        """
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise PortInUse(f"cannot listen for machines on {host}:{port}: {error}", "change cluster.listen") from error
        task_status.started(listeners[0].socket.getsockname()[1])
        await trio.serve_listeners(self._serve_connection, listeners)

    async def _serve_connection(self, raw: trio.SocketStream) -> None:
        source, scope, proven = source_of(raw), trio.move_on_after(HANDSHAKE_S), False
        self._make_room(source)
        self._unproven[scope] = source
        try:
            with scope:
                stream, pin = await self._handshake(raw)
                hello = await Wire(stream).receive(Hello, within_s=HANDSHAKE_S)
                purpose = purpose_of(hello)
                proven = True
        except (trio.BrokenResourceError, ssl.SSLError, OSError, ProtocolError, Gone):
            pass
        finally:
            self._unproven.pop(scope, None)
            self.refused += not proven
        if proven:
            try:
                await self._serve_proven(stream, pin, purpose, hello.token)
            except* (*BROKEN, ProtocolError, Gone):  # alone, or out of the nurseries in there
                pass

    def _make_room(self, source: str) -> None:
        """Put out the oldest of a source that has too many, for one more of this source."""
        counts = Counter(self._unproven.values())
        full = source if counts[source] >= MOST_OF_ONE else None
        if full is None and len(self._unproven) >= MOST_UNPROVEN:
            full = max(counts, key=counts.__getitem__)
        oldest = next((scope for scope, of in self._unproven.items() if of == full), None)
        if oldest is not None:
            del self._unproven[oldest]
            oldest.cancel()

    async def _handshake(self, raw: trio.SocketStream) -> tuple[trio.abc.Stream, bytes]:
        # Read afresh for each connection, so that whoever was removed is refused from that moment.
        trusted = [one.certificate for one in self._register.machines().values()]
        trusted += self._register.invitations(self._now_ms()).values()
        if not trusted:
            raise Gone("nobody is enrolled or invited")
        stream = trio.SSLStream(raw, serving_context(self._identity.file, trusted), server_side=True)
        await stream.do_handshake()
        certificate = stream.getpeercert(binary_form=True)
        assert isinstance(certificate, bytes), "the handshake asked for one"
        return stream, pin_of(certificate)

    async def _serve_proven(self, stream: Any, pin: bytes, purpose: str, token: bytes) -> None:
        wire = Wire(stream)
        machine = self._register.machines().get(pin)
        if machine is None:
            if purpose == "enrol" and pin in self._register.invitations(self._now_ms()):
                await self._enrol(wire, pin)
        elif purpose == "control":
            await self._serve_control(machine, wire)
        elif purpose == "stream":
            await self._serve_stream(machine, token, stream)

    async def _enrol(self, wire: Wire, invitation: bytes) -> None:
        wish: Enrol = await wire.receive(Enrol, within_s=HANDSHAKE_S)
        try:
            machine = Enrolled(
                name=check_name(wish.name),
                certificate=check_certificate(wish.certificate, machine_naming),
                since_ms=self._now_ms(),
            )
        except ConfigError as fault:
            await wire.send(TurnedAway(reason=fault.what))
            return
        why = self._register.enrol(invitation, machine)
        if why is not None:
            await wire.send(TurnedAway(reason=why))
            return
        await wire.send(Welcome(name=machine.name, account=bytes(20), tier="", silence_ms=0))
