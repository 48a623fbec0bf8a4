"""Vast.ai's queries: ``gpu_name in [RTX_4090,RTX_3090] num_gpus>=4 reliability>0.99``, alone or as a whole command.

A query says which machine one would rent, not what is to run there. Each of the 48 fields is carried over, left out
with its reason, or, where it names one certain machine of Vast.ai's, refused.
"""

import difflib
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from hansa.node.faults import ConfigError
from hansa.node.jobs.import_gpus import add_choice, require_choice
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_places import in_words, is_known
from hansa.node.jobs.import_yaml import Value, shown
from hansa.proto.gpu_models import canonical, parse

SYSTEM = "Vast.ai"
_COMPARISON = re.compile(
    r"\s*([A-Za-z_][A-Za-z0-9_]*)"
    r"(\s*(?:==|!=|>=|<=|=|<|>)|\s+(?:not\s?in|nin|in|neq|eq|gte|lte|gt|lt)(?=[\s\[\"']))\s*"
    r"(\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^\s\[\]\"',]+)(?=\s|$|,)\s*,?",
    re.ASCII,
)
_OPERATORS = {"==": "=", "eq": "=", "neq": "!=", "gt": ">", "gte": ">=", "lt": "<", "lte": "<=", "notin": "not in"}
_MACHINES = "Vast.ai's own name of a machine, which is none of Hansa's"
_LISTING = "a mark of Vast.ai's own listing"
_UNTOLD = "providers do not say this of their machines"
_LEFT: Mapping[str, str] = {
    "cpu_ghz": _UNTOLD,
    "datacenter": _UNTOLD,
    "direct_port_count": "a job runs to its end and serves nobody: no port of it can be reached",
    "disk_bw": _UNTOLD,
    "dlperf": "Vast.ai's own measure; Hansa's is benchmark, in TFLOP/s of one device",
    "dlperf_usd": "bids are ranked by what the job would cost, not by a ratio",
    "duration": "a lease lasts as long as limits.wall, which providers look at before they bid",
    "external": _LISTING,
    "flops_usd": "bids are ranked by what the job would cost, not by a ratio",
    "gpu_max_power": _UNTOLD,
    "gpu_max_temp": _UNTOLD,
    "gpu_mem_bw": _UNTOLD,
    "gpu_frac": "a job gets the devices, cores and memory that it asks for, whatever part of its machine that is",
    "gpu_display_active": "devices with a display in use are lent only as their owner's rules say",
    "has_avx": _UNTOLD,
    "inet_down_cost": "nobody is paid for traffic",
    "inet_up_cost": "nobody is paid for traffic",
    "min_bid": "what others would pay for a machine is known to its owner only",
    "pci_gen": _UNTOLD,
    "pcie_bw": _UNTOLD,
    "rentable": _LISTING,
    "rented": _LISTING,
    "storage_cost": "room for files is part of the price",
    "static_ip": "a job has no address of its own",
    "total_flops": "Vast.ai's own figure; Hansa's is benchmark, in TFLOP/s of one device",
    "ubuntu_version": "a job brings its own system, as an image, or runs on what comes with Hansa",
    "verified": "Vast.ai verifies machines, here nobody does: ask for reliability or reputation in needs",
    "vms_enabled": "jobs run in a sandbox; tier in needs asks for more",
    "cluster_id": _MACHINES,
}
_CERTAIN = ("id", "machine_id", "host_id")
_NUMBERS = (
    *("bw_nvlink", "compute_cap", "cpu_cores", "cpu_ghz", "cpu_cores_effective", "cpu_ram", "direct_port_count"),
    *("disk_bw", "disk_space", "dlperf", "dlperf_usd", "dph", "dph_total", "duration", "flops_usd", "gpu_max_power"),
    *("gpu_max_temp", "gpu_mem_bw", "gpu_ram", "gpu_total_ram", "gpu_frac", "id", "inet_down", "inet_down_cost"),
    *("inet_up", "inet_up_cost", "machine_id", "min_bid", "num_gpus", "pci_gen", "pcie_bw", "reliability"),
    *("storage_cost", "total_flops", "host_id", "cluster_id", "cuda_vers"),
)
_FLAGS = (
    *("datacenter", "external", "gpu_display_active", "has_avx", "rentable", "rented", "static_ip", "verified"),
    "vms_enabled",
)
_ALIASES = {"cuda_max_good": "cuda_vers", "reliability2": "reliability", "dph_total": "dph", "verification": "verified"}
_LEAST = ("=", ">", ">=")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """One condition, its values as they were written and without quotes."""

    value: Value
    field: str
    operator: str
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        """As a person reads it."""
        shown_values = self.values[0] if len(self.values) == 1 else f"[{', '.join(self.values)}]"
        return f"{self.field} {self.operator} {shown_values}"

    def number(self) -> Decimal:
        """Its one number."""
        return Decimal(self.values[0])

    def fault(self, what: str, hint: str) -> ConfigError:
        """A complaint about this condition."""
        return self.value.fault(f"{shown(self.text)}: {what}", hint)


