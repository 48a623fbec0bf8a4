"""GPUs are exposed under the names that NVIDIA's own exporter gives its figures, and only what the driver says."""

from hansa.node.api.metrics import Metrics, Readings
from hansa.node.devices.gpu_metrics import SeenDevice
from hansa.node.devices.gpus import Gpu, GpuSample

GPU = Gpu(
    index=1,
    uuid="MIG-1",
    model='NVIDIA "H200" MIG 1g.18gb',
    memory_bytes=16 << 30,
    minor=3,
    bus="0000:1b:00.0",
    profile="1g.18gb",
    slice_ids=(7, 0),
)
SAMPLE = GpuSample(
    uuid="MIG-1", temperature_c=41, power_mw=70_500, energy_mj=12, memory_used_bytes=3 << 20, remapped_correctable=2
)


def exposed(*seen: SeenDevice) -> str:
    metrics = Metrics()
    metrics.update(Readings(seen=seen))
    return metrics.text().decode()


def test_figures_have_the_exporters_names_units_and_labels() -> None:
    text = exposed(SeenDevice(device="ab" * 32, state="leased", gpu=GPU, sample=SAMPLE, xid=79))
    lines = {line.partition("{")[0]: line for line in text.splitlines() if line.startswith("DCGM_")}
    temperature = lines["DCGM_FI_DEV_GPU_TEMP"]
    for label in (
        'gpu="1"',
        'UUID="MIG-1"',
        'device="nvidia3"',
        'modelName="NVIDIA \\"H200\\" MIG 1g.18gb"',
        'pci_bus_id="0000:1b:00.0"',
        'GPU_I_PROFILE="1g.18gb"',
        'GPU_I_ID="7"',
        "Hostname=",
    ):
        assert label in temperature
    values = {name.removeprefix("DCGM_FI_DEV_"): float(line.rpartition(" ")[2]) for name, line in lines.items()}
    assert values == {
        "GPU_TEMP": 41,
        "POWER_USAGE": 70.5,
        "TOTAL_ENERGY_CONSUMPTION": 12,
        "FB_USED": 3,
        "CORRECTABLE_REMAPPED_ROWS": 2,
        "ROW_REMAP_FAILURE": 0,
        "XID_ERRORS": 79,
    }


def test_a_device_without_a_driver_or_a_sample_has_no_figures() -> None:
    text = exposed(SeenDevice(device="ab" * 32, state="free"), SeenDevice(device="cd" * 32, state="free", gpu=GPU))
    assert "DCGM_" not in text


def test_why_a_device_is_not_lent_is_exposed() -> None:
    seen = SeenDevice(device="ab" * 32, state="withdrawn", reasons=("it is hotter than 80 °C",), gpu=GPU)
    assert 'hansa_device_withheld{UUID="MIG-1",device="abababababababab",reason="it is hotter than 80 °C"} 1.0' in (
        exposed(seen)
    )
