# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
# pragma nonreentrancy on
"""
@title HansaEscrow
@license Apache-2.0
@notice EXPERIMENTAL AND UNAUDITED. Channels between a payer and a payee: the payer deposits tokens, signs vouchers for a
        total that only rises, and whoever holds the newest voucher can have it counted here. Nobody owns this contract,
        nobody can change it, and it takes no fee.
@dev What each operation does, and when it refuses, is specified in plain Python by market/escrow_model.py.
     contracts/README.md explains the design; everything is counted in the token's smallest units.
"""

interface Token:
    def balanceOf(account: address) -> uint256: view
    def transfer(to: address, amount: uint256) -> bool: nonpayable
    def transferFrom(source: address, to: address, amount: uint256) -> bool: nonpayable


interface ContractSigner:
    def isValidSignature(digest: bytes32, signature: Bytes[MOST_SIGNATURE_BYTES]) -> bytes4: view


# A channel, for good: its EIP-712 digest is the channel's id. Members and order are part of that digest.
struct ChannelConfig:
    payer: address
    payerSigner: address
    payee: address
    payeeSigner: address
    token: address
    challengePeriod: uint64
    splitsHash: bytes32
    salt: bytes32


# A share of the channel's total, in basis points, for somebody other than the payee.
struct Split:
    account: address
    bps: uint256


# One voucher of a batch. All members are words, so that there is nothing in it that could fail to decode.
struct Claim:
    config: ChannelConfig
    cumulative: uint256
    statement: bytes32
    r: uint256
    s: uint256
    v: uint256


# What `channel` answers.
struct Channel:
    phase: uint256
    deposit: uint256
    claimed: uint256
    settled: uint256
    closableAt: uint256


event Opened:
    channelId: indexed(bytes32)
    payer: indexed(address)
    payee: indexed(address)
    payerSigner: address
    payeeSigner: address
    token: address
    challengePeriod: uint64
    splitsHash: bytes32
    salt: bytes32
    deposit: uint256


event ToppedUp:
    channelId: indexed(bytes32)
    account: indexed(address)
    deposit: uint256


event Claimed:
    channelId: indexed(bytes32)
    cumulative: uint256
    paid: uint256
    statement: bytes32


event ClaimSkipped:
    channelId: indexed(bytes32)
    index: uint256
    cumulative: uint256
    fault: uint256


# By the payer or its signer; until when the payee has time, `channel` says.
event CloseRequested:
    channelId: indexed(bytes32)


event Settled:
    channelId: indexed(bytes32)
    settled: uint256


event Closed:
    channelId: indexed(bytes32)
    account: indexed(address)
    settled: uint256
    refund: uint256


event Credited:
    token: indexed(address)
    account: indexed(address)
    channelId: indexed(bytes32)
    amount: uint256


event Withdrawn:
    token: indexed(address)
    account: indexed(address)
    amount: uint256


# What `channel` answers as its phase.
UNSET: constant(uint256) = 0
OPEN: constant(uint256) = 1
CLOSING: constant(uint256) = 2
CLOSED: constant(uint256) = 3

# Why a claim was not counted: `claimBatch` tells it of each item, 0 standing for "it was counted".
COUNTED: constant(uint256) = 0
NOT_ABOVE_CLAIMED: constant(uint256) = 1
ABOVE_DEPOSIT: constant(uint256) = 2
BAD_SIGNATURE: constant(uint256) = 3

MOST_SPLITS: constant(uint256) = 8
MOST_CLAIMS: constant(uint256) = 32
MOST_SIGNATURE_BYTES: constant(uint256) = 1024
WHOLE_BPS: constant(uint256) = 10_000
SHORTEST_CHALLENGE_S: constant(uint64) = 900
LONGEST_CHALLENGE_S: constant(uint64) = 30 * 86_400
LOW_HALF: constant(uint256) = 2**128 - 1
HALF_CURVE_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
ERC1271_MAGIC: constant(bytes4) = 0x1626ba7e

NAME: constant(String[11]) = "HansaEscrow"
VERSION: constant(String[1]) = "1"
DOMAIN_TYPE_HASH: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
CONFIG_TYPE_HASH: constant(bytes32) = keccak256(
    "ChannelConfig(address payer,address payerSigner,address payee,address payeeSigner,address token,uint64 challengePeriod,bytes32 splitsHash,bytes32 salt)"
)
VOUCHER_TYPE_HASH: constant(bytes32) = keccak256("Voucher(bytes32 channelId,uint128 cumulative,bytes32 statement)")
CLOSE_TYPE_HASH: constant(bytes32) = keccak256("CooperativeClose(bytes32 channelId,uint128 cumulative)")

