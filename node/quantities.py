"""Sizes and lengths of time for the eye, such as ``"512 MiB"`` and ``"1 h 5 min"``.

``hansa.market.value_forms`` reads them, and all that people write themselves.
"""


def format_size(size_bytes: int) -> str:
    """Write a size for the eye: the largest binary unit that leaves at least 1, with at most one decimal."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= scale:
            tenths = size_bytes * 10 // scale
            return f"{tenths // 10} {unit}" if tenths % 10 == 0 else f"{tenths // 10}.{tenths % 10} {unit}"
    return f"{size_bytes} B"


def format_duration(duration_ms: int) -> str:
    """Write a length of time for the eye, in the two largest units that matter: ``"1 h 5 min"``, ``"12 s"``."""
    if duration_ms < 1_000:
        return f"{duration_ms} ms"
    seconds = duration_ms // 1_000
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
