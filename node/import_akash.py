"""Akash's SDL: services, the resources of each, and how many of them are to be deployed where.

What Akash's own parser refuses is refused here for the same reason and at the same place; what it accepts is no
invalid SDL here, though it may be more than one job. Followed are the rules of ``go/sdl`` in akash-network/chain-sdk.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from hansa.node.import_gpus import add_arch, add_choice, require_choice
from hansa.node.import_job import Draft
from hansa.node.import_quantities import KUBERNETES, cores_milli, size_bytes
from hansa.node.import_shell import hosts_in, packages_in
from hansa.node.import_yaml import Value, shown

SYSTEM = "Akash"
VERSIONS = ("2.0", "2.1", "2.2", "2")
_TOP = ("version", "include", "services", "profiles", "deployment", "endpoints", "reclamation")
_ENDPOINT = re.compile(r"[a-z]+[a-z\-_0-9]+")
_CLASSES = ("default", "beta1", "beta2", "beta3", "ram")
_BLOCKS_AN_HOUR = 600
"""With blocks of six seconds. It only serves to give a reader an idea, and is said beside the figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deployed:
    """One service where it is deployed: the parts of the file that speak of it."""

    name: str
    service: Value
    compute: Value
    placement: Value
    price: Value
    count: Value


def read_akash(top: Value, part: str) -> Draft:
    """Read an SDL.

    Args:
        top: the document.
        part: the service that is meant, if there are several; empty if nobody said.

    Raises:
        ConfigError: it is no valid SDL, or it is more than one job.
    """
    _check_top(top)
    deployed = _deployments(top)
    _check_endpoints(top, deployed)
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


def _check_top(top: Value) -> None:
    version = top.need("version", 'an SDL begins with version: "2.0"')
    if version.text().strip() not in VERSIONS:
        raise version.fault(f'"{shown(version.text())}" is no version of the SDL', 'write "2.0"')
    for key, value in top.mapping().items():
        if key not in _TOP:
            raise value.fault("is no field of an SDL", f"known are {', '.join(_TOP)}")


def _deployments(top: Value) -> list[_Deployed]:
    """Everything that is deployed, with Akash's own checks in Akash's own order."""
    hint = "an SDL has services, profiles and deployment"
    services, profiles = top.need("services", hint), top.need("profiles", hint)
    computes = profiles.need("compute", "name what each service needs below profiles.compute")
    placements = profiles.need("placement", "name where it may run below profiles.placement")
    found: list[_Deployed] = []
    for name, deployment in top.need("deployment", hint).entries():
        for place, order in deployment.entries():
            profile = order.need("profile", "name a profile of profiles.compute").text()
            compute = computes.get(profile)
            if compute is None:
                raise order.fault(f"no compute profile named {shown(profile)}", "name one of profiles.compute")
            placement = placements.get(place)
            if placement is None:
                raise order.fault(f"no placement profile named {shown(place)}", "name one of profiles.placement")
            pricing = placement.get("pricing")
            price = None if pricing is None else pricing.get(profile)
            if price is None:
                raise placement.fault(f"no pricing for profile {shown(profile)}", "add it below pricing")
            service = services.get(name)
            if service is None:
                raise deployment.fault(
                    f"no service profile named {shown(name)}",
                    f"a deployment is named like its service; services here are {_names(services)}",
                )
            count = order.need("count", "say how many: count: 1")
            one = _Deployed(name=name, service=service, compute=compute, placement=placement, price=price, count=count)
            _check_price(price)
            _check_gpu(compute)
            _check_sizes(compute)
            _check_storage(one)
            found.append(one)
    if not found:
        raise top.fault("deploys nothing", "name a service below deployment")
    return found


def _names(mapping: Value) -> str:
    return ", ".join(shown(name) for name in list(mapping.mapping())[:10]) or "none"


