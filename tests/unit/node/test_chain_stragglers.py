"""How long one slow node of a chain is waited for, and when not one answer is yet enough to stop waiting."""

import threading
from typing import Any

import pytest
import trio
from kit.rpc_stand_in import result, rpc_stand_in

from hansa.node.chain import chain_nodes
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.json_rpc import RpcNode

pytestmark = pytest.mark.trio


class Slow:
    """Says which chain it is, as soon as the test lets it."""

    def __init__(self, after_s: float) -> None:
        self.free, self.after_s = threading.Event(), after_s

    def __call__(self, _method: str, _params: list[Any], number: Any) -> Any:
        self.free.wait(self.after_s)
        return result("0x1", number)


async def test_one_silent_node_of_three_holds_up_no_agreement_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_nodes, "STRAGGLER_S", 0.2)
    silent = Slow(60)
    with rpc_stand_in(Slow(0)) as one, rpc_stand_in(silent) as two, rpc_stand_in(Slow(0)) as three:
        nodes = ChainNodes([RpcNode(there.url, timeout_s=60.0) for there in (one, two, three)], confirmations=0)
        with trio.fail_after(30):
            assert await nodes.chain_id() == 1
        assert "s after most of the others" in nodes.faults[nodes.nodes[1].name]
        silent.free.set()
        await nodes.close()


async def test_one_quick_node_of_three_is_not_most_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_nodes, "STRAGGLER_S", 0.2)
    with rpc_stand_in(Slow(0)) as one, rpc_stand_in(Slow(1.5)) as two, rpc_stand_in(Slow(1.5)) as three:
        nodes = ChainNodes([RpcNode(there.url, timeout_s=60.0) for there in (one, two, three)], confirmations=0)
        assert await nodes.chain_id() == 1
        await nodes.close()
