"""The houses that the suite runs in."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

import pytest
from kit.settlement_house import House, ModelHouse
from kit.settlement_scene import Scene

Opener = Callable[[], AbstractAsyncContextManager[House]]


def elsewhere(name: str, *marks: pytest.MarkDecorator) -> object:
    """A house in a module of its own; skipped, in words, while there is none."""
    absent = find_spec(f"kit.{name}_house") is None
    reason = f"tests/kit/{name}_house.py, which would bring this backend, is not there"
    return pytest.param(name, marks=[*marks, pytest.mark.skipif(absent, reason=reason)])


def always(make: Callable[[], House]) -> Opener:
    """A house that needs no closing."""

    @asynccontextmanager
    async def open_house() -> AsyncIterator[House]:
        yield make()

    return open_house


@pytest.fixture(scope="session")
def anvil_house() -> Iterator[Callable[[], House]]:
    """An escrow and a token of one's own on the session's chain."""
    from kit.chain_on_anvil import anvil_chain
    from kit.contract_house import ContractHouse

    with anvil_chain() as chain:
        yield lambda: ContractHouse(chain)


BACKENDS = ["model", "contract", pytest.param("anvil", marks=pytest.mark.slow)]
BACKENDS += [elsewhere("ledger"), elsewhere("rpc", pytest.mark.slow), elsewhere("outside", pytest.mark.long)]
# A mutant of the contract is no other backend's business.
ASKED = ["contract"] if "HANSA_ESCROW_MUTANT" in os.environ else BACKENDS


@pytest.fixture(params=ASKED)
def opener(request: pytest.FixtureRequest) -> Opener:
    """How a house of each backend is opened."""
    if request.param == "model":
        return always(ModelHouse)
    if request.param == "contract":
        pytest.importorskip("pyrevm", reason="pyrevm, the EVM in this process, has no wheel for this Python")
        from kit.chain_in_process import ChainInProcess
        from kit.contract_house import ContractHouse

        return always(lambda: ContractHouse(ChainInProcess()))
    if request.param == "anvil":
        return always(request.getfixturevalue("anvil_house"))
    found: Opener = import_module(f"kit.{request.param}_house").open_house
    return found


@pytest.fixture
async def scene(opener: Opener) -> AsyncIterator[Scene]:
    """A payer and a payee at one of the backends."""
    async with opener() as house:
        yield Scene(house)