def _check_price(price: Value) -> None:
    amounts = price.items() if price.is_list else (price,)
    for one in amounts:
        amount = one.need("amount", "write denom and amount")
        if amount.number() <= 0:
            raise amount.fault("must be more than nothing", "write what a block may cost at most")
        one.need("denom", "write denom and amount").text()


def _check_gpu(compute: Value) -> None:
    resources = compute.need("resources", "say what it needs: cpu, memory, storage")
    gpu = resources.get("gpu")
    if gpu is None:
        return
    for key, value in gpu.mapping().items():
        if key not in ("units", "attributes"):
            raise value.fault("is no field of gpu in an SDL", "known are units and attributes")
    units = gpu.need("units", "say how many: units: 1").integer(0, 10_000)
    attributes = gpu.get("attributes")
    if units and attributes is None:
        raise gpu.fault(
            "attributes must be present where units is more than 0",
            "write attributes: vendor: nvidia: below gpu, as Akash asks for",
        )
    if attributes is None:
        return
    vendor = attributes.get("vendor")
    if vendor is None:
        raise attributes.fault("at least one vendor must be set", "write vendor: nvidia: below it")
    models = vendor.get("nvidia")
    for model in () if models is None else models.items():
        interface = model.get("interface")
        if interface is not None and interface.text() not in ("pcie", "sxm"):
            raise interface.fault(f'"{shown(interface.text())}" is no interface of a GPU', "write pcie or sxm")


def _check_sizes(compute: Value) -> None:
    resources = compute.need("resources", "say what it needs: cpu, memory, storage")
    cpu, memory = resources.get("cpu"), resources.get("memory")
    if cpu is not None:
        cores_milli(cpu.need("units", "say how many: units: 1"))
    if memory is not None:
        size_bytes(memory.need("size", "say how much: size: 16Gi"), KUBERNETES)
    for volume in _volumes(compute).values():
        size_bytes(volume.need("size", "say how much: size: 10Gi"), KUBERNETES)


def _volumes(compute: Value) -> dict[str, Value]:
    storage = compute.need("resources", "say what it needs").get("storage")
    volumes: dict[str, Value] = {}
    if storage is None:
        return volumes
    for volume in (storage,) if storage.is_mapping else storage.items():
        named = volume.get("name")
        name = "default" if named is None or storage.is_mapping else named.text()
        if name in volumes:
            raise volume.fault(f"a second volume is named {shown(name)}", "give each a name of its own")
        volumes[name] = volume
    return volumes


def _check_storage(one: _Deployed) -> None:
    """Volumes and where they are mounted; the rules are Akash's, and so is what they let pass."""
    volumes = _volumes(one.compute)
    for volume in volumes.values():
        attributes = volume.get("attributes")
        kept = attributes is not None and (flag := attributes.get("persistent")) is not None and flag.boolean()
        class_ = None if attributes is None else attributes.get("class")
        if class_ is not None and class_.text() not in _CLASSES:
            raise class_.fault(f'"{shown(class_.text())}" is no class of storage', f"known: {', '.join(_CLASSES)}")
        if class_ is not None and class_.text() == "ram" and kept:
            raise class_.fault("storage in memory cannot be persistent", "write persistent: false")
        if class_ is not None and class_.text() != "ram" and not kept:
            raise class_.fault("storage that does not persist has no class", "write persistent: true, or drop class")
        if attributes is not None:
            attributes.skip()
    mounts: dict[str, str] = {}
    for name, mount in _mounts(one.service):
        if name not in volumes:
            raise mount.fault(
                f"there is no volume named {shown(name)}", f"volumes of its profile are {', '.join(volumes) or 'none'}"
            )
        at = mount.get("mount") if mount.is_mapping else None
        path = "" if at is None else at.text()
        if not path.startswith("/"):
            raise (at or mount).fault("mount must be an absolute path", f"write mount: /mnt/{shown(name)}")
        if path in mounts:
            raise mount.fault(f"{shown(path)} is already in use by {shown(mounts[path])}", "mount it elsewhere")
        mounts[path] = name
    for name, volume in volumes.items():
        # Akash's parser asks only whether the service mounts anything at all; so is what it accepts accepted here.
        if _is_kept(volume) and not mounts:
            raise volume.fault(
                f"is persistent, which needs a mount at services.{shown(one.name)}.params.storage.{shown(name)}",
                "say where it is to be mounted",
            )


