"""dstack's task: commands with the resources of each node. Its services, environments and fleets are no jobs."""

from hansa.node.jobs.import_gpus import add_arch, add_choice, refuse_other_devices, require_choice
from hansa.node.jobs.import_job import GIB, Draft
from hansa.node.jobs.import_quantities import POWERS, cores_milli, duration_ms, in_needs, size_bytes, split_range
from hansa.node.jobs.import_shell import hosts_in, packages_in
from hansa.node.jobs.import_skypilot import MOST_NODES, NODES_TALK
from hansa.node.jobs.import_yaml import Value, shown

SYSTEM = "dstack"
KINDS = ("task", "service", "dev-environment", "fleet", "volume", "gateway")
_VENDORS = ("nvidia", "amd", "google", "tpu", "intel", "tenstorrent")
_LENT = ("nvidia", "amd")
_NO_JOB = {
    "service": (
        "stays up and answers requests, and a job runs to its end",
        "import a task, such as a batch of requests",
    ),
    "dev-environment": (
        "is a machine to work on, and a job runs to its end",
        "import a task; hansa exec opens a shell in it",
    ),
    "fleet": ("is a set of machines to keep, with nothing to run", "import the task that runs on it"),
    "volume": ("is a disk to keep, with nothing to run", "import the task that uses it; data comes as [inputs]"),
    "gateway": ("is an address for services, with nothing to run", "import a task"),
}
_LONGEST_RETRY_MS = 3_600_000
"""What dstack takes for a retry without a duration."""
_CLOUDS = (
    "Hansa has providers and no clouds; where they stand is asked for by region in needs (hansa providers lists them)"
)
_LEFT = (
    ("backends", _CLOUDS),
    ("regions", _CLOUDS),
    ("availability_zones", _CLOUDS),
    ("instance_types", "types of machines are a cloud's own; say what the job needs of one"),
    ("reservation", "reservations are a cloud's own"),
    ("fleets", "Hansa has no fleets: every job is put to tender"),
    ("ports", "a job runs to its end and serves nobody: no port of it can be reached"),
    ("volumes", "a run's disk ends with the run: bring data as [inputs], keep results in ctx.outputs"),
    ("repos", "a job's code is the directory that its job.toml lies in"),
    ("registry_auth", "a login is a secret; pull the image yourself, into an archive"),
    ("entrypoint", "a job is a Python function, not a command"),
    ("shell", "a job is a Python function, not a command"),
    ("working_dir", "the code lies in /job/code, and starts in an empty directory"),
    ("home_dir", "there is none"),
    ("user", "the code runs as in any other sandbox"),
    ("privileged", "no sandbox gives a job any privilege"),
    ("docker", "no sandbox gives a job any privilege"),
    ("nvcc", "name an image with the CUDA toolkit"),
    ("idle_duration", "a lease ends with its run"),
    ("creation_policy", "every job is put to tender"),
    ("stop_duration", "a run that is to end has the lease's notice, and a few seconds"),
    ("utilization_policy", "limits.stall ends a run that makes no progress; nobody judges by a GPU's use"),
    ("tags", "tags are a cloud's own"),
    ("schedule", "a job starts when it is submitted"),
    ("priority", "there is no queue of your own jobs"),
    ("startup_order", "all shards of a job start at once"),
    ("stop_criteria", "a job has succeeded when all its shards have"),
    ("termination_policy", "a lease ends with its run"),
    ("single_branch", "a job's code is the directory that its job.toml lies in"),
)


