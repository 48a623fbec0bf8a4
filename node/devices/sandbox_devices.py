"""Which device nodes a sandbox is given for its leased GPUs, and how programs in it are told which GPUs are theirs.

The node is the boundary, the variable a hint. Nodes are named by whom the launcher obeys, so each must have the form of
a GPU's own: what else lies in /dev is nobody's business in a sandbox.
"""

import re
from collections.abc import Mapping, Sequence

KFD = "/dev/kfd"
_NODE = re.compile(r"/dev/nvidia-caps/nvidia-cap[0-9]{1,5}|/dev/kfd|/dev/dri/renderD[0-9]{1,3}", re.ASCII)
_CUDA = re.compile(r"(?:GPU|MIG)-[0-9A-Za-z/\-]{1,80}", re.ASCII)
_ROCM = re.compile(r"GPU-[0-9A-Za-z\-]{1,80}", re.ASCII)
TOPOLOGY = ("/sys/bus/pci", "/sys/devices")
"""NCCL and RCCL read there how GPUs are connected."""
ROCM_TOPOLOGY = ("/sys/class/kfd", "/sys/class/drm", "/sys/module/amdgpu")


def devices_fault(
    minors: Sequence[object], nodes: Sequence[object], cuda: Sequence[object], rocm: Sequence[object]
) -> str | None:
    """What is wrong with devices that were named for a sandbox, or nothing.

    Args:
        minors: the N of each ``/dev/nvidiaN``.
        nodes: further device nodes: capabilities of MIG slices, and those of AMD's driver.
        cuda: uuids of NVIDIA's GPUs and slices.
        rocm: uuids of AMD's GPUs.
    """
    if not all(type(minor) is int and 0 <= minor < 1024 for minor in minors):
        return "an unknown device"
    for values, form in ((nodes, _NODE), (cuda, _CUDA), (rocm, _ROCM)):
        if not all(isinstance(value, str) and form.fullmatch(value) for value in values):
            return "a device node or a name that no GPU has"
    return None


def rocm_names(uuid: str) -> bool:
    """Whether ROCm can tell a GPU by this name. Cards without a serial number of their own are all ``"GPU-XX"``."""
    return _ROCM.fullmatch(uuid) is not None and uuid != "GPU-XX"


def gpu_flags(minors: Sequence[int], nodes: Sequence[str]) -> list[str]:
    """The flags of bubblewrap for the leased devices, and no others.

    A plain ``--bind`` of a device node gives EACCES (nodev), hence ``--dev-bind``. Never modeset nor a card's own node
    of /dev/dri, through which one could draw on the owner's screen.
    """
    if not minors and not nodes:
        return []
    always, perhaps = [*nodes], []
    if minors:
        always = ["/dev/nvidiactl", *(f"/dev/nvidia{minor}" for minor in minors), *nodes]
        perhaps = ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"]
    flags = []
    for node in always:
        flags += ["--dev-bind", node, node]
    for node in perhaps:
        flags += ["--dev-bind-try", node, node]
    for path in (*TOPOLOGY, *(ROCM_TOPOLOGY if KFD in nodes else ())):
        flags += ["--ro-bind-try", path, path]
    return flags


def gpu_variables(cuda: Sequence[str], rocm: Sequence[str]) -> Mapping[str, str]:
    """What CUDA and ROCm look for to know which GPUs a program may use."""
    named = {"CUDA_VISIBLE_DEVICES": cuda, "ROCR_VISIBLE_DEVICES": rocm}
    return {name: ",".join(uuids) for name, uuids in named.items() if uuids}
