# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title TestToken
@license Apache-2.0
@notice FOR TESTS AND LOCAL CHAINS ONLY: anybody may mint. An ERC-20 with permit (EIP-2612), as ordinary ones are.
"""

event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    value: uint256


event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256


NAME: constant(String[10]) = "Test Token"
VERSION: constant(String[1]) = "1"
DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
PERMIT_TYPE_HASH: constant(bytes32) = keccak256(
    "Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)"
)
name: public(constant(String[10])) = NAME
symbol: public(constant(String[4])) = "TEST"
decimals: public(immutable(uint8))

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
nonces: public(HashMap[address, uint256])
totalSupply: public(uint256)


@deploy
def __init__(places: uint8):
    decimals = places


@external
def mint(account: address, amount: uint256):
    """
    @notice Make tokens out of nothing; anybody may.
    """
    self.totalSupply += amount
    self.balanceOf[account] += amount
    log Transfer(sender=empty(address), receiver=account, value=amount)


@external
def transfer(receiver: address, amount: uint256) -> bool:
    """
    @notice Send tokens of one's own.
    """
    self._move(msg.sender, receiver, amount)
    return True


@external
def transferFrom(sender: address, receiver: address, amount: uint256) -> bool:
    """
    @notice Send another's tokens, within what it approved.
    """
    allowed: uint256 = self.allowance[sender][msg.sender]
    if allowed != max_value(uint256):
        self.allowance[sender][msg.sender] = allowed - amount
    self._move(sender, receiver, amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Let another send up to an amount of one's tokens.
    """
    self._approve(msg.sender, spender, amount)
    return True


@external
def permit(
    owner: address, spender: address, amount: uint256, deadline: uint256, v: uint8, r: bytes32, s: bytes32
):
    """
    @notice Approve by a signature (EIP-2612); anybody may bring it, once.
    """
    assert block.timestamp <= deadline, "the permit has expired"
    nonce: uint256 = self.nonces[owner]
    digest: bytes32 = keccak256(
        concat(
            0x1901,
            self._domain(),
            keccak256(abi_encode(PERMIT_TYPE_HASH, owner, spender, amount, nonce, deadline)),
        )
    )
    signer: address = ecrecover(digest, v, r, s)
    assert signer != empty(address) and signer == owner, "not signed by the owner"
    self.nonces[owner] = nonce + 1
    self._approve(owner, spender, amount)


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    """
    @notice What permits are signed for.
    """
    return self._domain()


@external
@view
def eip712Domain() -> (bytes1, String[10], String[1], uint256, address, bytes32, DynArray[uint256, 1]):
    """
    @notice What permits are signed for (EIP-5267).
    """
    return 0x0f, NAME, VERSION, chain.id, self, empty(bytes32), empty(DynArray[uint256, 1])


@internal
def _approve(owner: address, spender: address, amount: uint256):
    self.allowance[owner][spender] = amount
    log Approval(owner=owner, spender=spender, value=amount)


@internal
def _move(sender: address, receiver: address, amount: uint256):
    self.balanceOf[sender] -= amount
    self.balanceOf[receiver] += amount
    log Transfer(sender=sender, receiver=receiver, value=amount)


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE_HASH, keccak256(NAME), keccak256(VERSION), chain.id, self))
