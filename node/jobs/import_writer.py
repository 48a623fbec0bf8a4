"""The one writer of ``job.toml`` for whatever was read out of another system's file.

What it writes is accepted by ``read_job_file`` once there is an entry. What it is not sure of stands in a comment, to
be made true by removing one character; money beyond a price ceiling is never written.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal

from hansa.market.requirements import MOST_CHOICES
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_quantities import in_needs
from hansa.node.jobs.job_resources import LEAST_SHARED_MEMORY_BYTES
from hansa.node.jobs.job_work import LARGEST_PARAMETER_BYTES
from hansa.node.plain_text import plain
from hansa.node.storage.file_lists import IMAGE_REFERENCE

ENTRY = "main.py:main"
MIB = 1 << 20
GIB = 1 << 30
LEAST_MEMORY_BYTES = GIB
"""Ray takes about 400 MiB of it, and the code needs some."""
LEAST_DISK_BYTES = 256 * MIB
LEAST_CORES_MILLI = 100
BESIDE_SHARED_MEMORY_BYTES = GIB
MOST_CORES_MILLI = 9_999_000
LONGEST_NAME_BYTES = 200
USUAL_TOTAL = Decimal("1.00")
METER_S = 10
"""The budget must reach to the first receipt of one shard, or the file would be refused; as ``job_file`` has it."""
_DIGEST = re.compile(r"(?P<name>[^\s@]+?)(?::[A-Za-z0-9_.-]+)?@(?P<digest>sha256:[0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A ``job.toml`` and what there is to say of it.

    Attributes:
        text: the file.
        draft: what was read, with all remarks, those that came up in writing included.
    """

    text: str
    draft: Draft


def write_job(draft: Draft, source_name: str) -> Imported:
    """Make the file.

    Args:
        draft: what was read; remarks are added to it.
        source_name: the other file's name, for the first comment and as a name where there is none.
    """
    name = _name(draft, source_name)
    draft.to_write.insert(0, "main.py: def main(context), which does what the original's commands did")
    parts = [
        f"# Made by hansa import of {plain(source_name, 80)} ({draft.system}); what could not come along stands below.",
        f"name = {quoted(name)}",
        f'entry = "{ENTRY}"  # yours to write, beside this file',
    ]
    if draft.shards > 1:
        parts.append(f"shards = {draft.shards}")
    for section in (_parameters, _resources, _limits, _retry, _budget, _tender, _environment, _network):
        lines = list(section(draft))
        if lines:
            parts += ["", *lines]
    parts += list(_remarks(draft))
    return Imported(text="\n".join(parts) + "\n", draft=draft)


def quoted(text: str) -> str:
    """A text as TOML has it."""
    escaped = "".join(
        f"\\{character}" if character in '"\\' else character if character.isprintable() else f"\\U{ord(character):08X}"
        for character in text
    )
    return f'"{escaped}"'


def _name(draft: Draft, source_name: str) -> str:
    """One printable line, whatever the file says."""
    found = " ".join(plain(draft.name, 400).replace("�", " ").split())
    stem = " ".join(plain(source_name, 400).replace("�", " ").split())
    name = found or re.sub(r"(\.dstack)?\.(ya?ml|json|txt)$", "", stem).lstrip(".") or "imported"
    while len(name.encode()) > LONGEST_NAME_BYTES:
        name = name[:-1]
    return name


def _parameters(draft: Draft) -> Iterator[str]:
    """Variables of the environment, as many as one parameter holds."""
    kept: list[str] = []
    room = LARGEST_PARAMETER_BYTES - 2
    for name, value in draft.env.items():
        size = len(quoted(name).encode()) + len(quoted(value).encode()) + 8
        if size > room or not name.isprintable() or any(c in value for c in "\ud800\udfff"):
            draft.carried = [remark for remark in draft.carried if remark.how != f"parameters.env.{name}"]
            draft.leave(
                "the environment", name, f"a parameter holds at most {LARGEST_PARAMETER_BYTES} bytes: use a file"
            )
            continue
        room -= size
        kept.append(f"{quoted(name)} = {quoted(value)}" if not _is_bare(name) else f"{name} = {quoted(value)}")
    if kept:
        draft.write('os.environ.update(context.parameters["env"]), at the beginning of main')
        yield '[parameters.env]  # for main: os.environ.update(context.parameters["env"])'
        yield from kept