def read_dstack(top: Value) -> Draft:
    """Read a task.

    Raises:
        ConfigError: it is something else than a task, or no valid one.
    """
    kind = top.need("type", f"dstack's files begin with type: one of {', '.join(KINDS)}")
    if kind.text() in _NO_JOB:
        what, hint = _NO_JOB[kind.text()]
        raise kind.fault(f"a {kind.text()} {what}", hint)
    if kind.text() != "task":
        raise kind.fault(f'"{shown(kind.text())}" is no type of dstack\'s', f"known: {', '.join(KINDS)}")
    draft = Draft(system=SYSTEM)
    name = top.get("name")
    if name is not None:
        draft.name = name.text()
        draft.carry(name.place, name.text(), "name")
    nodes = top.get("nodes")
    if nodes is not None:
        draft.shards = nodes.integer(1, MOST_NODES)
        if draft.shards > 1:
            draft.carry(nodes.place, nodes.text(), "shards, which all start or none")
            draft.write(NODES_TALK)
    _resources(top.get("resources"), draft)
    _program(top, draft)
    _policies(top, draft)
    for key, why in _LEFT:
        draft.leave_value(top.get(key), why)
    draft.leave_unread(top)
    return draft


def _resources(resources: Value | None, draft: Draft) -> None:
    cpu = None if resources is None else resources.get("cpu")
    memory = None if resources is None else resources.get("memory")
    draft.cores_milli, draft.memory_bytes = 2000, 8 * GIB
    if cpu is None:
        draft.carry("resources.cpu", "2.., as it is not said", "resources.cores: what dstack takes by itself")
    else:
        _cpu(cpu, draft)
    if memory is None:
        draft.carry("resources.memory", "8GB.., as it is not said", "resources.memory: what dstack takes by itself")
    else:
        least, most = split_range(memory)
        draft.memory_bytes = size_bytes(memory, POWERS, text=least, bare=GIB) if least else 0
        draft.carry(memory.place, _as_written(memory), "resources.memory, which is always the least")
        if most and most != least:
            draft.leave(memory.place, f"..{most}", "more memory than asked for is never a reason to refuse a provider")
    if resources is None:
        return
    disk = resources.get("disk")
    if disk is not None:
        size = disk.need("size", "write size: 100GB") if disk.is_mapping and "size" in disk.mapping() else disk
        least, _ = split_range(size)
        draft.disk_bytes = size_bytes(size, POWERS, text=least, bare=GIB) if least else 0
        draft.carry(disk.place, _as_written(size), "resources.disk, which is always the least")
    shm = resources.get("shm_size")
    if shm is not None:
        draft.shared_memory_bytes = size_bytes(shm, POWERS, bare=GIB)
        draft.carry(shm.place, shm.text(), "resources.shared_memory, which counts against memory")
    gpu = resources.get("gpu")
    if gpu is not None:
        _gpu(gpu, draft)


def _as_written(value: Value) -> str:
    return "..".join(dict.fromkeys(split_range(value))) if value.is_mapping else value.text()


def _cpu(cpu: Value, draft: Draft) -> None:
    """``8``, ``8..16``, and lately ``arm:8..``; or a mapping with arch and count."""
    count = cpu.get("count") if cpu.is_mapping else cpu
    if cpu.is_mapping:
        kind = cpu.get("arch")
        if kind is not None:
            add_arch(draft, kind, kind.text())
    if count is None:
        return
    text = count.text().replace(" ", "") if not count.is_mapping else ""
    arch, colon, rest = text.rpartition(":")
    if colon:
        add_arch(draft, cpu, arch)
    least = rest.partition("..")[0] if text else split_range(count)[0]
    draft.cores_milli = cores_milli(count, text=least) if least else 0
    draft.carry(count.place, rest or least, "resources.cores, which is always the least")


