"""A chain inside this process: revm (through pyrevm), one transaction a block, and a clock that tests turn.

What a transaction does is what it does on a chain. What it costs is not: what an earlier one touched stays warm here.
Gas is measured on anvil.
"""

import re
from dataclasses import dataclass, field

from kit.contract_calls import Reverted, revert_reason
from pyrevm import EVM, AccountInfo, BlockEnv, CfgEnv, Env

CHAIN_ID = 31337
START_S = 1_700_000_000
DEPLOYER = bytes.fromhex("de" * 20)


def text(address: bytes) -> str:
    """An address as revm wants it."""
    return "0x" + address.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a transaction did: its answer, its logs as (address, topics, data), and (on anvil) its gas."""

    returned: bytes
    gas: int = 0
    logs: tuple[tuple[bytes, list[bytes], bytes], ...]


@dataclass
class ChainInProcess:
    """One chain with its clock."""

    chain_id: int = CHAIN_ID
    now_s: int = START_S
    evm: EVM = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing deployed."""
        self.evm = EVM(Env(CfgEnv(chain_id=self.chain_id)), spec_id="CANCUN")
        self._set_clock()

    def _set_clock(self) -> None:
        self.evm.set_block_env(BlockEnv(number=1, timestamp=self.now_s, gas_limit=10**9))

    def pass_time(self, seconds: int) -> None:
        """Turn the clock on."""
        self.now_s += seconds
        self._set_clock()

    def deploy(self, code: bytes) -> bytes:
        """Deploy a contract; its address."""
        return bytes.fromhex(self.evm.deploy(text(DEPLOYER), code)[2:])

    def code(self, address: bytes) -> bytes:
        """The code at an address."""
        return bytes(self.evm.get_code(text(address)) or b"")

    def put_code(self, address: bytes, code: bytes) -> None:
        """Let code stand at an address that nobody deployed it to."""
        self.evm.insert_account_info(text(address), AccountInfo(code=code))

    def _run(self, caller: bytes, to: bytes, data: bytes, *, is_static: bool) -> bytes:
        self.evm.reset_transient_storage()
        try:
            return bytes(self.evm.message_call(text(caller), text(to), calldata=data, is_static=is_static))
        except RuntimeError as failure:
            raise Reverted(_reason(str(failure))) from None

    def send(self, caller: bytes, to: bytes, data: bytes) -> Outcome:
        """Do a transaction.

        Raises:
            Reverted: the contract refused. Nothing has changed.
        """
        returned = self._run(caller, to, data, is_static=False)
        result = self.evm.result
        assert result is not None
        logs = tuple(
            (bytes.fromhex(log.address[2:]), [bytes.fromhex(t[2:]) for t in log.topics], bytes(log.data[1]))
            for log in result.logs
        )
        return Outcome(returned=returned, logs=logs)

    def ask(self, to: bytes, data: bytes) -> bytes:
        """Call without a transaction."""
        return self._run(DEPLOYER, to, data, is_static=True)


def _reason(failure: str) -> str:
    found = re.search("output: 0x([0-9a-f]*)", failure)
    return revert_reason(bytes.fromhex(found[1])) if found else failure
