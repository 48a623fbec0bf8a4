"""Of which adverts a node has a use: those like its own, and those that its jobs look for."""

from hansa.node.engine.state import NodeState
from hansa.scheduler.advert_classes import class_of_device, classes_for
from hansa.scheduler.matching import Wish


def useful_classes(state: NodeState) -> frozenset[str]:
    """The classes whose adverts are listened to."""
    own = {class_of_device(device) for device in state.capacity.lent}
    return frozenset(own).union(*(classes_for(job.spec.requirements) for job in state.jobs.live.values()))


def wishes(state: NodeState) -> list[Wish]:
    """What this node's jobs look for."""
    specs = (job.spec for job in state.jobs.live.values())
    return [
        Wish(
            requirements=spec.requirements,
            currency=spec.currency,
            ceiling_e18=spec.price_ceiling_e18_per_device_ms,
        )
        for spec in specs
    ]