def _gpu(gpu: Value, draft: Draft) -> None:
    """``24GB``, ``A100,H100:80GB:2``, ``nvidia:1..8``, a number, or a mapping of the same."""
    draft.devices = 1
    if gpu.is_mapping:
        names, memory, count = gpu.get("name"), gpu.get("memory"), gpu.get("count")
        vendor = gpu.get("vendor")
        if vendor is not None:
            _vendor(vendor, vendor.text().lower(), draft)
        if count is not None:
            _count(count, split_range(count), draft)
        found = [] if names is None else [(name, name.text()) for name in names.items()]
        if memory is not None:
            _memory(memory, split_range(memory), draft)
        capability = gpu.get("compute_capability")
        if capability is not None:
            parts = [item.text() for item in capability.items()]
            version = ".".join(parts) if len(parts) > 1 else parts[0]
            draft.clauses.append(f"compute >= {_version(capability, version)}")
            draft.carry(capability.place, version, f"resources.needs: compute >= {version}")
        draft.leave_value(gpu.get("total_memory"), "say how much each GPU needs: gpu.memory, or vram in needs")
    else:
        found = _gpu_words(gpu, draft)
    for value, name in found:
        add_choice(draft, value, draft.devices, text=name)
    if found:
        require_choice(draft, gpu)
    else:
        draft.carry(gpu.place, f"{draft.devices} x any GPU", "resources.devices, of any model")


def _version(value: Value, text: str) -> str:
    if not text.replace(".", "").isdigit() or not text.isascii():
        raise value.fault(f'"{shown(text)}" is no version', "write for example 7.5")
    return text


def _gpu_words(gpu: Value, draft: Draft) -> list[tuple[Value, str]]:
    """The words between colons, in any order: a vendor, names, a memory (it has a unit), a count (it has none)."""
    names: list[tuple[Value, str]] = []
    counted = remembered = False
    text = gpu.text().replace(" ", "")
    for word in text.split(":"):
        if not word:
            raise gpu.fault(f'"{shown(text)}" has an empty part', "write for example A100:80GB:2")
        first, dots, last = word.partition("..")
        ends = (first, last) if dots else (word, word)
        if word.lower() in _VENDORS:
            _vendor(gpu, word.lower(), draft)
        elif word[0].isalpha():
            names += [(gpu, name) for name in word.split(",") if name]
        elif any(character.isalpha() for character in word):
            if remembered:
                raise gpu.fault("says twice how much memory", "say it once")
            remembered = True
            _memory(gpu, ends, draft)
        else:
            if counted:
                raise gpu.fault("says twice how many", "say it once")
            counted = True
            _count(gpu, ends, draft)
    return names


def _vendor(value: Value, vendor: str, draft: Draft) -> None:
    refuse_other_devices(value, "tpu" if vendor == "google" else vendor)
    if vendor not in _LENT:
        raise value.fault(f"nobody lends devices of {shown(vendor)} here", f"vendors are {' and '.join(_LENT)}")
    draft.clauses.append(f"vendor = {vendor}")
    draft.carry(value.place, vendor, f"resources.needs: vendor = {vendor}")


def _count(value: Value, ends: tuple[str, str], draft: Draft) -> None:
    least, most = ends
    if not all(not end or (end.isascii() and end.isdigit() and len(end) < 6) for end in ends) or not any(ends):
        raise value.fault(f'"{shown("..".join(ends))}" is no number of GPUs', "write for example 8, or 1..8")
    draft.devices = int(least or "0")
    if most and int(most) < draft.devices:
        raise value.fault("is a range from more to less", "put the smaller number first")
    if draft.devices == 0 and most != "0":
        draft.devices = 1
    if draft.devices > 64:
        raise value.fault(f"{draft.devices} GPUs are more than one shard has (64)", "share them out among nodes")
    if most != least:
        draft.leave(value.place, f"{least}..{most}", f"a bid is for a known number of GPUs: {draft.devices}, the least")


def _memory(value: Value, ends: tuple[str, str], draft: Draft) -> None:
    """Of one GPU. See ``import_quantities`` why its ends are counted differently."""
    least, most = ends
    if least:
        # In thousands, or a card of "24 GB" would be refused for what its driver keeps to itself.
        draft.vram_bytes = size_bytes(value, POWERS, text=least, bare=GIB) * 10**9 // GIB
        draft.carry(value.place, f"{least} of GPU memory", "resources.device_memory, the least")
    if most:
        largest = size_bytes(value, POWERS, text=most, bare=GIB)
        draft.clauses.append(f"vram <= {in_needs(largest)}")
        draft.carry(value.place, f"at most {most} of GPU memory", f"resources.needs: vram <= {in_needs(largest)}")