def read_vast(value: Value) -> Draft:
    """Read a query, or the command that makes it.

    Raises:
        ConfigError: it is none, or it asks for a certain machine of Vast.ai's.
    """
    query = _query_of(value)
    draft = Draft(system=SYSTEM)
    comparisons = [one for one in _comparisons(value, query) if not _is_any(one, draft)]
    for one in comparisons:
        if one.field in _CERTAIN:
            raise one.fault(f"asks for one certain machine by {_MACHINES}", "ask for what the machine has to have")
    for one in comparisons:
        _take(one, draft)
    if not draft.devices:
        draft.devices = 1
        draft.carry("num_gpus", "is not said", "resources.needs: one GPU, as everything on Vast.ai is one or more")
    _price(comparisons, draft)
    _all_memory(comparisons, draft)
    value.skip()
    return draft


def _query_of(value: Value) -> str:
    text = value.text().strip()
    if not re.match(r"(?:\$ *)?(?:\./)?vast(?:ai|\.py)?\s", text):
        return text
    try:
        words = shlex.split(text.removeprefix("$"))
    except ValueError:
        raise value.fault("its quotes are not closed", "put the whole query between two quotes") from None
    quoted = [word for word in words[1:] if re.search(r"[=<>]|\bin\b|\bnotin\b", word) and not word.startswith("-")]
    if not quoted:
        what = words[3] if len(words) > 3 else text
        raise value.fault(f'"{shown(what)}" is no query', "write for example 'gpu_name=RTX_4090 num_gpus>=4'")
    return quoted[0]


def _comparisons(value: Value, query: str) -> list[_Comparison]:
    found: list[_Comparison] = []
    position = 0
    query = query.strip()
    while position < len(query):
        match = _COMPARISON.match(query, position)
        if match is None:
            rest = query[position:].strip()
            raise value.fault(
                f'no comparison can be read at "{shown(rest)}"', "write field, operator and value: num_gpus>=4"
            )
        field = _ALIASES.get(match[1].lower(), match[1].lower())
        written = "".join(match[2].split()).lower()
        operator = _OPERATORS.get(written, written) if written != "nin" else "not in"
        inner = match[3].strip()
        many = inner.startswith("[")
        texts = inner[1:-1].split(",") if many else [inner]
        values = tuple(text.strip().strip("\"'").strip() for text in texts if text.strip())
        one = _Comparison(value=value, field=field, operator=operator, values=values)
        _check(one, many)
        found.append(one)
        position = match.end()
    if not found:
        raise value.fault("asks for nothing", "write for example gpu_name=RTX_4090 num_gpus>=4")
    return found


def _check(one: _Comparison, many: bool) -> None:
    known = (*_NUMBERS, *_FLAGS, *_LEFT, *_TAKEN, "gpu_name", "geolocation")
    if one.field not in known:
        near = difflib.get_close_matches(one.field, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "vastai search offers --help lists the fields"
        raise one.value.fault(f'"{shown(one.field)}" is no field of Vast.ai\'s', hint)
    if not one.values:
        raise one.fault("has no value", "write one after the operator")
    if one.operator in ("in", "not in") and not many:
        raise one.fault("needs a list", f"write {one.field} {one.operator} [A,B]")
    if many and one.operator not in ("in", "not in", "=", "!="):
        raise one.fault("cannot be compared with a list", "write in or notin before a list")
    if one.values == ("any",):
        return
    for text in one.values:
        if one.field in _NUMBERS and not _is_number(text):
            raise one.fault(f'"{shown(text)}" is no number', "write digits, such as 2 or 0.95")
        if one.field in _FLAGS and text.lower() not in ("true", "false"):
            raise one.fault(f'"{shown(text)}" is neither true nor false', "write true, false or any")


def _is_number(text: str) -> bool:
    try:
        return re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,9})?", text, re.ASCII) is not None and Decimal(text).is_finite()
    except InvalidOperation:
        return False


