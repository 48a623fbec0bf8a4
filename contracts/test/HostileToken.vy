# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title HostileToken
@license Apache-2.0
@notice FOR TESTS ONLY: an ERC-20 that behaves in every way that an escrow has to expect, as it is told.
"""

HONEST: constant(uint256) = 0
FEE_ON_TRANSFER: constant(uint256) = 1
NO_RETURN: constant(uint256) = 2
FALSE_RETURN: constant(uint256) = 3
REENTRANT: constant(uint256) = 4
SILENT_THIEF: constant(uint256) = 5
WHOLE: constant(uint256) = 10_000

# How it behaves from now on, and (in ten-thousandths) how much of every balance a rebase has left.
manner: public(uint256)
scale: public(uint256)

# What it calls, and with what, in the middle of a transfer when it is REENTRANT; and whether that call was let through.
target: public(address)
data: public(Bytes[4096])
got_in: public(bool)

shares: HashMap[address, uint256]
blacklisted: public(HashMap[address, bool])
allowance: public(HashMap[address, HashMap[address, uint256]])


@deploy
def __init__():
    self.scale = WHOLE


@external
def behave(manner: uint256):
    """
    @notice Choose a manner.
    """
    self.manner = manner


@external
def rebase(scale: uint256):
    """
    @notice Make everybody's balance another, in ten-thousandths of what was minted and moved.
    """
    self.scale = scale


@external
def blacklist(account: address, barred: bool):
    """
    @notice Refuse all transfers to an account.
    """
    self.blacklisted[account] = barred


@external
def reenter(target: address, data: Bytes[4096]):
    """
    @notice Call this in the middle of every transfer.
    """
    self.manner = REENTRANT
    self.target = target
    self.data = data
    self.got_in = False


@external
def mint(account: address, amount: uint256):
    """
    @notice Make tokens out of nothing.
    """
    self.shares[account] += amount


@external
def approve(spender: address, amount: uint256) -> bool:
    """
    @notice Let another send up to an amount.
    """
    self.allowance[msg.sender][spender] = amount
    return True


@external
def allow(owner: address, spender: address, amount: uint256):
    """
    @notice Let one account send up to an amount of another's.
    """
    self.allowance[owner][spender] = amount


@external
@view
def balanceOf(account: address) -> uint256:
    """
    @notice A balance, as the last rebase left it.
    """
    return self.shares[account] * self.scale // WHOLE


@external
@raw_return
def transfer(receiver: address, amount: uint256) -> Bytes[32]:
    """
    @notice Send, in its manner.
    """
    return self._move(msg.sender, receiver, amount)


@external
@raw_return
def transferFrom(sender: address, receiver: address, amount: uint256) -> Bytes[32]:
    """
    @notice Send another's, in its manner.
    """
    if self.manner != FALSE_RETURN:
        self.allowance[sender][msg.sender] -= amount
    return self._move(sender, receiver, amount)


@internal
def _move(sender: address, receiver: address, amount: uint256) -> Bytes[32]:
    if self.manner == FALSE_RETURN:
        return abi_encode(False)
    assert not self.blacklisted[receiver], "blacklisted"
    if self.manner == SILENT_THIEF:
        return abi_encode(True)
    if self.manner == REENTRANT:
        self.got_in = raw_call(self.target, self.data, revert_on_failure=False)
    arriving: uint256 = amount
    if self.manner == FEE_ON_TRANSFER:
        arriving = amount - amount // 100
    self.shares[sender] -= amount * WHOLE // self.scale
    self.shares[receiver] += arriving * WHOLE // self.scale
    if self.manner == NO_RETURN:
        return b""
    return abi_encode(True)
