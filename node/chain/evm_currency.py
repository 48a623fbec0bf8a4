"""Whether a chain is the one that a currency's name means: its id, the escrow's very code, the token's decimals."""

from typing import Final

import trio

from hansa.node.chain.chain_answers import Block
from hansa.node.chain.chain_nodes import ChainNodes
from hansa.node.chain.escrow_artefact import escrow_code
from hansa.node.chain.evm_escrow import call, escrow_domain_answer, read_number, read_text
from hansa.node.chain.json_rpc import RpcError, RpcFault, RpcMalformed, RpcNode
from hansa.node.faults import OperatorError
from hansa.node.plain_text import plain
from hansa.node.settings.chain_config import ChainConfig
from hansa.proto.currency import Currency
from hansa.proto.signing import checksum_address
from hansa.proto.units import CURRENCY_DECIMALS

LONGEST_SYMBOL: Final = 12


class WrongChain(OperatorError):
    """What stands on the chain is not what the configuration says. Nothing is settled there."""


async def check_currency(currency: Currency, nodes: ChainNodes) -> str:
    """Hold a chain against a currency's name: its id, the escrow's code and domain, the token. Answers its symbol.

    Raises:
        WrongChain: something is not as it must be.
        RpcFault: it could not be asked.
    """
    chain_id = await nodes.chain_id()
    if chain_id != currency.chain_id:
        hint = "mend [chain]: rpc and chain_id belong together"
        raise WrongChain(f"the nodes in chain.rpc are of chain {chain_id}, not {currency.chain_id}", hint)
    block = await nodes.final_block()
    escrow, shown = currency.escrow, checksum_address(currency.escrow)
    if await nodes.code(escrow, block) != escrow_code(chain_id, escrow):
        hint = "take the escrow's address from somebody you trust; on a new chain wait until its block is final"
        raise WrongChain(f"what stands at {shown} is not the escrow that this version of Hansa knows", hint)
    if await nodes.call(bytes, escrow, call("eip712Domain"), block) != escrow_domain_answer(currency.domain):
        raise WrongChain(f"the escrow at {shown} signs for another domain", "mend [chain]: escrow and chain_id")
    return await _check_token(currency.token, nodes, block)


async def _check_token(token: bytes, nodes: ChainNodes, block: Block) -> str:
    shown = checksum_address(token)
    try:
        decimals = await nodes.call(read_number, token, call("decimals"), block)
    except (RpcMalformed, RpcError):
        raise WrongChain(f"what stands at {shown} is no token", "mend [chain]: token") from None
    if decimals != CURRENCY_DECIMALS:
        hint = f"choose a token with {CURRENCY_DECIMALS} decimals, as most stable ones have"
        raise WrongChain(f"the token at {shown} has {decimals} decimals, and all amounts here have 6", hint)
    try:
        symbol = await nodes.call(read_text, token, call("symbol"), block)
    except (RpcMalformed, RpcError):
        symbol = ""
    return plain(symbol, LONGEST_SYMBOL).strip() or shown[:8]


def look_at_chain(config: ChainConfig) -> str:
    """Hold the chain against the configuration once, and answer what the token is called. Sends nothing.

    Raises:
        OperatorError: it cannot be asked, or something is not as it must be.
    """

    async def look() -> str:
        nodes = ChainNodes([RpcNode(url) for url in config.rpc], confirmations=config.confirmations)
        try:
            return await check_currency(config.currency, nodes)
        except RpcFault as fault:
            raise OperatorError(f"the chain cannot be asked: {plain(fault, 300)}", "look at chain.rpc") from None
        finally:
            await nodes.close()

    return trio.run(look)
