"""Hosts that a job may speak to: how they are written, which of them cover which others, which addresses are public.

A pattern is ``"host:port"``, ``"*.domain:port"`` (every name below the domain, not the domain itself), ``"*:port"``
(any public host at that port) or ``"*"`` (any public host at any port). Without a port it is 443. A job asks for
patterns, an owner allows patterns, and both sides compare them with what stands here.

No pattern and no name opens a private address: whoever connects asks ``is_public`` of the very address that it will
connect to, whatever the name was.
"""

import ipaddress
import re
from collections.abc import Iterable

import idna

ANY = "*"
DEFAULT_PORT = 443
LONGEST_CHARS = 256
LONGEST_HOST_CHARS = 253
LARGEST_PORT = 65535

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)", re.ASCII)
_PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
# What C libraries read as an address whatever it looks like: 127.1, 0x7f.0.0.1, 2130706433.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_UNICAST6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # protocol assignments
            "192.88.99.0/24",  # relays into 6to4
            "2001::/23",  # protocol assignments; Teredo, which wraps IPv4 addresses, is one of them
            "2002::/16",  # 6to4, which wraps IPv4 addresses
            "3fff::/20",  # documentation; newer than the tables of some Pythons
        ),
    )
)


class PrivateAddress(ValueError):
    """An address that is written out, and that no job may ever reach."""

    def __init__(self) -> None:
        """There is one thing to say."""
        super().__init__("private addresses can never be reached")


def normalise(text: str) -> str:
    """The one way to write a pattern: ``"*.Example.org"`` is ``"*.example.org:443"``.

    Raises:
        ValueError: it is no pattern, or names a private address; the message says what is wrong with it.
    """
    if text == ANY:
        return ANY
    host, port = split_port(text, default=DEFAULT_PORT)
    if host == ANY:
        return f"{ANY}:{port}"
    below = host.startswith("*.")
    name = normalise_host(host.removeprefix("*."))
    if below and is_literal(name):
        raise ValueError("there is nothing below an address")
    normal = f"{'*.' if below else ''}{name}:{port}"
    if len(normal) > LONGEST_CHARS:
        raise ValueError(f"it is longer than {LONGEST_CHARS} characters")
    return normal


def split_port(text: str, *, default: int | None) -> tuple[str, int]:
    """A host and its port, the host as it was written. An IPv6 address with a port stands in brackets.

    Raises:
        ValueError: there is no port and no default, or it is none.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "" if default is None else str(default)
    elif ":" in host and not host.endswith("]"):
        raise ValueError("an IPv6 address is written in brackets: [2606:4700::1111]:443")
    if _PORT.fullmatch(port) is None or int(port) > LARGEST_PORT:
        raise ValueError(f"a port is a number from 1 to {LARGEST_PORT}")
    return host, int(port)


def normalise_host(text: str) -> str:
    """The one way to write a host: lower-case ASCII without a final dot, IPv6 addresses in brackets.

    Raises:
        ValueError: it is no host's full name and no public address.
    """
    if len(text) > LONGEST_HOST_CHARS:
        raise ValueError(f"a host's name has at most {LONGEST_HOST_CHARS} characters")
    if text.startswith("["):
        return f"[{_public(ipaddress.IPv6Address, text[1:].removesuffix(']') if text.endswith(']') else '')}]"
    name = _ascii(text).removesuffix(".")
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]) is not None:
        return _public(ipaddress.IPv4Address, name)
    if len(labels) < 2 or len(name) > LONGEST_HOST_CHARS or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError("a host is named in full, as in data.example.org")
    return name


def _ascii(text: str) -> str:
    if text.isascii():
        return text.lower()
    try:
        return idna.encode(text, uts46=True).decode("ascii").lower()
    except (idna.IDNAError, UnicodeError) as fault:
        raise ValueError("the name holds characters that no host's name may have") from fault


def _public(kind: type[IpAddress], text: str) -> str:
    try:
        address = kind(text)
    except ValueError:
        raise ValueError("that is no address") from None
    if not is_public(address):
        raise PrivateAddress
    return str(address)


def is_literal(host: str) -> bool:
    """Whether a normalised host is an address and not a name."""
    return host.startswith("[") or host.rpartition(".")[2].isdigit()


def is_public(address: IpAddress) -> bool:
    """Whether an address belongs to the public internet, to one machine on it, and says so plainly.

    Not public: loopback, private, link-local (and with it the clouds' metadata services), shared (CGNAT), multicast,
    reserved and documentation addresses, and every form of IPv6 that wraps an IPv4 address (mapped, 6to4, Teredo,
    NAT64), since what it wraps may be anything.
    """
    if isinstance(address, ipaddress.IPv6Address) and (address not in _UNICAST6 or address.scope_id is not None):
        return False
    if address.is_multicast or not address.is_global:
        return False
    return not any(address in network for network in _NOT_PUBLIC if network.version == address.version)


def covers(allowed: Iterable[str], wanted: str) -> bool:
    """Whether everything that the pattern ``wanted`` can mean is within one of the patterns ``allowed``.

    Whatever is no pattern covers nothing and is covered by nothing, so strangers' texts may be asked about as they are.
    """
    try:
        normal = normalise(wanted)
    except ValueError:
        return False
    return any(_covers_one(pattern, normal) for pattern in allowed)


def _covers_one(pattern: str, wanted: str) -> bool:
    try:
        pattern = normalise(pattern)
    except ValueError:
        return False
    if pattern in (ANY, wanted):
        return True
    if wanted == ANY:
        return False
    host, _, port = pattern.rpartition(":")
    wanted_host, _, wanted_port = wanted.rpartition(":")
    if port != wanted_port:
        return False
    # "*.a.org" covers "b.a.org" and "*.b.a.org", and of course itself; never "a.org" or "aa.org".
    return host == ANY or (
        host.startswith("*.") and wanted_host.removeprefix("*").endswith(host[1:]) and host != wanted_host
    )


def matches(patterns: Iterable[str], host: str, port: int) -> bool:
    """Whether one of the patterns allows this very host and port. The host is a name or an address, never a pattern."""
    try:
        literal = normalise_host(host)  # which refuses patterns
    except ValueError:
        return False
    return covers(patterns, f"{literal}:{port}")
