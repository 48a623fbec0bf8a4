"""Prime Intellect's requirement strings: ``gpu:count=8;gpu:model=H100;ram_mb=128000``.

Several ``gpu:`` groups are alternatives, a new one beginning with each ``gpu:count``; the other keys hold together.
What Prime Intellect's own parser refuses is refused here, and nothing else. It has no names, code or images: the
string says only what a machine must have.
"""

from dataclasses import dataclass, field

from hansa.node.jobs.import_gpus import add_choice, require_choice
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_yaml import Value, shown

SYSTEM = "Prime Intellect"
KEYS = (
    *("gpu:count", "gpu:model", "gpu:memory_mb", "gpu:memory_mb_min", "gpu:memory_mb_max"),
    *("gpu:total_memory_min", "gpu:total_memory_max", "cpu:cores", "ram_mb", "storage_gb"),
)
_MB = 10**6
_GB = 10**9
_LARGEST = 1 << 32
"""Numbers are 32 bits wide there."""


@dataclass(slots=True, kw_only=True)
class _Group:
    """One alternative. Numbers by key; a model's name."""

    numbers: dict[str, int] = field(default_factory=dict)
    model: str = ""


def read_prime(value: Value) -> Draft:
    """Read a requirement string.

    Raises:
        ConfigError: it is none.
    """
    groups: list[_Group] = []
    other: dict[str, int] = {}
    for part in (part.strip() for part in value.text().split(";")):
        if not part:
            continue
        key, equals, text = (side.strip() for side in part.partition("="))
        if not equals:
            raise value.fault(f'"{shown(part)}" has no value', "write key=value, with semicolons between them")
        if key not in KEYS:
            raise value.fault(f'unknown requirement key "{shown(key)}"', f"known: {', '.join(KEYS)}")
        if key == "gpu:count" and (not groups or "gpu:count" in groups[-1].numbers):
            groups.append(_Group())
        if key.startswith("gpu:"):
            if not groups:
                groups.append(_Group())
            _into_group(groups[-1], key, text, value)
        else:
            other[key] = _number(value, key, text)
    draft = Draft(system=SYSTEM)
    _sizes(value, other, draft)
    if groups:
        _gpus(value, groups, draft)
    if not other and not groups:
        raise value.fault("asks for nothing", "write for example gpu:count=8;gpu:model=H100")
    return draft


def _number(value: Value, key: str, text: str) -> int:
    digits = text.removeprefix("+")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 10 or int(digits) >= _LARGEST:
        raise value.fault(f'{key}: "{shown(text)}" is no whole number', f"write for example {key}=8")
    return int(digits)


def _into_group(group: _Group, key: str, text: str, value: Value) -> None:
    if key == "gpu:model":
        group.model = text
        return
    number = _number(value, key, text)
    exact, least, most = "gpu:memory_mb", "gpu:memory_mb_min", "gpu:memory_mb_max"
    clash = (least, most) if key == exact else (exact,) if key in (least, most) else ()
    beside = next((one for one in clash if one in group.numbers), "")
    if beside:
        raise value.fault(f"{key} stands beside {beside}", "give an exact memory, or its ends, and not both")
    group.numbers[key] = number
    for first, last in ((least, most), ("gpu:total_memory_min", "gpu:total_memory_max")):
        if group.numbers.get(first, 0) > group.numbers.get(last, _LARGEST):
            raise value.fault(f"{key}: the least is more than the most", "put the smaller number first")


def _sizes(value: Value, other: dict[str, int], draft: Draft) -> None:
    if "cpu:cores" in other:
        draft.cores_milli = other["cpu:cores"] * 1000
        draft.carry("cpu:cores", other["cpu:cores"], "resources.cores")
    if "ram_mb" in other:
        draft.memory_bytes = other["ram_mb"] * _MB
        draft.carry("ram_mb", other["ram_mb"], "resources.memory")
    if "storage_gb" in other:
        draft.disk_bytes = other["storage_gb"] * _GB
        draft.carry("storage_gb", other["storage_gb"], "resources.disk")
    value.skip()


def _gpus(value: Value, groups: list[_Group], draft: Draft) -> None:
    """The alternatives. What one clause cannot say of each of them apart is said of all where it is the same."""
    for group in groups:
        count = group.numbers.get("gpu:count", 1)
        if not 1 <= count <= 64:
            raise value.fault(f"gpu:count={count} is outside 1 .. 64", "a shard has at most 64 GPUs")
        if group.model:
            add_choice(draft, value, count, text=group.model)
    named = [group for group in groups if group.model]
    if named:
        require_choice(draft, value)
        for group in groups:
            if not group.model:
                draft.leave("gpu:count", f"or {group.numbers.get('gpu:count', 1)} of any model", _ANY_BESIDE)
    draft.devices = max(group.numbers.get("gpu:count", 1) for group in (named or groups))
    if not named:
        least = min(group.numbers.get("gpu:count", 1) for group in groups)
        draft.carry("gpu:count", f"{least} x any GPU", "resources.needs: devices, of any model")
        if draft.devices != least:
            draft.leave("gpu:count", f"or {draft.devices}", "without a model one number is asked for: the least")
        draft.devices = least
    _memory(groups, draft)


_ANY_BESIDE = "beside named models any other cannot be an alternative; remove the names in needs if all will do"


def _memory(groups: list[_Group], draft: Draft) -> None:
    lows = [g.numbers.get("gpu:memory_mb", g.numbers.get("gpu:memory_mb_min", 0)) for g in groups]
    if any(lows):
        draft.vram_bytes = min(lows) * _MB
        if min(lows):
            draft.carry("gpu:memory_mb", f"{min(lows)} MB", "resources.needs: vram, the least of every alternative")
        if len(set(lows)) > 1:
            draft.leave("gpu:memory_mb", f"{max(lows)} MB", "one least memory holds for all alternatives: the smallest")
    highs = {g.numbers.get("gpu:memory_mb_max", 0) for g in groups}
    if highs == {0}:
        pass
    elif len(highs) == 1 and (most := highs.pop()):
        draft.clauses.append(f"vram <= {most} MB")
        draft.carry("gpu:memory_mb_max", f"{most} MB", f"resources.needs: vram <= {most} MB")
    else:
        draft.leave("gpu:memory_mb_max", "", "it is not the same for all alternatives")
    if any(key.startswith("gpu:total_memory") for group in groups for key in group.numbers):
        draft.leave("gpu:total_memory", "", "say how much each GPU needs: vram in needs")
