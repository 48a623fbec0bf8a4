# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title ContractSigner
@license Apache-2.0
@notice FOR TESTS ONLY: an account that is a contract (ERC-1271), which accepts what its owner signed.
"""

interface Token:
    def approve(spender: address, amount: uint256) -> bool: nonpayable


MAGIC: constant(bytes4) = 0x1626ba7e

owner: address
answers_wrongly: bool


@deploy
def __init__(owner: address):
    self.owner = owner


@external
def turn(answers_wrongly: bool):
    """
    @notice Answer with other four bytes from now on.
    """
    self.answers_wrongly = answers_wrongly


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[2048]) -> bytes4:
    """
    @notice ERC-1271, for a signature of 66 bytes: any one, then r, s, v. So it can be no ordinary one of anybody's.
    """
    assert len(signature) == 66, "not this contract's kind of signature"
    signer: address = ecrecover(
        digest,
        convert(slice(signature, 65, 1), uint256),
        convert(slice(signature, 1, 32), uint256),
        convert(slice(signature, 33, 32), uint256),
    )
    if signer != self.owner or self.answers_wrongly:
        return 0xffffffff
    return MAGIC
