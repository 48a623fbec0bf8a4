"""Whether an advert's provider could serve a shard, and everything in which it falls short if not.

One function chooses whom a tender invites, and explains of those who were not why: so the two never tell apart.
"""

from collections.abc import Sequence
from dataclasses import replace

from hansa.market.clauses import facts_of
from hansa.market.isolation import is_served
from hansa.market.shares import WHOLE_MILLI, share_asked, spare_milli
from hansa.market.shortfalls import price_shortfall
from hansa.market.vocabulary import ANY
from hansa.proto.market_documents import Advert, Device, Requirements, Shortfall
from hansa.scheduler.device_lacks import Shortage
from hansa.scheduler.devices import choose


def misfit(advert: Advert, needs: Requirements, *, currency: str, ceiling_e18: int) -> Shortage | None:
    """What an advert lacks for a shard; None where it lacks nothing. An advert says what is owned, free or not."""
    lacks: list[Shortage] = []
    if advert.currency != currency:
        lacks.append(_lack(f"its prices are in {advert.currency}", "currency", currency, advert.currency))
    if advert.price_e18_per_device_ms > ceiling_e18:
        dear = price_shortfall(ceiling_e18, advert.price_e18_per_device_ms)
        price = dear.nearest.rstrip("0").rstrip(".") or "0"
        reason = f"it wants {price} for a device and an hour"
        lacks.append(Shortage(reason=reason, relaxation=f"price ceiling ≥ {price}", shortfalls=(dear,)))
    if not is_served(needs.tier, advert.tier):
        lacks.append(_lack(f"the isolation there is {advert.tier!r}", "tier", needs.tier, advert.tier))
    lacking = [feature for feature in needs.features if feature not in advert.features]
    if lacking:
        left = ",".join(feature for feature in needs.features if feature in advert.features) or ANY
        lacks.append(_lack(f"jobs cannot have {', '.join(lacking)} there", "features", ",".join(needs.features), left))
    devices = choose(needs, advert.devices, advert.devices, about=facts_of(advert))
    if isinstance(devices, Shortage):
        lacks.append(devices)
    if not lacks:
        return None
    helps = all(one.relaxation for one in lacks)
    return Shortage(
        reason="; ".join(one.reason for one in lacks),
        relaxation=" and ".join(one.relaxation for one in lacks) if helps else "",
        # A part of it that says nothing for a machine would make the rest look like all that is lacking.
        shortfalls=tuple(each for one in lacks for each in one.shortfalls) if all(o.shortfalls for o in lacks) else (),
    )


def room_for(advert: Advert, needs: Requirements, devices: int) -> tuple[int, int]:
    """For how many shards of so many devices, or of a part of one, an advert has devices, and free ones.

    Of parts it is the most that there could be: an advert tells how much is left of all devices together.
    """
    share = share_asked(needs) or WHOLE_MILLI
    if share < WHOLE_MILLI:
        return len(advert.devices) * (WHOLE_MILLI // share), spare_milli(advert.facts) // share
    return len(advert.devices) // max(1, devices), advert.free // max(1, devices)


def free_sets(advert: Advert, needs: Requirements) -> tuple[tuple[Device, ...], ...]:
    """The devices of every shard for which an advert has free ones, as its provider would choose them.

    An advert does not say which of its devices are free: those that the job likes best are taken to be. Of parts it is
    the most that there could be: an advert tells how much is left of all devices together.
    """
    owned, about = advert.devices, facts_of(advert)
    if (share_asked(needs) or WHOLE_MILLI) < WHOLE_MILLI:
        part = choose(needs, owned, owned, about=about)
        return () if isinstance(part, Shortage) else (part,) * min(room_for(advert, needs, 1))
    found: list[tuple[Device, ...]] = []
    left, free = list(owned), advert.free
    while (eased := _within(needs, free)) is not None:
        chosen = choose(eased, left, owned, about=about)
        if isinstance(chosen, Shortage):
            break
        for devices in _repeated(chosen, left, free // len(chosen)):
            found.append(devices)
            free -= len(devices)
        gone = {device.id for devices in found for device in devices}
        left = [device for device in left if device.id not in gone]
    return tuple(found)


def _within(needs: Requirements, free: int) -> Requirements | None:
    """With those sets of devices alone for which so many are enough; None where none is."""
    if not needs.choices:
        return needs if 1 <= needs.devices <= free else None
    small = tuple(choice for choice in needs.choices if choice.devices <= free)
    return replace(needs, choices=small) if small else None


def _repeated(chosen: tuple[Device, ...], left: Sequence[Device], most: int) -> list[tuple[Device, ...]]:
    """The set, and others of devices exactly like these: to choose each by itself takes long where many are lent."""
    sort = replace(chosen[0], id=bytes(32))
    if any(replace(device, id=bytes(32)) != sort for device in chosen):
        return [chosen]
    alike = [device for device in left if replace(device, id=bytes(32)) == sort]
    starts = range(0, len(alike) - len(chosen) + 1, len(chosen))
    return [tuple(alike[start : start + len(chosen)]) for start in starts][:most]


def _lack(reason: str, name: str, wanted: str, nearest: str) -> Shortage:
    # In the words of a decline, so that those who were asked and those who were not are counted together.
    shortfall = Shortfall(name=name, wanted=_line(f"{name} = {wanted}"), nearest=_line(nearest))
    return Shortage(reason=reason, relaxation=f"{name} = {nearest}", shortfalls=(shortfall,))


def _line(text: str) -> str:
    return text.encode()[:250].decode("utf-8", "ignore")