def _is_any(one: _Comparison, draft: Draft) -> bool:
    if one.values == ("any",):
        draft.leave(one.field, "any", "it sets no condition")
        return True
    return False


def _take(one: _Comparison, draft: Draft) -> None:
    if one.field in _LEFT:
        draft.leave(one.field, one.text, _LEFT[one.field])
    elif (take := _TAKEN.get(one.field)) is not None:
        take(one, draft)


def _clause(draft: Draft, one: _Comparison, text: str) -> None:
    draft.clauses.append(text)
    draft.carry(one.field, one.text, f"resources.needs: {text}")


def _leave_operator(draft: Draft, one: _Comparison) -> None:
    draft.leave(one.field, one.text, "only the least that is needed is carried over")


def _decimal(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _least(one: _Comparison, draft: Draft) -> Decimal | None:
    """The number where the condition sets a least one; anything else is left out."""
    if one.operator in _LEAST and len(one.values) == 1 and one.number() >= 0:
        return one.number()
    _leave_operator(draft, one)
    return None


def _gpu_name(one: _Comparison, draft: Draft) -> None:
    names = [text.replace("_", " ") for text in one.values]
    if one.operator in ("=", "in"):
        for name in names:
            # How many is known once num_gpus was read; the writer gives every model this number.
            add_choice(draft, one.value, max(draft.devices, 1), text=name)
        require_choice(draft, one.value)
        return
    known = [canonical(name) for name in names if parse(name) is not None]
    if one.operator in ("!=", "not in") and known:
        _clause(draft, one, f"gpu not in ({', '.join(known)})")
    else:
        _leave_operator(draft, one)


def _num_gpus(one: _Comparison, draft: Draft) -> None:
    least = _least(one, draft)
    if least is None:
        return
    count = int(least) + (one.operator == ">")
    if not 1 <= count <= 64:
        raise one.fault("a shard has 1 to 64 GPUs", "write for example num_gpus=8")
    draft.devices = max(draft.devices, count)
    draft.choices = tuple((draft.devices, model) for _, model in draft.choices)
    draft.carry(one.field, one.text, f"devices: {count}, the least")


def _compute(one: _Comparison, draft: Draft) -> None:
    if len(one.values) != 1 or one.operator not in (">", ">=", "=", "<", "<=", "!=") or one.number() < 0:
        _leave_operator(draft, one)
        return
    hundredths = int(one.number())
    if hundredths < 100:
        draft.write(f"compute in needs: Vast.ai counts 700 for 7.0, so {one.text} asks for next to nothing")
    _clause(draft, one, f"compute {one.operator} {_decimal(Decimal(hundredths) / 100)}")


def _version(name: str) -> Callable[[_Comparison, Draft], None]:
    def take(one: _Comparison, draft: Draft) -> None:
        text = one.values[0].strip(",").strip()
        if len(one.values) != 1 or one.operator in ("in", "not in") or re.fullmatch(r"[0-9.]{1,20}", text) is None:
            draft.leave(one.field, one.text, "is no one version to compare with")
            return
        _clause(draft, one, f"{name} {one.operator} {text}")

    return take


def _rate(name: str) -> Callable[[_Comparison, Draft], None]:
    def take(one: _Comparison, draft: Draft) -> None:
        if one.operator in ("in", "not in", "!=") or one.number() < 0:
            _leave_operator(draft, one)
        else:
            _clause(draft, one, f"{name} {one.operator} {_decimal(one.number())} Mbit/s")

    return take


def _reliability(one: _Comparison, draft: Draft) -> None:
    if one.operator in ("in", "not in", "!=") or not 0 <= one.number() <= 1:
        _leave_operator(draft, one)
    else:
        _clause(draft, one, f"reliability {one.operator} {_decimal(one.number())}")


def _place(one: _Comparison, draft: Draft) -> None:
    codes = [text.lower() for text in one.values]
    if one.operator not in ("=", "!=", "in", "not in") or not all(re.fullmatch(r"[a-z]{2}", code) for code in codes):
        draft.leave(one.field, one.text, "is no list of countries of two letters")
        return
    operator = {"=": "in", "!=": "not in"}.get(one.operator, one.operator)
    _clause(draft, one, f"region {operator} ({', '.join(in_words(codes))})")
    unknown = [code for code in codes if not is_known(code)]
    draft.write(
        "region in needs: owners say in words of their own where machines stand (hansa providers shows them)"
        + (f"; add the names of {', '.join(unknown)}" if unknown else "")
    )


def _nvlink(one: _Comparison, draft: Draft) -> None:
    if one.operator in _LEAST and one.number() >= 0:
        _clause(draft, one, "interconnect = nvlink")
    else:
        _leave_operator(draft, one)


def _words(name: str, words: Mapping[str, str]) -> Callable[[_Comparison, Draft], None]:
    def take(one: _Comparison, draft: Draft) -> None:
        known = [words.get(text.lower(), text.lower()) for text in one.values]
        if one.operator not in ("=", "!=", "in", "not in") or not all(word in words.values() for word in known):
            draft.leave(one.field, one.text, f"is none of {', '.join(words.values())}")
            return
        operator = {"=": "in", "!=": "not in"}.get(one.operator, one.operator)
        _clause(draft, one, f"{name} {operator} ({', '.join(known)})")

    return take


def _vram(one: _Comparison, draft: Draft) -> None:
    """In thousands, as Vast.ai counts; a card of "24 GB" has a little less than 24 GiB."""
    if one.operator in ("<", "<="):
        text = f"vram {one.operator} {_decimal(one.number())} GiB"
        _clause(draft, one, text)
    elif (least := _least(one, draft)) is not None:
        draft.vram_bytes = max(draft.vram_bytes, int(least * 10**9))
        draft.carry(one.field, one.text, f"resources.needs: vram >= {_decimal(least)} GB")


def _size(attribute: str, how: str) -> Callable[[_Comparison, Draft], None]:
    def take(one: _Comparison, draft: Draft) -> None:
        if (least := _least(one, draft)) is not None:
            setattr(draft, attribute, max(getattr(draft, attribute), int(least * 10**9)))
            draft.carry(one.field, one.text, how)

    return take


def _cores(one: _Comparison, draft: Draft) -> None:
    if (least := _least(one, draft)) is not None:
        draft.cores_milli = max(draft.cores_milli, int(least * 1000))
        draft.carry(one.field, one.text, "resources.cores")


def _later(_one: _Comparison, _draft: Draft) -> None:
    """These need the number of GPUs, which may stand anywhere in the query."""


def _price(comparisons: list[_Comparison], draft: Draft) -> None:
    """``dph`` is of all GPUs of a machine together, and a ceiling is of one."""
    for one in comparisons:
        if one.field == "dph" and one.operator in ("<", "<=", "=") and one.number() > 0:
            draft.price_per_hour = one.number() / max(draft.devices, 1)
            draft.carry(one.field, one.text, "budget.price_ceiling_per_hour, for one of its GPUs")
        elif one.field == "dph":
            draft.leave(one.field, one.text, "only the most that is paid is carried over")


def _all_memory(comparisons: list[_Comparison], draft: Draft) -> None:
    for one in comparisons:
        if one.field == "gpu_total_ram" and (least := _least(one, draft)) is not None:
            each = least / max(draft.devices, 1)
            draft.vram_bytes = max(draft.vram_bytes, int(each * 10**9))
            draft.carry(
                one.field, one.text, f"resources.needs: vram >= {_decimal(each.quantize(Decimal('0.001')))} GB each"
            )


_TAKEN: Mapping[str, Callable[[_Comparison, Draft], None]] = {
    "bw_nvlink": _nvlink,
    "compute_cap": _compute,
    "cpu_arch": _words("arch", {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "aarch64", "aarch64": "aarch64"}),
    "cpu_cores": _cores,
    "cpu_cores_effective": _cores,
    "cpu_ram": _size("memory_bytes", "resources.memory"),
    "cuda_vers": _version("cuda"),
    "disk_space": _size("disk_bytes", "resources.disk"),
    "dph": _later,
    "driver_version": _version("driver"),
    "geolocation": _place,
    "gpu_arch": _words("vendor", {"nvidia": "nvidia", "amd": "amd"}),
    "gpu_name": _gpu_name,
    "gpu_ram": _vram,
    "gpu_total_ram": _later,
    "inet_down": _rate("download"),
    "inet_up": _rate("upload"),
    "num_gpus": _num_gpus,
    "reliability": _reliability,
}