DEPLOYED_ON: immutable(uint256)
DEPLOYED_DOMAIN: immutable(bytes32)

# id -> claimed << 128 | deposit. All that a claim reads and writes; zero unless the channel is open or closing, so that
# no claim can pass on any other.
money: HashMap[bytes32, uint256]

# id -> closableAt << 136 | phase << 128 | settled. Never zero again once the channel was opened: the tombstone.
standings: HashMap[bytes32, uint256]

# token -> account -> what it may withdraw.
credits: HashMap[address, HashMap[address, uint256]]


@deploy
def __init__():
    DEPLOYED_ON = chain.id
    DEPLOYED_DOMAIN = self._domain_of_this_chain()


# ---------------------------------------------------------------- opening


@external
def open(config: ChannelConfig, splits: DynArray[Split, MOST_SPLITS], amount: uint128) -> bytes32:
    """
    @notice Open a channel with a deposit, which the caller, its payer, has approved.
    @param splits The preimage of the config's splitsHash: a channel whose splits nobody knows could never pay.
    @return The channel's id.
    """
    return self._open(config, splits, convert(amount, uint256))


@external
def openWithPermit(
    config: ChannelConfig,
    splits: DynArray[Split, MOST_SPLITS],
    amount: uint128,
    deadline: uint256,
    v: uint8,
    r: bytes32,
    s: bytes32,
) -> bytes32:
    """
    @notice Open a channel with a deposit that the caller, its payer, has signed an EIP-2612 permit for.
    @dev Anybody who sees the permit can use it first. It then fails here, with the allowance as it should be: so what comes
         of the permit does not matter, and the transfer after it decides.
    """
    permitted: bool = raw_call(
        config.token,
        abi_encode(
            msg.sender,
            self,
            convert(amount, uint256),
            deadline,
            v,
            r,
            s,
            method_id=method_id("permit(address,address,uint256,uint256,uint8,bytes32,bytes32)"),
        ),
        revert_on_failure=False,
    )
    return self._open(config, splits, convert(amount, uint256))


@external
def topUp(config: ChannelConfig, amount: uint128):
    """
    @notice Add to an open channel's deposit; anybody may.
    """
    id: bytes32 = self._id_of(config)
    assert self._phase_of(self.standings[id]) == OPEN, "the channel is not open"
    assert amount > 0, "nothing is deposited"
    self._receive(config.token, convert(amount, uint256))
    held: uint256 = self.money[id]
    deposit: uint256 = (held & LOW_HALF) + convert(amount, uint256)
    assert deposit <= LOW_HALF, "the deposit would be too large"
    self.money[id] = (held & ~LOW_HALF) | deposit
    log ToppedUp(channelId=id, account=msg.sender, deposit=deposit)


# ---------------------------------------------------------------- claims


@external
def claim(config: ChannelConfig, cumulative: uint128, statement: bytes32, signature: Bytes[MOST_SIGNATURE_BYTES]):
    """
    @notice Count a voucher; anybody may, as it can pay only the channel's payee and splits.
    @param signature r, s, v of the payer's signer; or, if that is a contract, what its ERC-1271 accepts.
    """
    id: bytes32 = self._id_of(config)
    held: uint256 = self.money[id]
    total: uint256 = convert(cumulative, uint256)
    assert total <= held & LOW_HALF, "above the deposit, or no open channel"
    assert total > held >> 128, "not above what was claimed"
    digest: bytes32 = self._voucher_digest(id, total, statement)
    if not self._signed_by(config.payerSigner, digest, signature):
        assert config.payerSigner.is_contract, "not signed by the payer's signer"
        answer: bytes4 = staticcall ContractSigner(config.payerSigner).isValidSignature(digest, signature)
        assert answer == ERC1271_MAGIC, "the payer's contract does not accept the signature"
    self._count(id, held, total, statement)