def _is_bare(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) is not None


def _resources(draft: Draft) -> Iterator[str]:
    lines = list(_wanted(draft))
    if lines:
        yield "[resources]"
        yield from lines


def _wanted(draft: Draft) -> Iterator[str]:
    needs = _needs(draft)
    if needs:
        yield f"needs = {quoted(needs)}"
    if draft.cores_milli:
        cores = min(max(draft.cores_milli, LEAST_CORES_MILLI), MOST_CORES_MILLI)
        if cores != draft.cores_milli:
            draft.carry(
                "CPU cores", _thousandths(draft.cores_milli), f"resources.cores = {_thousandths(cores)}, the nearest"
            )
        yield f"cores = {_thousandths(cores)}"
    memory = draft.memory_bytes
    if memory and memory < LEAST_MEMORY_BYTES:
        memory = LEAST_MEMORY_BYTES
        draft.carry(
            "memory", size_text(draft.memory_bytes), f"resources.memory = {size_text(memory)}: Ray needs some too"
        )
    shared = draft.shared_memory_bytes
    if shared:
        shared = max(shared, LEAST_SHARED_MEMORY_BYTES)
        if memory < shared + BESIDE_SHARED_MEMORY_BYTES:
            memory = shared + BESIDE_SHARED_MEMORY_BYTES
            draft.carry("memory", "shared memory counts against it", f"resources.memory = {size_text(memory)}")
    if memory:
        yield f'memory = "{size_text(memory)}"'
    else:
        draft.write("resources.memory: the file does not say how much; without a word it is 2 GiB")
    if draft.disk_bytes:
        disk = max(draft.disk_bytes, LEAST_DISK_BYTES)
        if disk != draft.disk_bytes:
            draft.carry("disk", size_text(draft.disk_bytes), f"resources.disk = {size_text(disk)}: Ray needs some too")
        yield f'disk = "{size_text(disk)}"'
    if shared:
        yield f'shared_memory = "{size_text(shared)}"'


def _needs(draft: Draft) -> str:
    """One sentence of the requirements language; empty for a job without GPUs and other conditions."""
    terms: list[str] = []
    choices = draft.choices[:MOST_CHOICES]
    for count, model in draft.choices[MOST_CHOICES:]:
        draft.leave("GPUs", f"{count} x {model}", f"a job names at most {MOST_CHOICES} choices")
    if choices:
        terms.append(" or ".join(f"{count}x {model}" for count, model in choices))
    elif draft.devices:
        terms.append(f"kind = gpu and devices = {draft.devices}")
    if draft.vram_bytes:
        terms.append(f"vram >= {in_needs(draft.vram_bytes)}")
    terms += dict.fromkeys(draft.clauses)
    if draft.lease == "firm":
        terms.append("lease = firm")
    return " and ".join(terms)


def _limits(draft: Draft) -> Iterator[str]:
    if draft.wall_ms:
        yield "[limits]"
        yield f'wall = "{_duration_text(max(draft.wall_ms // 1000, 1))}"'
    else:
        draft.write("limits.wall, the longest that it may run: the file does not say; without a word it is 1 h")


def _retry(draft: Draft) -> Iterator[str]:
    from hansa.scheduler.job_spec import WORTH_RETRYING  # noqa: PLC0415  # beside its one use

    if draft.retries is None and not draft.retry_own_errors:
        return
    yield "[retry]"
    if draft.retries is not None:
        yield f"most = {draft.retries}"
    if draft.retry_own_errors:
        kinds = sorted({*WORTH_RETRYING, "user-exception"})
        yield f"on = [{', '.join(quoted(kind) for kind in kinds)}]"