def _is_kept(volume: Value) -> bool:
    attributes = volume.get("attributes")
    flag = None if attributes is None else attributes.get("persistent")
    return flag is not None and flag.boolean()


def _mounts(service: Value) -> list[tuple[str, Value]]:
    params = service.get("params")
    storage = None if params is None else params.get("storage")
    return [] if storage is None else list(storage.entries())


def _check_endpoints(top: Value, deployed: list[_Deployed]) -> None:
    endpoints = top.get("endpoints")
    names = {} if endpoints is None else dict(endpoints.entries())
    for name, endpoint in names.items():
        if _ENDPOINT.fullmatch(name) is None:
            raise endpoint.fault(f'"{shown(name)}" is no name of an endpoint', "use small letters")
        kind = endpoint.need("kind", "write kind: ip")
        if kind.text() != "ip":
            raise kind.fault(f'"{shown(kind.text())}" is no kind of endpoint', "write kind: ip")
    used: set[str] = set()
    ports: dict[tuple[str, str, str], str] = {}
    for one in deployed:
        for expose in _exposed(one.service):
            for to in _to(expose):
                ip = to.get("ip")
                if ip is None or not ip.text():
                    continue
                way = to.get("global")
                if way is None or not way.boolean():
                    raise to.fault("whoever names an ip must be global", "write global: true beside it")
                if ip.text() not in names:
                    raise ip.fault(f"there is no endpoint named {shown(ip.text())}", "declare it below endpoints")
                key = (ip.text(), _plain(expose, "as"), _plain(expose, "proto"))
                if key in ports:
                    raise expose.fault(
                        f"this port of {shown(ip.text())} is already in use by {ports[key]}", "change it"
                    )
                ports[key] = one.name
                used.add(ip.text())
    for name, endpoint in names.items():
        if name not in used:
            raise endpoint.fault("is declared but never used", "remove it, or name it as an ip")


def _exposed(service: Value) -> list[Value]:
    expose = service.get("expose")
    return [] if expose is None else list(expose.items())


def _to(expose: Value) -> list[Value]:
    to = expose.get("to")
    return [] if to is None else list(to.items())


def _plain(value: Value, key: str) -> str:
    found = value.get(key)
    return "" if found is None else found.text()


def _choose(top: Value, deployed: list[_Deployed], part: str, draft: Draft) -> _Deployed:
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


def _resources(one: _Deployed, draft: Draft) -> None:
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


def _storage(one: _Deployed, draft: Draft) -> None:
    mounts = dict(_mounts(one.service))
    total = 0
    for name, volume in _volumes(one.compute).items():
        size = volume.need("size", "say how much: size: 10Gi")
        taken = size_bytes(size, KUBERNETES)
        attributes = volume.get("attributes")
        at = mounts.get(name)
        path = "" if at is None else _plain(at, "mount")
        if attributes is not None and _plain(attributes, "class") == "ram":
            draft.shared_memory_bytes += taken
            draft.carry(size.place, size.text(), "resources.shared_memory")
            if path not in ("", "/dev/shm"):  # noqa: S108  # a path of the file's, which nobody opens
                draft.leave(volume.place, path, "memory is mounted at /dev/shm and nowhere else")
            continue
        total += taken
        draft.carry(size.place, size.text(), "resources.disk")
        if _is_kept(volume):
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


def _service(one: _Deployed, draft: Draft) -> None:
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
    for expose in _exposed(one.service):
        draft.leave(
            expose.place,
            f"port {_plain(expose, 'port')}",
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


def _placement(one: _Deployed, draft: Draft) -> None:
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