@external
def claimBatch(claims: DynArray[Claim, MOST_CLAIMS]) -> DynArray[uint256, MOST_CLAIMS]:
    """
    @notice Count many vouchers; anybody may. What cannot be counted is skipped and told of, and keeps no other back.
    @dev No ERC-1271 here: a contract that is asked could make the whole batch fail.
    @return For each item 0 if it was counted, or else why it was not (also in ClaimSkipped).
    """
    faults: DynArray[uint256, MOST_CLAIMS] = []
    for item: Claim in claims:
        id: bytes32 = self._id_of(item.config)
        held: uint256 = self.money[id]
        fault: uint256 = COUNTED
        if item.cumulative > held & LOW_HALF:
            fault = ABOVE_DEPOSIT
        elif item.cumulative <= held >> 128:
            fault = NOT_ABOVE_CLAIMED
        elif not self._is_signer(
            item.config.payerSigner,
            self._voucher_digest(id, item.cumulative, item.statement),
            item.v,
            item.r,
            item.s,
        ):
            fault = BAD_SIGNATURE
        if fault == COUNTED:
            self._count(id, held, item.cumulative, item.statement)
        else:
            log ClaimSkipped(channelId=id, index=len(faults), cumulative=item.cumulative, fault=fault)
        faults.append(fault)
    return faults


@external
def settle(config: ChannelConfig, splits: DynArray[Split, MOST_SPLITS]):
    """
    @notice Credit what was claimed and is not yet settled to payee and splits; anybody may.
    """
    id: bytes32 = self._id_of(config)
    standing: uint256 = self.standings[id]
    phase: uint256 = self._phase_of(standing)
    assert phase == OPEN or phase == CLOSING, "the channel is neither open nor closing"
    settled: uint256 = standing & LOW_HALF
    claimed: uint256 = self.money[id] >> 128
    assert claimed > settled, "nothing is to be settled"
    self.standings[id] = (standing & ~LOW_HALF) | claimed
    self._credit_shares(id, config, splits, settled, claimed, False)
    log Settled(channelId=id, settled=claimed)


# ---------------------------------------------------------------- closing


@external
def requestClose(config: ChannelConfig):
    """
    @notice Begin the end of a channel: the payee has the challenge period to bring its best voucher.
    """
    assert msg.sender == config.payer or msg.sender == config.payerSigner, "not the payer or its signer"
    id: bytes32 = self._id_of(config)
    standing: uint256 = self.standings[id]
    # No closableAt stands above the phase of an open channel.
    assert standing >> 128 == OPEN, "the channel is not open"
    closable_at: uint256 = block.timestamp + convert(config.challengePeriod, uint256)
    self.standings[id] = (closable_at << 136) | (CLOSING << 128) | (standing & LOW_HALF)
    log CloseRequested(channelId=id)


@external
def finalize(config: ChannelConfig, splits: DynArray[Split, MOST_SPLITS]):
    """
    @notice End a closing channel whose challenge period is over; anybody may.
    """
    id: bytes32 = self._id_of(config)
    standing: uint256 = self.standings[id]
    assert self._phase_of(standing) == CLOSING, "the channel is not closing"
    assert block.timestamp >= standing >> 136, "the challenge period is not over"
    held: uint256 = self.money[id]
    self._close(id, config, splits, held, standing & LOW_HALF, held >> 128)


@external
def payeeClose(
    config: ChannelConfig,
    splits: DynArray[Split, MOST_SPLITS],
    cumulative: uint128,
    statement: bytes32,
    signature: Bytes[MOST_SIGNATURE_BYTES],
):
    """
    @notice End a channel at once, by its payee or the payee's signer, with a last voucher or (cumulative 0) without.
    @dev A voucher that somebody has claimed meanwhile, or one above it, does no harm: it is passed over.
    """
    assert msg.sender == config.payee or msg.sender == config.payeeSigner, "not the payee or its signer"
    id: bytes32 = self._id_of(config)
    standing: uint256 = self.standings[id]
    phase: uint256 = self._phase_of(standing)
    assert phase == OPEN or phase == CLOSING, "the channel is neither open nor closing"
    held: uint256 = self.money[id]
    claimed: uint256 = held >> 128
    total: uint256 = convert(cumulative, uint256)
    if total > claimed:
        assert total <= held & LOW_HALF, "above the deposit"
        digest: bytes32 = self._voucher_digest(id, total, statement)
        assert self._signed_by(config.payerSigner, digest, signature), "not signed by the payer's signer"
        log Claimed(channelId=id, cumulative=total, paid=total - claimed, statement=statement)
        claimed = total
    self._close(id, config, splits, held, standing & LOW_HALF, claimed)


