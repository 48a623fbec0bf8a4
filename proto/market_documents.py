"""The market's signed documents, from a provider's advert to the buyer's award.

Each names its signer, what it answers, when it expires, and a nonce; each is EIP-712 typed data
(``hansa.proto.typed_data``), so that what is signed is a digest of the meaning and never of an encoding.
Money's own documents (receipt, voucher, channel) stand in ``hansa.proto.documents``.
"""

from dataclasses import dataclass

from hansa.proto.splits import Split
from hansa.proto.units import (
    Address,
    Amount,
    Bytes32,
    DeviceMs,
    DurationMs,
    Line,
    Note,
    PriceE18,
    Uint32,
    Uint64,
    UnixMs,
)

KIND_CPU = "cpu"
KIND_GPU = "gpu"
TIER_NONE = "none"
TIER_SANDBOX = "sandbox"
TIER_GVISOR = "gvisor"
TIER_MICROVM = "microvm"
TIER_TEE = "tee"
FEATURE_DEPENDENCIES = "dependencies"
"""Python packages by a lock file, from an index."""
FEATURE_IMAGE = "image"
"""A container image as the sandbox's root file system."""
FEATURE_EGRESS = "egress"
"""Connections to hosts outside, through an allow-listing proxy."""
FEATURE_SEVERAL_MACHINES = "several-machines"
"""One shard's devices may be on several machines of the provider, as one Ray cluster over a network of their own."""
FEATURE_MIRRORS = "mirrors"
"""Copies of the checkpoints of other shards of the same job are held while a lease in it lasts."""
FEATURE_SEALED = "sealed"
"""Everything that a run is given or makes is sealed for the job's buyer and its providers (``hansa.proto.sealed``)."""
FEATURES = (
    FEATURE_DEPENDENCIES,
    FEATURE_EGRESS,
    FEATURE_IMAGE,
    FEATURE_MIRRORS,
    FEATURE_SEALED,
    FEATURE_SEVERAL_MACHINES,
)


