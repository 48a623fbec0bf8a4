"""``needs`` and ``[policy]`` of a job: the language beside the older keys, and what a job says of itself."""

from collections.abc import Mapping
from typing import Final

from hansa.market.needs_text import NeedsError
from hansa.market.requirements import Needs, parse_needs
from hansa.market.shares import SHARE, share_asked
from hansa.market.value_forms import duration_text
from hansa.market.vocabulary import BUYERS_WORDS, VOCABULARY, facts
from hansa.node.faults import ConfigError
from hansa.node.toml_reader import LEAST_CORES_MILLI, TomlTable
from hansa.proto.market_documents import KIND_GPU, Clause, Fact, Requirements

LEAST_MEMORY_BYTES: Final = 64 << 20
LEAST_SCRATCH_BYTES: Final = 1 << 20
_STATED: Final = tuple(word for word in BUYERS_WORDS if word != "prepay")
"""What a buyer writes down of a job. How far it pays ahead is in its budget."""


def read_needs(resources: TomlTable, override: str | None) -> Needs:
    """What the file's ``needs`` says, or in its place the command line's.

    Raises:
        ConfigError: it is not in the language, or it says what an older key says as well.
    """
    in_file = resources.values.get("needs", "")
    resources.known.add("needs")
    if override is not None:
        return _parsed(override, None)
    if not isinstance(in_file, str):
        raise resources.fault("needs", "must be text", 'for example needs = "8xH100 and region not in (cn, ru)"')
    needs = _parsed(in_file, resources)
    for key, said in _older_keys(needs).items():
        if key in resources.values and said:
            why = f"{key} says what needs says with {said!r}"
            raise resources.fault(key, why, f"say it once: remove {key}, or {said!r} from needs")
    return needs


def _parsed(text: str, table: TomlTable | None) -> Needs:
    try:
        return parse_needs(text)
    except NeedsError as fault:
        if table is None:
            raise ConfigError(f"--needs: {fault}", fault.hint, fault.shown) from None
        raise table.fault("needs", str(fault), fault.hint, fault.shown) from None


def _older_keys(needs: Needs) -> Mapping[str, str]:
    """The word of ``needs`` in which each older key of ``[resources]`` is said again; empty where it is not."""
    sets = "gpu" if needs.choices else ""
    # A model is a GPU's: the older kind = "gpu" beside it says nothing else.
    kind = "kind" if needs.kind and not (needs.kind == KIND_GPU and needs.choices) else ""
    return {
        "gpu_models": sets,
        "devices": sets or ("devices" if needs.devices is not None else ""),
        "kind": kind,
        "device_memory": "vram" if needs.device_memory_bytes is not None else "",
        "cores": "cores" if needs.cores_milli is not None else "",
        "memory": "ram" if needs.memory_bytes is not None else "",
        "disk": "disk" if needs.scratch_bytes is not None else "",
        "tier": "tier" if needs.tier else "",
        SHARE: SHARE if any(clause.name == SHARE for clause in needs.clauses) else "",
    }


def read_share(resources: TomlTable) -> tuple[Clause, ...]:
    """The part of one device that each shard gets, where ``[resources]`` says it by itself."""
    if not resources.has(SHARE):
        return ()
    value = resources.raw(SHARE)
    hint = 'for example share = 0.5, or share = "25 %"'
    if type(value) not in (str, int, float):
        raise resources.fault(SHARE, "must be a number or text", hint)
    try:
        return parse_needs(f"{SHARE} = {VOCABULARY[SHARE].read(str(value))}").clauses
    except ValueError as fault:
        raise resources.fault(SHARE, str(fault), hint) from None


def width_of(requirements: Requirements, resources: TomlTable) -> int:
    """How much each shard gets: its devices, or its part of one, in thousandths of a device."""
    share_milli = share_asked(requirements)
    if share_milli is None:
        raise resources.fault("devices", "asks for several devices, and a part is of one", "remove one of the two")
    return requirements.devices * share_milli


def check_once(table: TomlTable, key: str, word: str, *, said: bool) -> None:
    """An older key of another table and ``needs`` may not both say a thing."""
    if said and key in table.values:
        why = f"{key} says what resources.needs says with {word!r}"
        raise table.fault(key, why, f"say it once: remove {key}, or {word!r} from needs")


def check_least(requirements: Requirements, resources: TomlTable) -> None:
    """Below these nothing starts, whoever says it."""
    if requirements.memory_bytes < LEAST_MEMORY_BYTES:
        raise resources.fault("needs", "asks for less memory than a run needs to start", "ram >= 64 MiB, at the least")
    if requirements.cores_milli < LEAST_CORES_MILLI:
        raise resources.fault(
            "needs", "asks for less of a core than a run needs to start", "cores >= 0.1, at the least"
        )
    if requirements.scratch_bytes < LEAST_SCRATCH_BYTES:
        raise resources.fault("needs", "asks for less room on disk than a run needs to start", "disk >= 1 MiB")


def read_policy(table: TomlTable, max_prepay_ms: int) -> tuple[Fact, ...]:
    """What the job's author states of it, for the providers' rules; how far it pays ahead is stated with that."""
    # Stated also where it is nothing: whoever wants any then holds no devices for a bid that cannot win.
    told: dict[str, str] = {"prepay": duration_text(max_prepay_ms)}
    for name in _STATED:
        value = table.values.get(name, "")
        words = [value] if isinstance(value, str) else table.texts(name, (), most=64)
        table.known.add(name)
        text = ",".join(words)
        if not text:
            continue
        try:
            told[name] = VOCABULARY[name].read(text)
        except ValueError as fault:
            raise table.fault(
                name, str(fault), f'for example {name} = "{VOCABULARY[name].example.split("= ")[1]}"'
            ) from None
        if len(told[name].encode()) > 256:
            raise table.fault(name, "is longer than 256 bytes", "name fewer")
    table.finish()
    return facts(told)
