"""A real daemon watches a scripted machine: what its owner, its adverts and a scraper are shown follows the GPUs."""
# ruff: noqa: ASYNC110 - what is waited for is seen in the state

from pathlib import Path

import pytest
import trio
from kit.memory_daemon import a_daemon
from kit.memory_net import MemoryHub
from kit.scripted_gpus import ScriptedGpus

from hansa.node.api.desk import NodeDesk
from hansa.node.api.device_views import seen_devices
from hansa.node.api.metrics import Metrics, Readings
from hansa.node.daemon import device_watch
from hansa.node.daemon.device_watch import DeviceWatch, watch_devices
from hansa.node.devices.driver_process import DriverProcess
from hansa.node.engine.events import InventoryChanged
from hansa.node.settings.config import parse_config

pytestmark = pytest.mark.trio
CONFIG = parse_config("[provider]\nenabled = true\n", Path("/x/config.toml"))


async def test_a_gpu_that_fails_leaves_the_market_and_everybody_is_shown_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_watch, "LOOK_EVERY_S", 0.05)
    machine = ScriptedGpus(tmp_path)
    async with a_daemon(tmp_path, MemoryHub(), 1, lends=True) as daemon, trio.open_nursery() as nursery:
        daemon.watch.close()
        daemon.watch = DeviceWatch(
            account=daemon.account.address,
            provider=CONFIG.provider,
            rules=CONFIG.rules,
            now_ms=daemon.now_ms,
            driver=DriverProcess(proc=machine.proc, environment=machine.environment),
        )
        daemon.tell(InventoryChanged(devices=daemon.inventory.devices, at_ms=daemon.now_ms()))
        nursery.start_soon(watch_devices, daemon)
        with trio.fail_after(20):
            while len(daemon.state.capacity.free) != 2:
                await trio.sleep(0.02)
            machine.set({"gpu1.ecc_double": 1, "gpu0.busy": 33})
            while not daemon.state.capacity.withdrawn:
                await trio.sleep(0.02)
            machine.set({"gpu2.name": "NVIDIA Newcomer"}, gpus=3)
            machine.put_on_bus("three")
            while len(daemon.state.capacity.free) != 2:
                await trio.sleep(0.02)
        well, ill, new = NodeDesk(daemon).node_view()["devices"]
        assert (well["state"], well["withheld"], well["now"]["busy_percent"]) == ("free", [], 33)
        assert ill["state"] == "withdrawn"
        assert ill["withheld"] == ["its memory had errors that could not be corrected, and it was not reset since"]
        assert (new["model"], new["gpu"]["index"]) == ("NVIDIA Newcomer", 2)
        metrics = Metrics()
        metrics.update(Readings(seen=seen_devices(daemon)))
        text = metrics.text().decode()
        assert 'reason="its memory had errors' in text
        assert text.count("DCGM_FI_DEV_GPU_UTIL{") == 3
        nursery.cancel_scope.cancel()
