"""What Akash's own parser asks of an SDL, at the place and for the reason for which that refuses it.

Followed are the rules of ``go/sdl`` in akash-network/chain-sdk, what they let pass included: what is accepted there is
no invalid SDL here.
"""

import re
from dataclasses import dataclass

from hansa.node.jobs.import_quantities import KUBERNETES, cores_milli, size_bytes
from hansa.node.jobs.import_yaml import Value, shown

VERSIONS = ("2.0", "2.1", "2.2", "2")
_TOP = ("version", "include", "services", "profiles", "deployment", "endpoints", "reclamation")
_ENDPOINT = re.compile(r"[a-z]+[a-z\-_0-9]+")
_CLASSES = ("default", "beta1", "beta2", "beta3", "ram")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """One service where it is deployed: the parts of the file that speak of it."""

    name: str
    service: Value
    compute: Value
    placement: Value
    price: Value
    count: Value


def check_top(top: Value) -> None:
    """What stands at the top of an SDL, and nothing else."""
    version = top.need("version", 'an SDL begins with version: "2.0"')
    if version.text().strip() not in VERSIONS:
        raise version.fault(f'"{shown(version.text())}" is no version of the SDL', 'write "2.0"')
    for key, value in top.mapping().items():
        if key not in _TOP:
            raise value.fault("is no field of an SDL", f"known are {', '.join(_TOP)}")


def deployments(top: Value) -> list[Deployed]:
    """Everything that is deployed, with Akash's own checks in Akash's own order."""
    hint = "an SDL has services, profiles and deployment"
    services, profiles = top.need("services", hint), top.need("profiles", hint)
    computes = profiles.need("compute", "name what each service needs below profiles.compute")
    placements = profiles.need("placement", "name where it may run below profiles.placement")
    found: list[Deployed] = []
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
            one = Deployed(name=name, service=service, compute=compute, placement=placement, price=price, count=count)
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
    for volume in volumes_of(compute).values():
        size_bytes(volume.need("size", "say how much: size: 10Gi"), KUBERNETES)


def volumes_of(compute: Value) -> dict[str, Value]:
    """A profile's volumes by their names; the one without a name is "default"."""
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


def _check_storage(one: Deployed) -> None:
    """Volumes and where they are mounted; the rules are Akash's, and so is what they let pass."""
    volumes = volumes_of(one.compute)
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
    for name, mount in mounts_of(one.service):
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
        if is_kept(volume) and not mounts:
            raise volume.fault(
                f"is persistent, which needs a mount at services.{shown(one.name)}.params.storage.{shown(name)}",
                "say where it is to be mounted",
            )


def is_kept(volume: Value) -> bool:
    """Whether a volume outlives its container."""
    attributes = volume.get("attributes")
    flag = None if attributes is None else attributes.get("persistent")
    return flag is not None and flag.boolean()


def mounts_of(service: Value) -> list[tuple[str, Value]]:
    """What a service says of its volumes, by their names."""
    params = service.get("params")
    storage = None if params is None else params.get("storage")
    return [] if storage is None else list(storage.entries())


def check_endpoints(top: Value, deployed: list[Deployed]) -> None:
    """Addresses of its own that a deployment leases, and who uses them."""
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
        for expose in exposed_by(one.service):
            for to in _to(expose):
                ip = to.get("ip")
                if ip is None or not ip.text():
                    continue
                way = to.get("global")
                if way is None or not way.boolean():
                    raise to.fault("whoever names an ip must be global", "write global: true beside it")
                if ip.text() not in names:
                    raise ip.fault(f"there is no endpoint named {shown(ip.text())}", "declare it below endpoints")
                key = (ip.text(), word_of(expose, "as"), word_of(expose, "proto"))
                if key in ports:
                    raise expose.fault(
                        f"this port of {shown(ip.text())} is already in use by {ports[key]}", "change it"
                    )
                ports[key] = one.name
                used.add(ip.text())
    for name, endpoint in names.items():
        if name not in used:
            raise endpoint.fault("is declared but never used", "remove it, or name it as an ip")


def exposed_by(service: Value) -> list[Value]:
    """A service's ports."""
    expose = service.get("expose")
    return [] if expose is None else list(expose.items())


def _to(expose: Value) -> list[Value]:
    to = expose.get("to")
    return [] if to is None else list(to.items())


def word_of(value: Value, key: str) -> str:
    """A child's text; empty where there is none."""
    found = value.get(key)
    return "" if found is None else found.text()
