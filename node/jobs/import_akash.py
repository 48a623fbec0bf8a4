"""Akash's SDL: services, the resources of each, and how many of them are to be deployed where.

What is valid stands in ``import_akash_rules``; what is valid may still be more than one job.
"""

from decimal import Decimal

from hansa.node.jobs.import_akash_rules import (
    Deployed,
    check_endpoints,
    check_top,
    deployments,
    exposed_by,
    is_kept,
    mounts_of,
    volumes_of,
    word_of,
)
from hansa.node.jobs.import_gpus import add_arch, add_choice, require_choice
from hansa.node.jobs.import_job import Draft
from hansa.node.jobs.import_quantities import KUBERNETES, cores_milli, size_bytes
from hansa.node.jobs.import_shell import hosts_in, packages_in
from hansa.node.jobs.import_yaml import Value, shown

SYSTEM = "Akash"
_BLOCKS_AN_HOUR = 600
"""With blocks of six seconds. It only serves to give a reader an idea, and is said beside the figure."""


def read_akash(top: Value, part: str) -> Draft:
    """Read an SDL.

    Args:
        top: the document.
        part: the service that is meant, if there are several; empty if nobody said.

    Raises:
        ConfigError: it is no valid SDL, or it is more than one job.
    """
    check_top(top)
    deployed = deployments(top)
    check_endpoints(top, deployed)
    draft = Draft(system=SYSTEM)
    chosen = _choose(top, deployed, part, draft)
    draft.name = chosen.name
    draft.carry(chosen.service.place, chosen.name, "name")
    _resources(chosen, draft)
    _service(chosen, draft)
    _placement(chosen, draft)
    for other in deployed:
        if other is not chosen:
            for value in (other.service, other.compute, other.price, other.count):
                value.skip()
    names = {one.name for one in deployed}
    for name, service in top.need("services", "").entries():
        if name not in names:
            draft.leave_value(service, "it is deployed nowhere in the file", what=name)
    draft.leave_value(top.get("endpoints"), "a job has no address of its own")
    draft.leave_unread(top)
    return draft


def _choose(top: Value, deployed: list[Deployed], part: str, draft: Draft) -> Deployed:
    """The one service that becomes the job. A job is one program, so several are a question to the user."""
    if part:
        for one in deployed:
            if one.name == part:
                break
        else:
            raise top.fault(f"deploys no service {shown(part)}", f"it deploys {', '.join(d.name for d in deployed)}")
    elif len(deployed) == 1:
        one = deployed[0]
    else:
        with_gpus = [d for d in deployed if _units(d.compute)]
        if len(with_gpus) != 1:
            raise top.fault(
                f"deploys several services ({', '.join(shown(d.name) for d in deployed)}), and a job is one program",
                f"choose one with --part {shown(deployed[0].name)}",
            )
        one = with_gpus[0]
    for other in deployed:
        if other is not one:
            draft.leave(
                other.service.place, other.name, f"another program than {one.name}: --part {other.name} takes it"
            )
    return one


def _units(compute: Value) -> int:
    gpu = compute.need("resources", "say what it needs").get("gpu")
    return 0 if gpu is None else gpu.need("units", "say how many").integer(0, 10_000)


def _resources(one: Deployed, draft: Draft) -> None:
    resources = one.compute.need("resources", "say what it needs")
    cpu, memory, gpu = resources.get("cpu"), resources.get("memory"), resources.get("gpu")
    if cpu is not None:
        units = cpu.need("units", "say how many: units: 1")
        draft.cores_milli = cores_milli(units)
        draft.carry(units.place, units.text(), "resources.cores")
        attributes = cpu.get("attributes")
        arch = None if attributes is None else attributes.get("arch")
        if arch is not None:
            add_arch(draft, arch, arch.text())
    if memory is not None:
        size = memory.need("size", "say how much: size: 16Gi")
        draft.memory_bytes = size_bytes(size, KUBERNETES)
        draft.carry(size.place, size.text(), "resources.memory")
    if gpu is not None:
        _gpu(gpu, draft)
    _storage(one, draft)
    shards = one.count.integer(1, 1024)
    draft.shards = shards
    if shards > 1:
        draft.carry(one.count.place, shards, "shards, which all start or none")


