"""Not faster than so many bytes a second."""

import trio

BURST_S = 0.25
"""What would have passed in this time may come in one burst."""


class Pace:
    """How fast everything that shares it may pass. Whoever asks first goes first."""

    def __init__(self, bytes_per_s: int) -> None:
        """0 is no limit."""
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def wait(self, size_bytes: int) -> None:
        """Return when so many bytes may pass."""
        if self._bytes_per_s:
            self._free_at = max(self._free_at, trio.current_time()) + size_bytes / self._bytes_per_s
            await trio.sleep_until(self._free_at - BURST_S)
