"""Whether runs that share a GPU keep to their parts of its memory, by what its driver says of each process.

A GPU that takes turns between runs does not keep their memory apart. So it is looked at, every second: a run with more
than its part is over. What the driver counts and nobody can tell whose it is (its numbers of processes may mean nothing
here, in a container) is taken for the one run's that is alone on the GPU; where several share it, and all of it is more
than they were given together, the run that began last is over.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hansa.market.shares import WHOLE_MILLI
from hansa.node.devices.gpus import GpuProcess
from hansa.node.quantities import format_size
from hansa.proto.units import Bytes32, Uint32


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A run with a part of a GPU.

    Attributes:
        lease: its lease.
        device: the GPU.
        memory_bytes: all of the GPU's own memory.
        share_milli: its part, in thousandths.
        pids: its processes, as far as anybody here can tell.
    """

    lease: Bytes32
    device: Bytes32
    memory_bytes: int
    share_milli: Uint32
    pids: Collection[int]

    @property
    def most_bytes(self) -> int:
        """Its part of the memory."""
        return self.memory_bytes * self.share_milli // WHOLE_MILLI


def over_their_parts(tenants: Sequence[Tenant], seen: Mapping[bytes, Iterable[GpuProcess]]) -> dict[bytes, str]:
    """Which runs have more than their part, by lease, and that in words.

    Args:
        tenants: every run with a part of a GPU, in the order in which they began.
        seen: who has memory on each of these GPUs, by the device's id.
    """
    found: dict[bytes, str] = {}
    for device in dict.fromkeys(tenant.device for tenant in tenants):
        there = [tenant for tenant in tenants if tenant.device == device]
        processes = list(seen.get(device, ()))
        known = {pid for tenant in there for pid in tenant.pids}
        unknown_bytes = sum(one.memory_bytes for one in processes if one.pid not in known)
        has = [sum(one.memory_bytes for one in processes if one.pid in tenant.pids) for tenant in there]
        for tenant, own_bytes in zip(there, has, strict=True):
            used_bytes = own_bytes + (unknown_bytes if len(there) == 1 else 0)
            if used_bytes > tenant.most_bytes:
                found[tenant.lease] = _told(tenant, used_bytes)
        given_bytes = sum(tenant.most_bytes for tenant in there)
        if len(there) > 1 and not any(tenant.lease in found for tenant in there):
            all_bytes = sum(has) + unknown_bytes
            if all_bytes > given_bytes:
                found[there[-1].lease] = (
                    f"the runs on its GPU have {format_size(all_bytes)} of its memory together, they were given "
                    f"{format_size(given_bytes)}, nobody here can tell whose it is, and this one began last"
                )
    return found


def _told(tenant: Tenant, used_bytes: int) -> str:
    return (
        f"it had {format_size(used_bytes)} of its GPU's memory, and its part of {tenant.share_milli / 10:g} % is "
        f"{format_size(tenant.most_bytes)}"
    )
