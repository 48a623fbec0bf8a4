"""Where a run goes when its devices are on several machines, and which machines are taken at all."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from integration.agent_house import a_report

from hansa.node.agents.agent_cluster import Cluster, Unplaceable, own_features, share_out
from hansa.node.agents.agent_keys import Enrolled
from hansa.node.agents.agent_messages import LentGpu
from hansa.node.devices.inventory import Inventory
from hansa.node.engine.events import InventoryChanged

GIB = 1 << 30
RUN = b"r" * 32


def ids(report):
    return [device.id for device in report.devices]


@pytest.fixture
def cluster(tmp_path):
    own = a_report(1, 2)
    told = []
    made = Cluster(
        data_dir=tmp_path,
        account=b"a" * 20,
        tier="sandbox",
        own=lambda: Inventory(devices=own.devices, gpus={}, note="", driver_version=""),
        launch=None,
        tell=told.append,
        log=told.append,
        now_ms=lambda: 5,
    )
    made.told = told
    return made


def connect(cluster, name, report):
    """As if an agent had connected; nothing of the connection is used here."""
    enrolled = Enrolled(name=name, certificate=name.encode(), since_ms=1)
    cluster.fleet.machines[name] = SimpleNamespace(enrolled=enrolled, name=name, report=report)
    return report


def parts_of(cluster, devices, workers, memory_bytes=8 * GIB):
    cluster.place(RUN, devices, workers, memory_bytes)
    return [
        (part.machine, part.workers, part.cpu_millis, part.memory_bytes) for part in cluster.switchboard._parts[RUN]
    ]


def test_what_all_machines_have_is_told_as_one_with_where_it_is(cluster):
    there = connect(cluster, "a", a_report(3, overlay=True))
    apart = connect(cluster, "b", a_report(4, 1))
    event = cluster.complete(InventoryChanged(devices=a_report(1, 2).devices, at_ms=5))
    assert [device.id[0] for device in event.devices] == [1, 2, 3, 4], "what is here counts as here, once"
    assert event.topology.machine_of == {ids(there)[0]: "a", ids(apart)[0]: "b"}
    assert event.topology.apart == {"b"}


def test_a_run_is_placed_on_the_machines_of_its_devices_with_its_share_of_each(cluster):
    there = connect(cluster, "a", a_report(3, 4, 5))
    own = ids(a_report(1, 2))
    assert parts_of(cluster, own, 2) == [("", 2, 2000, 8 * GIB)]
    assert parts_of(cluster, ids(there), 1) == [("a", 1, 3000, 8 * GIB)]
    assert parts_of(cluster, [*ids(there), own[0]], 4) == [("", 1, 1000, 2 * GIB), ("a", 3, 3000, 6 * GIB)]


def test_the_nodes_of_gpus_go_with_their_machine_and_their_count_with_the_run(cluster):
    report = a_report(3, 4)
    gpus = tuple(
        LentGpu(device=one, gpu_minors=(0,), device_nodes=(), cuda_devices=(f"GPU-{one[0]}",), rocm_devices=())
        for one in ids(report)[:1]
    )
    other = a_report(5, gpus=(LentGpu(device=ids(a_report(5))[0], gpu_minors=(0,), device_nodes=(),
                                      cuda_devices=("GPU-5",), rocm_devices=()),))  # fmt: skip
    connect(cluster, "a", a_report(3, 4, gpus=gpus))
    connect(cluster, "b", other)
    nodes = cluster.place(RUN, [*ids(report), *ids(other)], 3, 8 * GIB)
    assert nodes == {"gpu_minors": (0, 0), "device_nodes": (), "cuda_devices": ("GPU-3", "GPU-5"), "rocm_devices": ()}
    first, second = cluster.switchboard._parts[RUN]
    assert (first.machine, first.cuda_devices, first.gpus) == ("a", ("GPU-3",), 1)
    assert (second.machine, second.cuda_devices, second.gpus) == ("b", ("GPU-5",), 1)


def test_what_cannot_be_placed_is_refused_in_words(cluster):
    there = connect(cluster, "a", a_report(3))
    both = [*ids(there), ids(a_report(1))[0]]
    with pytest.raises(Unplaceable, match="2 machines here, and 1 workers"):
        cluster.place(RUN, both, 1, 8 * GIB)
    with pytest.raises(Unplaceable, match="too little on each"):
        cluster.place(RUN, both, 2, GIB - 2)
    del cluster.fleet.machines["a"]
    with pytest.raises(Unplaceable, match="was lost"):
        cluster.place(RUN, both, 2, 8 * GIB)
    assert cluster.switchboard._parts == {}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tier": "none"}, "promises the tier sandbox, and this machine has none"),
        ({"tier": "wonderful"}, "promises the tier sandbox"),
        ({"features": ()}, "has no python3."),
        ({"features": own_features()[:1]}, "has no ray"),
    ],
)
def test_a_machine_that_would_break_the_providers_word_is_turned_away(cluster, changes, words):
    assert cluster._objection(a_report(3, features=own_features())) is None
    assert cluster._objection(a_report(3, features=own_features(), tier="gvisor")) is None
    assert words in cluster._objection(a_report(3, **{"features": own_features(), **changes}))


@given(st.lists(st.integers(1, 16), min_size=1, max_size=8), st.integers(0, 64))
def test_workers_are_shared_out_in_proportion_and_none_is_left_out(devices, more):
    shares = share_out(len(devices) + more, devices)
    assert sum(shares) == len(devices) + more
    assert min(shares) >= 1
    if len(set(devices)) == 1:
        assert max(shares) - min(shares) <= 1
    if (len(devices) + more) % sum(devices) == 0:
        assert shares == [count * (len(devices) + more) // sum(devices) for count in devices]