def _budget(draft: Draft) -> Iterator[str]:
    """A ceiling for one device and hour, where the file has one. What the whole may cost is for its payer to say."""
    price = draft.price_per_hour
    devices = max(draft.devices, 1)
    if price is not None:
        price = price.quantize(Decimal("0.000001"), rounding=ROUND_DOWN)
    if not price or price <= 0:
        draft.write("budget.total and budget.price_ceiling_per_hour: without a word both are 1.00")
        yield "# [budget]"
        yield '# total = "1.00"                   # the most that the whole job may cost'
        yield '# price_ceiling_per_hour = "1.00"  # for one device'
        return
    text = f"{price.normalize():f}"
    hours = Decimal(draft.wall_ms or 3_600_000) / 3_600_000
    whole = (price * devices * draft.shards * hours).quantize(Decimal("0.01"))
    draft.write(
        f"budget.total: without a word it is 1.00, and at this ceiling the job could cost {whole} before its wall"
    )
    draft.write(f"budget.currency: the ceiling of {text} was in dollars, and is taken for as many of your node's")
    # One that the usual total cannot pay would make the file refused, and a total is not ours to invent.
    mark = "# " if price * devices * METER_S >= USUAL_TOTAL * 3600 else ""
    yield f"{mark}[budget]"
    yield '# total = "1.00"  # the most that the whole job may cost'
    yield f'{mark}price_ceiling_per_hour = "{text}"  # for one device'
    if mark:
        draft.write("[budget] is a comment, since the usual total would not pay for a first receipt at its ceiling")


def _tender(draft: Draft) -> Iterator[str]:
    if draft.queue_ms:
        yield "[tender]"
        yield f'queue_timeout = "{_duration_text(max(draft.queue_ms // 1000, 1))}"'


def _environment(draft: Draft) -> Iterator[str]:
    lines: list[str] = []
    if draft.image:
        reference = pinned(draft.image)
        if IMAGE_REFERENCE.fullmatch(reference):
            draft.carry("the image", draft.image, "environment.image, by its digest")
            lines.append(f"image = {quoted(reference)}")
            draft.write(
                "providers pull only from registries that their owners list; if none bids, bring an archive instead"
            )
        else:
            why = "a tag may mean another image tomorrow: bring an archive of it, or name its digest"
            draft.leave("the image", draft.image, why)
            draft.write(
                f"the image, if you need it: skopeo copy docker://{plain(draft.image, 200)} oci-archive:image.tar"
            )
            lines.append('# image = "image.tar"')
    if draft.packages:
        listed = ", ".join(quoted(package) for package in draft.packages)
        lines.append(f"# dependencies = [{listed}]  # found in its commands")
        draft.write("environment.dependencies: the packages that its commands install stand in a comment; check them")
    if not lines:
        return
    yield "[environment]" if not lines[0].startswith("#") else "# [environment]"
    yield from lines


def pinned(image: str) -> str:
    """An image's name as ``environment.image`` has it, if it names a digest; else the name as it was."""
    match = _DIGEST.fullmatch(image.strip())
    if match is None:
        return image
    name = match["name"]
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return f"{name}@{match['digest']}"


def _network(draft: Draft) -> Iterator[str]:
    """A suggestion: other systems let a job reach everything, and here every host is asked for."""
    if draft.hosts:
        draft.write(
            "[network] allow: a job reaches no host that it does not ask for; those in its commands are in a comment"
        )
        yield "# [network]"
        yield f"# allow = [{', '.join(quoted(host) for host in draft.hosts)}]  # found in its commands"


def _remarks(draft: Draft) -> Iterator[str]:
    if draft.to_write:
        yield ""
        yield "# Yours to write:"
        yield from (f"# - {plain(line, 400)}" for line in draft.to_write)
    if draft.left_out:
        yield ""
        yield "# Not carried over:"
        for remark in draft.left_out:
            what = f" ({plain(remark.what, 80)})" if remark.what else ""
            yield f"# - {plain(remark.place, 120)}{what}: {plain(remark.how, 300)}"


def size_text(size_bytes: int) -> str:
    """A size that ``job.toml`` reads as exactly so much."""
    for unit, scale in (("GiB", GIB), ("GB", 10**9), ("MiB", MIB), ("MB", 10**6)):
        if size_bytes % scale == 0:
            return f"{size_bytes // scale} {unit}"
    return f"{size_bytes} B"


def _duration_text(seconds: int) -> str:
    for unit, scale in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds % scale == 0:
            return f"{seconds // scale} {unit}"
    return f"{seconds} s"


def _thousandths(milli: int) -> str:
    return f"{Decimal(milli) / 1000:f}".rstrip("0").rstrip(".") if milli % 1000 else str(milli // 1000)