def _gpu(gpu: Value, draft: Draft) -> None:
    units = gpu.need("units", "say how many")
    draft.devices = units.integer(0, 64)
    if not draft.devices:
        return
    attributes = gpu.need("attributes", "name a vendor")
    vendor = attributes.need("vendor", "name one")
    draft.leave_value(
        attributes.get("interconnect"), "a shard's GPUs are one machine's; say nvlink in needs if you need it"
    )
    models = vendor.get("nvidia")
    for name, other in vendor.entries():
        if name != "nvidia":
            draft.leave_value(other, "Akash reads nvidia only")
    for model in () if models is None else models.items():
        wanted = model.need("model", "name one: model: h100")
        ram, interface = model.get("ram"), model.get("interface")
        add_choice(
            draft,
            wanted,
            draft.devices,
            ram_bytes=0 if ram is None else size_bytes(ram, KUBERNETES),
            interface="" if interface is None else interface.text(),
        )
    if models is None:
        draft.clauses.append("vendor = nvidia")
        draft.carry(units.place, f"{draft.devices} x any NVIDIA GPU", "resources.needs, of any model")
    else:
        require_choice(draft, models)


def _storage(one: Deployed, draft: Draft) -> None:
    mounts = dict(mounts_of(one.service))
    total = 0
    for name, volume in volumes_of(one.compute).items():
        size = volume.need("size", "say how much: size: 10Gi")
        taken = size_bytes(size, KUBERNETES)
        attributes = volume.get("attributes")
        at = mounts.get(name)
        path = "" if at is None else word_of(at, "mount")
        if attributes is not None and word_of(attributes, "class") == "ram":
            draft.shared_memory_bytes += taken
            draft.carry(size.place, size.text(), "resources.shared_memory")
            if path not in ("", "/dev/shm"):  # noqa: S108  # a path of the file's, which nobody opens
                draft.leave(volume.place, path, "memory is mounted at /dev/shm and nowhere else")
            continue
        total += taken
        draft.carry(size.place, size.text(), "resources.disk")
        if is_kept(volume):
            draft.leave(
                volume.place,
                f"{name}, persistent{f' at {path}' if path else ''}",
                "a run's disk ends with the run: keep state with ctx.checkpoint, results in ctx.outputs,"
                " and bring data as [inputs]",
            )
        elif path:
            draft.leave(volume.place, path, "a run has one disk; its files lie in the current directory")
    for mount in mounts.values():
        mount.skip()
    # What Akash mounts as memory comes on top of its memory; here it counts against it.
    if draft.memory_bytes:
        draft.memory_bytes += draft.shared_memory_bytes
    draft.disk_bytes = total


def _service(one: Deployed, draft: Draft) -> None:
    image = one.service.get("image")
    if image is not None:
        draft.image = image.text().strip()
    commands: list[str] = []
    for key in ("command", "args"):
        value = one.service.get(key)
        if value is not None:
            commands += [item.text() for item in value.items() if item.content is not None]
            draft.leave(value.place, "", "a job is a Python function, not a command: its main() does this")
    env = one.service.get("env")
    pairs = [] if env is None else [(item, item.text()) for item in env.items() if item.content is not None]
    draft.set_env(
        (text.partition("=")[0].strip(), text.partition("=")[2].strip().strip('"') or None, item.place)
        for item, text in pairs
    )
    for expose in exposed_by(one.service):
        draft.leave(
            expose.place,
            f"port {word_of(expose, 'port')}",
            "a job runs to its end and serves nobody: no port of it can be reached",
        )
        expose.skip()
    draft.hosts = hosts_in((*commands, *(text for _, text in pairs)))
    draft.packages = packages_in(commands)
    draft.leave_value(one.service.get("credentials"), "a login is a secret; pull the image yourself, into an archive")
    draft.leave_value(one.service.get("dependencies"), "a job is one program")
    params = one.service.get("params")
    if params is not None:
        draft.leave_value(params.get("permissions"), "a job sees nothing of its provider")
        draft.leave_unread(params)
        params.skip()


def _placement(one: Deployed, draft: Draft) -> None:
    for key, why in (
        ("attributes", "labels that Akash's providers give themselves mean nothing to others; say region in needs"),
        ("signedBy", "Akash's auditors know nothing of Hansa's providers; accept them by reliability or reputation"),
    ):
        draft.leave_value(one.placement.get(key), why)
    for price in one.price.items() if one.price.is_list else (one.price,):
        amount, denom = price.need("amount", ""), price.need("denom", "")
        draft.leave(
            price.place, f"{amount.text()} {denom.text()} a block", _price_in_words(amount.number(), denom, draft)
        )
        price.skip()
    pricing = one.placement.get("pricing")
    if pricing is not None:
        pricing.skip()


def _price_in_words(amount: Decimal, denom: Value, draft: Draft) -> str:
    """Why no ceiling is written. Only where the unit is worth a dollar is there a figure to think of."""
    why = "a price for a block of Akash's chain is not converted; set budget.price_ceiling_per_hour"
    if denom.text() != "uact":
        return why
    an_hour = amount * _BLOCKS_AN_HOUR / 1_000_000
    each = f", {an_hour / draft.devices:.2f} for a GPU" if draft.devices > 1 else ""
    return f"{why} (ACT is meant to be worth a dollar: with a block each six seconds {an_hour:.2f} an hour{each})"
