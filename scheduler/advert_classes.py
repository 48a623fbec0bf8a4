"""Classes of what providers have: few and fixed, so that a node hears and keeps only those that it has a use for.

Each class has a gossip topic of its own, and is told apart by what a buyer nearly always says: a GPU or not, and how
much memory it has. Finer keys, of model and region, are for looking up in the network's table (``capability_names``).
"""

import re
from collections.abc import Collection, Iterable

from hansa.proto.gpu_models import parse
from hansa.proto.market_documents import KIND_CPU, KIND_GPU, Advert, Device, Requirements

GIB = 1 << 30
OTHER = "cpu"
"""Whatever is no GPU."""
GPU_CLASSES = (
    ("gpu-small", 0),
    ("gpu-16", 14 * GIB),
    ("gpu-24", 20 * GIB),
    ("gpu-40", 36 * GIB),
    ("gpu-80", 68 * GIB),
)
"""Each with the least memory of its devices: what drivers report of a card is up to 7 % below what is printed on it."""
CLASSES = (OTHER, *(name for name, _ in GPU_CLASSES))
NEAR_PERCENT = 9
MANY_ADVERTS = 2_000
"""With more adverts than these in its book a node no longer hears what it has no use for."""
NARROW_FOR_MS = 6 * 3_600_000
"""How long until it looks again whether there are still so many: it cannot count what it does not hear."""
MOST_NAMES = 32
MOST_REGIONS = 3
ANYWHERE = "*"
_PLACES = re.compile(r"[^a-z0-9]+")


def class_of_device(device: Device) -> str:
    """The one class that a device is in."""
    if device.kind != KIND_GPU:
        return OTHER
    return max((least, name) for name, least in GPU_CLASSES if device.memory_bytes >= least)[1]


def classes_of(advert: Advert) -> tuple[str, ...]:
    """The classes in which an advert stands, in the order of ``CLASSES``. There is always one."""
    found = {class_of_device(device) for device in advert.devices} or {OTHER}
    return tuple(name for name in CLASSES if name in found)


def _gpu_classes(least_bytes: int, most_bytes: int | None = None) -> Iterable[str]:
    """Classes with devices of at least, and at most, so much memory."""
    bounds = [least for _, least in GPU_CLASSES[1:]]
    for (name, least), above in zip(GPU_CLASSES, [*bounds, None], strict=True):
        if (above is None or above > least_bytes) and (most_bytes is None or least <= most_bytes):
            yield name


def classes_for(needs: Requirements) -> tuple[str, ...]:
    """The classes whose devices might serve a shard. None that could is ever left out."""
    found = {OTHER} if needs.kind != KIND_GPU else set[str]()
    if needs.kind != KIND_CPU and not needs.choices:
        found.update(_gpu_classes(needs.device_memory_bytes))
    for choice in needs.choices:
        model = parse(choice.model)
        if needs.kind == KIND_CPU:
            continue
        if model is not None and model.memory_gb and not model.profile:
            near, memory_bytes = model.memory_gb * GIB * NEAR_PERCENT // 100, model.memory_gb * GIB
            found.update(_gpu_classes(max(needs.device_memory_bytes, memory_bytes - near), memory_bytes + near))
        else:
            found.update(_gpu_classes(needs.device_memory_bytes))
    return tuple(name for name in CLASSES if name in found)


def _places(region: str) -> tuple[str, ...]:
    """A region's name in parts, as buyers name them: ``eu-west-1`` is in ``eu``, and in ``west``."""
    parts = dict.fromkeys(part for part in _PLACES.split(region.lower()) if part)
    return tuple(parts)[:MOST_REGIONS]


def capability_names(advert: Advert) -> tuple[str, ...]:
    """What a provider is found under: each of its classes and models, anywhere and in each part of its region."""
    parsed = [parse(device.model) for device in advert.devices if device.kind == KIND_GPU]
    whats = (*classes_of(advert), *dict.fromkeys(model.base.lower() for model in parsed if model is not None))
    names = [f"{what}/{where}" for where in (ANYWHERE, *_places(advert.region)) for what in whats]
    return tuple(names[:MOST_NAMES])


def wanted_names(needs: Requirements) -> tuple[str, ...]:
    """What a buyer looks under, the most exact first: a model it chose or a class that might serve, and a region."""
    parsed = [parse(choice.model) for choice in needs.choices]
    models = tuple(dict.fromkeys(model.base.lower() for model in parsed if model is not None))
    whats = models or classes_for(needs)
    places = [
        place
        for clause in needs.clauses
        if clause.name == "region" and clause.operator in ("=", "in")
        for value in clause.values
        for place in _places(value)[:1]
    ]
    names = [f"{what}/{where}" for where in (*dict.fromkeys(places), ANYWHERE) for what in whats]
    return tuple(names[:MOST_NAMES])


class Interest:
    """Which classes a node hears: all of them as long as they are few adverts, then only those it has a use for."""

    def __init__(self) -> None:
        """Everything."""
        self._narrow_until_ms = 0

    def classes(self, standing: int, useful: Collection[str], now_ms: int) -> tuple[str, ...]:
        """What to hear now, with so many adverts in the book and these classes of use."""
        if standing > MANY_ADVERTS and now_ms >= self._narrow_until_ms:
            self._narrow_until_ms = now_ms + NARROW_FOR_MS
        if now_ms >= self._narrow_until_ms:
            return CLASSES
        return tuple(name for name in CLASSES if name in useful)
