"""Names of GPUs in other systems' files, in Hansa's one form; and what is no GPU of Hansa's at all."""

import re

from hansa.node.jobs.import_job import GIB, Draft
from hansa.node.jobs.import_yaml import Value, shown
from hansa.proto.gpu_models import canonical, parse

_ARCHITECTURES = {
    **dict.fromkeys(("amd64", "x86_64", "x86"), "x86_64"),
    **dict.fromkeys(("arm64", "aarch64", "arm"), "aarch64"),
}
_HINT = "write the model as its maker does, such as RTX A4000, H100 or A100-80GB"
_OTHER_DEVICES = re.compile(r"\s*(tpu|v[0-9]+[ep]?-[0-9]+$|inferentia|trainium|neuron|gaudi|n150|n300)", re.IGNORECASE)


def add_choice(
    draft: Draft, value: Value, devices: int, *, ram_bytes: int = 0, interface: str = "", text: str | None = None
) -> None:
    """One more model that would do, in its one form, with the memory and the socket that stand beside it.

    A name that nobody knows is left out and told: the others of its list may do. ``require_choice`` comes after them.
    """
    written = (value.text() if text is None else text).strip()
    refuse_other_devices(value, written)
    # A card's memory is written as a size in some systems, and means what is printed on the box.
    memory = f" {round(ram_bytes / GIB)}GB" if ram_bytes else ""
    socket = f" {interface}" if interface and _is_made_in_two_forms(written) else ""
    named = f"{written}{socket}{memory}"
    if parse(named) is None:
        draft.leave(value.place, written, f"no GPU is known by this name; {_HINT}")
        return
    model = canonical(named)
    if (devices, model) not in draft.choices:
        draft.choices = (*draft.choices, (devices, model))
    draft.carry(value.place, f"{devices} x {named}", f"resources.needs: {devices}x {model}")


def _is_made_in_two_forms(name: str) -> bool:
    """Whether there are cards for a socket beside those for a slot; of all others no driver says which it is."""
    for_socket = parse(f"{name} SXM")
    return for_socket is not None and for_socket.form not in ("", "SXM")


def require_choice(draft: Draft, value: Value) -> None:
    """Called where models were named: one at least must be known, or the job would run on any GPU.

    Raises:
        ConfigError: none is.
    """
    if not draft.choices:
        raise value.fault("no GPU is known by any of these names", _HINT)


def add_arch(draft: Draft, value: Value, text: str) -> None:
    """A kind of processor, in the kernel's name for it."""
    arch = _ARCHITECTURES.get(text.strip().lower())
    if arch is None:
        draft.leave(value.place, text, "no processor is known by this name")
    else:
        draft.clauses.append(f"arch = {arch}")
        draft.carry(value.place, text, f"resources.needs: arch = {arch}")


def refuse_other_devices(value: Value, name: str) -> None:
    """Say so where it is a TPU or the like.

    Raises:
        ConfigError: it is one.
    """
    if _OTHER_DEVICES.match(name):
        raise value.fault(f"{shown(name)} is no GPU, and nobody lends it here", "name a GPU, or leave it out")