@external
def cooperativeClose(
    config: ChannelConfig,
    splits: DynArray[Split, MOST_SPLITS],
    cumulative: uint128,
    payerSignature: Bytes[65],
    payeeSignature: Bytes[65],
):
    """
    @notice End a channel at once at a total that both signers signed; anybody may bring it.
    @dev The total may be below what was claimed, since both agree, but not below what was settled: that is spent.
    """
    id: bytes32 = self._id_of(config)
    standing: uint256 = self.standings[id]
    phase: uint256 = self._phase_of(standing)
    assert phase == OPEN or phase == CLOSING, "the channel is neither open nor closing"
    held: uint256 = self.money[id]
    settled: uint256 = standing & LOW_HALF
    total: uint256 = convert(cumulative, uint256)
    assert total >= settled, "below what was settled"
    assert total <= held & LOW_HALF, "above the deposit"
    digest: bytes32 = self._digest_of(keccak256(abi_encode(CLOSE_TYPE_HASH, id, total)))
    assert self._signed_by(config.payerSigner, digest, payerSignature), "not signed by the payer's signer"
    assert self._signed_by(config.payeeSigner, digest, payeeSignature), "not signed by the payee's signer"
    self._close(id, config, splits, held, settled, total)


# ---------------------------------------------------------------- money out


@external
def withdraw(token: address, account: address) -> uint256:
    """
    @notice Pay out an account's credit to it; anybody may.
    """
    amount: uint256 = self.credits[token][account]
    assert amount > 0, "there is no credit"
    self.credits[token][account] = 0
    assert extcall Token(token).transfer(account, amount, default_return_value=True), "the token did not transfer"
    log Withdrawn(token=token, account=account, amount=amount)
    return amount


# ---------------------------------------------------------------- what anybody may ask


@external
@view
def credit(token: address, account: address) -> uint256:
    """
    @notice What an account could withdraw.
    """
    return self.credits[token][account]


@external
@view
def channel(id: bytes32) -> Channel:
    """
    @notice A channel by its id. Once closed, deposit and claimed are what was settled.
    """
    held: uint256 = self.money[id]
    standing: uint256 = self.standings[id]
    settled: uint256 = standing & LOW_HALF
    phase: uint256 = self._phase_of(standing)
    if phase == CLOSED:
        return Channel(phase=phase, deposit=settled, claimed=settled, settled=settled, closableAt=0)
    return Channel(
        phase=phase, deposit=held & LOW_HALF, claimed=held >> 128, settled=settled, closableAt=standing >> 136
    )


@external
@view
def channelId(config: ChannelConfig) -> bytes32:
    """
    @notice The id of the channel that a config would open.
    """
    return self._id_of(config)


@external
@view
def eip712Domain() -> (bytes1, String[11], String[1], uint256, address, bytes32, DynArray[uint256, 1]):
    """
    @notice What documents for this contract are signed for (EIP-5267).
    """
    return 0x0f, NAME, VERSION, chain.id, self, empty(bytes32), empty(DynArray[uint256, 1])


# ---------------------------------------------------------------- inside


@internal
def _open(config: ChannelConfig, splits: DynArray[Split, MOST_SPLITS], amount: uint256) -> bytes32:
    assert msg.sender == config.payer, "not the payer"
    # The zero address is what a failed recovery looks like, and what nobody can withdraw to.
    assert config.payerSigner != empty(address), "no signer of the payer"
    assert config.payee != empty(address), "no payee"
    assert config.payeeSigner != empty(address), "no signer of the payee"
    assert config.challengePeriod >= SHORTEST_CHALLENGE_S, "the challenge period is too short"
    assert config.challengePeriod <= LONGEST_CHALLENGE_S, "the challenge period is too long"
    assert amount > 0, "nothing is deposited"
    self._check_splits(config.splitsHash, splits)
    id: bytes32 = self._id_of(config)
    assert self.standings[id] == 0, "the channel was opened before"
    self.money[id] = amount
    self.standings[id] = OPEN << 128
    self._receive(config.token, amount)
    log Opened(
        channelId=id,
        payer=config.payer,
        payee=config.payee,
        payerSigner=config.payerSigner,
        payeeSigner=config.payeeSigner,
        token=config.token,
        challengePeriod=config.challengePeriod,
        splitsHash=config.splitsHash,
        salt=config.salt,
        deposit=amount,
    )
    return id


@internal
@view
def _check_splits(expected: bytes32, splits: DynArray[Split, MOST_SPLITS]):
    """
    @dev Accounts rise and are not zero, shares are at least 1 and at most the whole in all.
    """
    before: uint256 = 0
    whole: uint256 = 0
    for split: Split in splits:
        account: uint256 = convert(split.account, uint256)
        assert account > before, "the splits' accounts do not rise from above zero"
        assert split.bps > 0, "a split has no share"
        before = account
        whole += split.bps
    assert whole <= WHOLE_BPS, "the splits are more than the whole"
    assert self._splits_hash(splits) == expected, "not the channel's splits"


