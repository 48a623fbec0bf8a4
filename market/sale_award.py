"""Why a provider does not take an award of its bid, in words: what was promised must be what is bought."""

from hansa.market.funding import longest_wait_ms
from hansa.market.receipts import CLOCK_SKEW_MS
from hansa.market.sale_events import AwardArrived
from hansa.market.sale_state import Sale
from hansa.market.settlement import CHALLENGE_PERIOD_S
from hansa.proto.currency import currency_of
from hansa.proto.documents import channel_id
from hansa.proto.network import DOMAIN
from hansa.proto.typed_data import digest
from hansa.proto.workload import LARGEST_SIZE_BYTES, MAX_FILE_LIST_BYTES, Workload

LARGEST_PACKAGE_BYTES = 1 << 30
LARGEST_STATE_BYTES = 2 << 30
LARGEST_OUTPUT_BYTES = 4 << 30
MOST_WORKERS = 256


def objection_to(state: Sale, event: AwardArrived) -> str:
    """What is wrong with it; empty where nothing is."""
    award, channel = event.award, event.channel
    if award.signer != state.tender.signer:
        return "the award is not by the buyer who tendered"
    if event.at_ms > min(award.confirm_by_ms + CLOCK_SKEW_MS, state.bid.expires_ms):
        return "the bid or the award has expired"
    if award.start_by_ms > event.at_ms + longest_wait_ms(state.tender.currency):
        return "the devices would wait too long for their start"
    if event.channel_closed:
        return "the channel is closed"
    if award.shard not in state.tender.shards:
        return "the award names a shard that was not tendered"
    if award.workload != digest(DOMAIN, event.workload):
        return "the workload is not the one that the award names"
    if event.workload.job != state.tender.job or event.workload.wall_ms > state.tender.requirements.wall_ms:
        return "the workload is not the one that was tendered"
    needs = state.tender.requirements
    if event.workload.memory_bytes > needs.memory_bytes or event.workload.scratch_bytes > needs.scratch_bytes:
        return "the workload asks for more than was tendered"
    if event.workload.shared_memory_bytes > event.workload.memory_bytes:
        return "the workload asks for more shared memory than memory"
    if not is_possible(event.workload):
        return "the workload has no workers, or a size that no sandbox can have"
    if is_too_large(event.workload):
        return "the workload is larger than providers take"
    if event.workload.fetch_bytes > state.max_fetch_bytes:
        return f"the files of a shard weigh more than is fetched here, which is {state.max_fetch_bytes >> 20} MiB"
    currency = currency_of(state.tender.currency)
    if award.channel_id != channel_id(currency.domain, channel):
        return "the channel is not the one that the award names"
    parties = (channel.payer_signer, channel.payee, channel.payee_signer)
    if parties != (award.signer, state.bid.payee, state.bid.signer):
        return "the channel is not between this buyer and this provider"
    if channel.payer != award.signer and not currency.is_on_chain:
        # A voucher on the ledger is a debt, and nobody runs up another's. On a chain nothing is worked without a
        # deposit, and the first can only be made by the payer itself: it does not matter who that is.
        return "the channel is paid by another account than the buyer's, and only one on a chain may be"
    if channel.splits_hash != state.bid.splits_hash or channel.token != currency.token:
        return "the channel pays in another way than the bid says"
    if currency.is_on_chain and channel.challenge_period != CHALLENGE_PERIOD_S:
        # A shorter one could end before this side notices, a longer one would keep what it has earned for as long.
        return f"the channel's challenge period is not {CHALLENGE_PERIOD_S} seconds"
    if award.ends_ms > award.start_by_ms + needs.wall_ms:
        return "the lease is longer than was tendered"
    return ""


def is_possible(workload: Workload) -> bool:
    """Whether there are workers, and every limit is one that a sandbox can have."""
    limits = (workload.memory_bytes, workload.shared_memory_bytes, workload.scratch_bytes, workload.output_bytes)
    return workload.workers > 0 and all(0 < limit <= LARGEST_SIZE_BYTES for limit in limits)


def is_too_large(workload: Workload) -> bool:
    """Whether it would fill the provider's memory or disk outside the sandbox, where the job's limits do not hold."""
    return (
        workload.package_bytes > LARGEST_PACKAGE_BYTES
        or workload.state_bytes > LARGEST_STATE_BYTES
        or workload.output_bytes > LARGEST_OUTPUT_BYTES
        or workload.workers > MOST_WORKERS
        or workload.files_bytes > MAX_FILE_LIST_BYTES
    )