LEASE_FIRM = "firm"
"""A lease whose devices the provider leaves to the buyer until it ends, or else forfeits the bid's ``penalty``."""
LEASE_SPOT = "spot"
"""A lease whose devices may be taken back after the notice, at no cost."""
LEASE_ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that somebody states: of a device, a provider or a job.

    Attributes:
        name: a word of the vocabulary (``hansa.market.vocabulary``), such as ``"cuda"``, ``"region"`` or ``"licence"``.
        value: its value in the one form in which the vocabulary writes it.
    """

    name: Line
    value: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One condition on a fact.

    Attributes:
        name: a word of the vocabulary.
        operator: ``"="``, ``"!="``, ``"<"``, ``"<="``, ``">"``, ``">="``, ``"in"`` or ``"not in"``.
        values: one value in the vocabulary's form, or the members of a list, sorted and each once.
    """

    name: Line
    operator: Line
    values: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceChoice:
    """One of several sets of devices of which any would do for a shard, such as 8 H100 or 8 A100 of 80 GB.

    Attributes:
        devices: how many.
        model: of which model, in its one form (``hansa.proto.gpu_models``).
    """

    devices: Uint32
    model: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortfall:
    """One thing in which a provider falls short of a tender.

    Attributes:
        name: a word of the vocabulary, or a field of the tender.
        wanted: what was asked for, as a person reads it.
        nearest: the value with which this would be no obstacle, in the vocabulary's form; empty where there is none.
    """

    name: Line
    wanted: Line
    nearest: Line


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that a provider lends: a GPU, or a slot of CPU cores that is sold as just that.

    It is lent whole, unless its fact ``share`` names the smallest part of it that is lent.

    Attributes:
        id: keccak256 of the provider's account and the device's own serial; the same for the device's whole life.
        kind: ``"gpu"`` or ``"cpu"``.
        model: the model's name as its driver or the kernel gives it.
        memory_bytes: the GPU's own memory, or the slot's share of the machine's.
        cores: CPU cores that come with the device, in thousandths (2000 is two cores).
        facts: what else is known of it and its machine, sorted by name, each name once.
    """

    id: Bytes32
    kind: Line
    model: Line
    memory_bytes: Uint64
    cores_milli: Uint32
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Advert:
    """A provider's standing statement of what it has, where, and for how much.

    Attributes:
        signer: the provider's account.
        peer_id: the node that speaks for the account; peers check the binding before they believe it.
        addresses: where the node can be dialled, as multiaddrs.
        devices: everything it lends, under this one signature.
        free: how many of the devices were free when this was signed.
        tier: the isolation every job gets here (``"sandbox"``, or ``"none"`` on the owner's own machines).
        features: what else jobs can have here, each a word of ``FEATURES`` or ``"python3.11"`` and the like, sorted.
        region: where the machine stands, in the owner's words.
        facts: what is true of all its devices, sorted by name, each name once; a device's own fact goes before it.
        currency: the unit of account that prices are in.
        price_e18_per_device_ms: the posted price, in smallest units times 1e18 for one device and one millisecond.
        sequence: rises with every new advert of this signer; the highest wins.
        expires_ms: after this the advert is void.
    """

    signer: Address
    peer_id: Line
    addresses: tuple[Line, ...]
    devices: tuple[Device, ...]
    free: Uint32
    tier: Line
    features: tuple[Line, ...]
    region: Line
    facts: tuple[Fact, ...]
    currency: Line
    price_e18_per_device_ms: PriceE18
    sequence: Uint64
    expires_ms: UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What one shard needs of its provider.

    Attributes:
        kind: ``"gpu"``, ``"cpu"`` or ``"any"``.
        choices: sets of devices of which any one does, the best liked first; empty means ``devices`` of any model.
        devices: devices for the shard; with choices, the most that any of them has. A clause on ``share`` asks for a
            part of one.
        device_memory_bytes: least memory of each device.
        cores_milli: least CPU cores, all devices together, in thousandths.
        memory_bytes: main memory the sandbox may use.
        scratch_bytes: room for the shard's files.
        tier: the isolation asked for.
        features: what the provider must have beside devices; see ``Advert.features``.
        egress: hosts outside that the job may speak to, each ``"host:port"``, the host with a leading ``*.`` for all
            below it; none means no network at all.
        wall_ms: the longest a run may take.
        clauses: what must hold of the devices and their provider beside that, all of it.
    """

    kind: Line
    choices: tuple[DeviceChoice, ...]
    devices: Uint32
    device_memory_bytes: Uint64
    cores_milli: Uint32
    memory_bytes: Uint64
    scratch_bytes: Uint64
    tier: Line
    features: tuple[Line, ...]
    egress: tuple[Line, ...]
    wall_ms: DurationMs
    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tender:
    """The buyer's call for bids on some shards of a job.

    Attributes:
        signer: the buyer's account.
        peer_id: the buyer's node, where bids go and nowhere else.
        job: the job's id.
        shards: the shards to be placed, all or none.
        requirements: what each of them needs.
        currency: the unit of account of all prices.
        price_ceiling_e18_per_device_ms: a bid above this is not considered.
        meter_interval_ms: how often the buyer wants receipts.
        splits: what part of every payment goes to others than the provider: royalties, a fee.
        facts: what the buyer states of the job, for the providers' own rules; sorted by name, each name once.
        lease: ``"firm"``, ``"spot"``, or ``"any"`` for either.
        deadline_ms: the job is worth nothing after this; 0 where there is no such time.
        bids_close_ms: bids that arrive later are not considered.
        expires_ms: after this the tender is void and every hold for it may be freed.
        nonce: random; tells this tender from every other.
    """

    signer: Address
    peer_id: Line
    job: Bytes32
    shards: tuple[Uint32, ...]
    requirements: Requirements
    currency: Line
    price_ceiling_e18_per_device_ms: PriceE18
    meter_interval_ms: DurationMs
    splits: tuple[Split, ...]
    facts: tuple[Fact, ...]
    lease: Line
    deadline_ms: UnixMs
    bids_close_ms: UnixMs
    expires_ms: UnixMs
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    """A provider's promise to run one shard, with the very devices it would run on. The devices are held for it.

    A provider with room for more shards sends more bids.

    Attributes:
        signer: the provider's account.
        tender: digest of the tender that this answers.
        devices: ids of the devices that are held.
        tier: the isolation that the shard would get.
        price_e18_per_device_ms: the price, in smallest units times 1e18 for one device and one millisecond.
        meter_interval_ms: a receipt at most this often.
        voucher_timeout_ms: without a voucher for this long after a receipt the run is paused.
        max_unpaid: with more than this run up and not vouched for, the run is paused.
        max_total: the most that the lease can ever cost.
        prepay: how far ahead of receipts the buyer pays; 0 where it pays afterwards.
        payee: the account that is paid; the signer itself, or a colder one of the same owner.
        reclaim_notice_ms: how long before taking a device back the provider says so.
        lease: ``"firm"`` or ``"spot"``.
        penalty: of what was worked for, so much is charged only when the lease has ended without the provider having
            taken the devices back or lost the run; 0 in a spot lease.
        facts: what the provider states of these very devices, its own and theirs, sorted by name, each name once.
        splits_hash: the hash of the tender's splits, to which the provider agrees (32 zero bytes: no split).
        expires_ms: the bid stands, and the devices are held, until then.
        nonce: random; tells this bid from every other.
    """

    signer: Address
    tender: Bytes32
    devices: tuple[Bytes32, ...]
    tier: Line
    price_e18_per_device_ms: PriceE18
    meter_interval_ms: DurationMs
    voucher_timeout_ms: DurationMs
    max_unpaid: Amount
    max_total: Amount
    prepay: Amount
    payee: Address
    reclaim_notice_ms: DurationMs
    lease: Line
    penalty: Amount
    facts: tuple[Fact, ...]
    splits_hash: Bytes32
    expires_ms: UnixMs
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """A provider's "no" to a tender: why, and the nearest change that would make it a yes.

    Attributes:
        signer: the provider's account.
        tender: digest of the tender that this answers.
        reason: the requirement that failed, in words.
        relaxation: the nearest change that would make it a yes, in words; empty where there is none.
        shortfalls: the same for a machine to read: with every one of these changed, the answer would be a bid. Empty
            where no change of the tender's would help.
        expires_ms: the answer may be different after this.
        nonce: random.
    """

    signer: Address
    tender: Bytes32
    reason: Note
    relaxation: Note
    shortfalls: tuple[Shortfall, ...]
    expires_ms: UnixMs
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Award:
    """The buyer's acceptance of one bid. Its digest is the lease's id.

    Attributes:
        signer: the buyer's account.
        bid: digest of the bid that is accepted.
        shard: the shard that the provider is to run.
        channel_id: the channel that the lease is paid on.
        workload: digest of what is to be run (``hansa.proto.workload``).
        confirm_by_ms: the provider confirms until then, or the award is void.
        start_by_ms: the buyer orders the start until then, or the lease lapses and nothing is owed.
        ends_ms: the lease ends then whatever happens.
        nonce: random.
    """

    signer: Address
    bid: Bytes32
    shard: Uint32
    channel_id: Bytes32
    workload: Bytes32
    confirm_by_ms: UnixMs
    start_by_ms: UnixMs
    ends_ms: UnixMs
    nonce: Bytes32


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a shard delivered until now: the reason why a receipt's line may be paid. Totals, like the line itself.

    Attributes:
        lease: the lease that it belongs to.
        shard: the shard.
        steps: useful steps reported by the job.
        rounds: rounds that the shard contributed to.
        checkpoint: root of the newest checkpoint (32 zero bytes before the first).
        tier: the isolation that the shard ran in.
        busy_ms: device-milliseconds in which the devices computed, as their driver samples it; 0 where nobody measures.
    """

    lease: Bytes32
    shard: Uint32
    steps: Uint64
    rounds: Uint32
    checkpoint: Bytes32
    tier: Line
    busy_ms: DeviceMs
