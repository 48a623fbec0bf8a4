"""``[provider] share``: whether devices are lent in parts, how small these may be, and which devices."""

from dataclasses import dataclass
from typing import Final

from hansa.market.shares import SHARE, WHOLE_MILLI
from hansa.market.value_forms import number_text
from hansa.market.vocabulary import VOCABULARY
from hansa.node.devices.gpus import NVIDIA, Gpu
from hansa.node.toml_reader import TomlTable
from hansa.proto.gpu_models import matches
from hansa.proto.market_documents import KIND_CPU, KIND_GPU
from hansa.proto.units import Uint32

MOST_TENANTS: Final = 64
LEAST_CORES_MILLI: Final = 100
"""No sandbox gets less than this, so no part may be less either."""
_EXAMPLE: Final = 'share = { least = "25 %", tenants = 4, of = ["cpu"] }'


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareConfig:
    """How devices are lent in parts.

    Attributes:
        least_milli: the smallest part, in thousandths of a device.
        tenants: so many may have parts of one device at a time.
        of: ``"cpu"``, ``"gpu"``, or models of GPUs.
    """

    least_milli: Uint32
    tenants: Uint32
    of: tuple[str, ...]

    @property
    def fact(self) -> str:
        """What the devices it is about say of themselves."""
        return number_text(self.least_milli)

    def covers_slots(self) -> bool:
        """Whether slots of CPU cores are lent in parts."""
        return KIND_CPU in self.of

    def covers(self, gpu: Gpu) -> bool:
        """Whether a GPU is: never a slice, which is a part already, nor one whose driver tells no process's memory."""
        named = KIND_GPU in self.of or any(matches(name, gpu.model, gpu.memory_bytes) for name in self.of)
        return named and gpu.vendor == NVIDIA and not gpu.profile


def read_share(table: TomlTable, cores_milli_per_slot: int) -> ShareConfig | None:
    """What the owner says; ``None`` where devices are lent whole.

    Raises:
        ConfigError: it makes no sense.
    """
    share = table.table(SHARE)
    if not share.values:
        share.finish()
        return None
    value = share.raw("least")
    try:
        ppm = int(VOCABULARY[SHARE].key(VOCABULARY[SHARE].read(str(value) if type(value) in (str, int, float) else "")))
    except ValueError as fault:
        raise share.fault("least", str(fault), _EXAMPLE) from None
    if not 0 < ppm < WHOLE_MILLI * 1_000 or ppm % 1_000:
        raise share.fault("least", "is no part of a device in thousandths", _EXAMPLE)
    least_milli = ppm // 1_000
    most = min(MOST_TENANTS, WHOLE_MILLI // least_milli)
    of = share.texts("of", (KIND_CPU,), most=64)
    if not of:
        raise share.fault("of", "names no devices", f"leave share out to lend devices whole, or write {_EXAMPLE}")
    if KIND_CPU in of and cores_milli_per_slot * least_milli // WHOLE_MILLI < LEAST_CORES_MILLI:
        raise share.fault("least", "makes less than a tenth of a core of a CPU slot", "raise it, or cpu_cores_per_slot")
    config = ShareConfig(
        least_milli=least_milli,
        tenants=share.integer("tenants", max(2, most), least=2, most=MOST_TENANTS),
        of=of,
    )
    share.finish()
    return config