@internal
@pure
def _splits_hash(splits: DynArray[Split, MOST_SPLITS]) -> bytes32:
    so_far: bytes32 = empty(bytes32)
    for split: Split in splits:
        so_far = keccak256(abi_encode(so_far, split))
    return so_far


@internal
def _receive(token: address, amount: uint256):
    """
    @dev A token that takes a fee on the way, or moves nothing, is refused: the deposit must be here in full.
    """
    before: uint256 = staticcall Token(token).balanceOf(self)
    assert extcall Token(token).transferFrom(
        msg.sender, self, amount, default_return_value=True
    ), "the token did not transfer"
    assert staticcall Token(token).balanceOf(self) == before + amount, "the token did not arrive in full"


@internal
def _count(id: bytes32, held: uint256, total: uint256, statement: bytes32):
    self.money[id] = (total << 128) | (held & LOW_HALF)
    log Claimed(channelId=id, cumulative=total, paid=total - (held >> 128), statement=statement)


@internal
def _close(
    id: bytes32,
    config: ChannelConfig,
    splits: DynArray[Split, MOST_SPLITS],
    held: uint256,
    settled: uint256,
    total: uint256,
):
    """
    @dev The id stays taken for good, and with `money` at zero no claim can pass on it.
    """
    refund: uint256 = (held & LOW_HALF) - total
    self.money[id] = 0
    self.standings[id] = (CLOSED << 128) | total
    self._credit_shares(id, config, splits, settled, total, True)
    self._credit(id, config.token, config.payer, refund)
    log Closed(channelId=id, account=msg.sender, settled=total, refund=refund)


@internal
def _credit_shares(
    id: bytes32,
    config: ChannelConfig,
    splits: DynArray[Split, MOST_SPLITS],
    before: uint256,
    total: uint256,
    last: bool,
):
    """
    @dev Everybody's part is the floor of its share of the total, less what it had: nothing depends on how a total was cut.
         At the channel's end the payee's part is what the other floors leave. See proto/splits.py.
    """
    assert self._splits_hash(splits) == config.splitsHash, "not the channel's splits"
    payee_bps: uint256 = WHOLE_BPS
    payee_total: uint256 = total
    for split: Split in splits:
        part: uint256 = total * split.bps // WHOLE_BPS
        payee_bps -= split.bps
        payee_total -= part
        self._credit(id, config.token, split.account, part - before * split.bps // WHOLE_BPS)
    if not last:
        payee_total = total * payee_bps // WHOLE_BPS
    self._credit(id, config.token, config.payee, payee_total - before * payee_bps // WHOLE_BPS)


@internal
def _credit(id: bytes32, token: address, account: address, amount: uint256):
    if amount > 0:
        self.credits[token][account] += amount
        log Credited(token=token, account=account, channelId=id, amount=amount)


@internal
@pure
def _phase_of(standing: uint256) -> uint256:
    return (standing >> 128) & 255


@internal
@view
def _id_of(config: ChannelConfig) -> bytes32:
    return self._digest_of(keccak256(abi_encode(CONFIG_TYPE_HASH, config)))


@internal
@view
def _voucher_digest(id: bytes32, total: uint256, statement: bytes32) -> bytes32:
    return self._digest_of(keccak256(abi_encode(VOUCHER_TYPE_HASH, id, total, statement)))


@internal
@view
def _digest_of(struct_hash: bytes32) -> bytes32:
    domain: bytes32 = DEPLOYED_DOMAIN
    if chain.id != DEPLOYED_ON:
        # The chain was forked: what is signed for the other one is worth nothing here.
        domain = self._domain_of_this_chain()
    return keccak256(concat(0x1901, domain, struct_hash))


@internal
@view
def _domain_of_this_chain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE_HASH, keccak256(NAME), keccak256(VERSION), chain.id, self))


@internal
@view
def _signed_by(signer: address, digest: bytes32, signature: Bytes[MOST_SIGNATURE_BYTES]) -> bool:
    if len(signature) != 65:
        return False
    return self._is_signer(
        signer,
        digest,
        convert(slice(signature, 64, 1), uint256),
        convert(slice(signature, 0, 32), uint256),
        convert(slice(signature, 32, 32), uint256),
    )


@internal
@view
def _is_signer(signer: address, digest: bytes32, v: uint256, r: uint256, s: uint256) -> bool:
    """
    @dev One canonical form only: every (r, s) has a twin (r, n - s), and v has other spellings elsewhere.
    """
    if v != 27 and v != 28:
        return False
    if s > HALF_CURVE_ORDER:
        return False
    recovered: address = ecrecover(digest, v, r, s)
    return recovered != empty(address) and recovered == signer