def _program(top: Value, draft: Draft) -> None:
    image = top.get("image")
    if image is not None:
        draft.image = image.text().strip()
    python = top.get("python")
    if python is not None:
        draft.leave(
            python.place,
            f"Python {python.text()}",
            "fewer providers bid for one certain Python; if it has to be this one, set environment.python",
        )
    commands = top.get("commands")
    texts = [] if commands is None else [item.text() for item in commands.items() if item.content is not None]
    if commands is not None:
        draft.leave(commands.place, "", "a job is a Python function, not commands: its main() does this")
    files = top.get("files")
    if files is not None:
        draft.leave_value(files, "a job brings everything that lies in its directory")
        draft.write("the code: put job.toml into the directory of the files that it names")
    env = top.get("env")
    variables: list[tuple[str, str | None, str]] = []
    if env is not None and env.is_mapping:
        variables = [(name, None if v.content is None else v.text(), v.place) for name, v in env.entries()]
    elif env is not None:
        for item in env.items():
            name, equals, value = item.text().partition("=")
            variables.append((name.strip(), value if equals else None, item.place))
    draft.set_env(variables)
    draft.hosts = hosts_in((*texts, *(name for name, _, _ in variables)))
    draft.packages = packages_in(texts)


def _policies(top: Value, draft: Draft) -> None:
    spot = top.get("spot_policy")
    if spot is not None:
        words = {"spot": "any", "auto": "any", "on-demand": "firm"}
        if spot.text() not in words:
            raise spot.fault(f'"{shown(spot.text())}" is no policy', "known: spot, on-demand, auto")
        draft.lease = words[spot.text()]
        how = "a firm lease" if draft.lease == "firm" else "any lease, also one whose devices may be taken back"
        draft.carry(spot.place, spot.text(), how)
    longest = top.get("max_duration")
    if longest is not None and longest.text().lower() in ("off", "false", "true"):
        draft.leave(longest.place, longest.text(), "every lease has an end: set limits.wall")
    elif longest is not None:
        draft.wall_ms = duration_ms(longest)
        draft.carry(longest.place, longest.text(), "limits.wall")
    price = top.get("max_price")
    if price is not None:
        draft.price_per_hour = price.number() / max(draft.devices, 1)
        draft.carry(price.place, price.text(), "budget.price_ceiling_per_hour, for one of its devices")
    _retry(top.get("retry"), draft)


def _retry(retry: Value | None, draft: Draft) -> None:
    if retry is None:
        return
    if not retry.is_mapping and retry.boolean():
        draft.retry_own_errors, draft.queue_ms = True, _LONGEST_RETRY_MS
        draft.carry(retry.place, retry.text(), "retry.on, the code's own errors too; tender.queue_timeout")
        return
    if not retry.is_mapping:
        draft.retries = 0
        draft.carry(retry.place, retry.text(), "retry.most = 0")
        return
    events, duration = retry.get("on_events"), retry.get("duration")
    for event in () if events is None else events.items():
        if event.text() == "error":
            draft.retry_own_errors = True
            draft.carry(event.place, "error", "retry.on, the code's own errors too")
        elif event.text() == "interruption":
            draft.carry(event.place, "interruption", "a shard that loses its provider is always tendered again")
        else:
            draft.queue_ms = _LONGEST_RETRY_MS if duration is None else duration_ms(duration)
            draft.carry(event.place, event.text(), "tender.queue_timeout, as long as retry lasts")
    draft.leave_value(duration, "attempts are counted, not timed: retry.most")
