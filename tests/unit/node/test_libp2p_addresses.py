"""Where a node listens: on what this machine has, and on nothing that it has not."""

import socket

import pytest

from hansa.node.faults import ConfigError
from hansa.node.network.libp2p_addresses import choose_listen_addrs
from hansa.node.network.net import NetConfig

pytestmark = pytest.mark.trio


@pytest.fixture
def without_ipv6(monkeypatch):
    made = socket.socket

    def make(family=socket.AF_INET, *more, **named):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return made(family, *more, **named)

    monkeypatch.setattr("hansa.node.network.libp2p_addresses.socket.socket", make)


async def test_all_of_ipv6_is_left_out_where_there_is_none(without_ipv6):
    (left,) = await choose_listen_addrs(NetConfig(listen=("/ip6/::/tcp/0", "/ip4/127.0.0.1/tcp/0")))
    assert str(left).startswith("/ip4/127.0.0.1/tcp/")


async def test_a_node_that_would_listen_nowhere_says_so_instead_of_starting(without_ipv6):
    with pytest.raises(ConfigError, match="without IPv6") as told:
        await choose_listen_addrs(NetConfig(listen=("/ip6/::/tcp/0",)))
    assert "/ip4/0.0.0.0/tcp/4001" in told.value.hint
    with pytest.raises(ConfigError, match="cannot listen on /ip6/::1"):
        await choose_listen_addrs(NetConfig(listen=("/ip6/::1/tcp/0",)))
