"""A network for one sandbox of a gang: a namespace with a loopback and one interface, whose outer end is a descriptor.

Made by the launcher before bubblewrap, and only by one that is root: the interface needs CAP_NET_ADMIN over the
namespace, and so must it stay, for the namespace belongs to the root outside and nobody inside has any right over it.
The sandbox cannot change its address, see another interface, or reach anything but what its packets are carried to.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hansa.node.isolation.overlay_packets import MTU_BYTES
from hansa.proto.gang import INTERFACE, address_of

TUN: Final = "/dev/net/tun"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8916, 0x891C, 0x8922, 0x8943
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914
_IFF_UP = 0x1
_QUEUE_PACKETS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """Both ends of it; each is the holder's to close.

    Attributes:
        namespace: to be entered by who becomes the sandbox.
        packets: the interface's outer end.
    """

    namespace: int
    packets: int

    def enter(self) -> None:
        """Move this process into the namespace, for good."""
        _setns(self.namespace)

    def close(self) -> None:
        """Give both back."""
        os.close(self.namespace)
        os.close(self.packets)


def why_no_overlay() -> str | None:
    """Why this process can give no sandbox a network of its own, or nothing."""
    try:
        make_overlay(0).close()
    except OSError as error:
        return str(error)
    return None


def make_overlay(place: int) -> Overlay:
    """A new network for the member at this place of its gang. The calling thread is back in its own afterwards.

    Raises:
        OSError: the kernel refused.
    """
    if os.getuid() != 0:
        raise PermissionError("a run on several machines needs a launcher that is root on each of them")
    with contextlib.ExitStack() as opened:
        ours = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, ours)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"a network of its own: {os.strerror(number)}")
        try:
            namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, namespace)
            # Before the interface is there: it shall never have an address of the other kind.
            with contextlib.suppress(OSError):
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            packets = os.open(TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            opened.callback(os.close, packets)
            request = struct.pack("16sH22x", INTERFACE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(packets, _TUNSETIFF, request)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
                _configure(any_socket.fileno(), place)
        finally:
            _setns(ours)
        opened.pop_all()
        os.close(ours)
        return Overlay(namespace=namespace, packets=packets)


def _configure(any_socket: int, place: int) -> None:
    name = INTERFACE.encode()
    _set_address(any_socket, _SIOCSIFADDR, address_of(place))
    _set_address(any_socket, _SIOCSIFNETMASK, "255.255.255.0")
    fcntl.ioctl(any_socket, _SIOCSIFMTU, struct.pack("16si20x", name, MTU_BYTES))
    fcntl.ioctl(any_socket, _SIOCSIFTXQLEN, struct.pack("16si20x", name, _QUEUE_PACKETS))
    for interface in (b"lo", name):
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sH22x", interface, 0))
        flags = struct.unpack("16sH22x", answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH22x", interface, flags | _IFF_UP))


def _set_address(any_socket: int, what: int, address: str) -> None:
    packed = struct.pack("16sHH4s16x", INTERFACE.encode(), socket.AF_INET, 0, socket.inet_aton(address))
    fcntl.ioctl(any_socket, what, packed)


def _setns(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"entering a network: {os.strerror(number)}")
