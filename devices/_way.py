"""The way to a device, opened again when it is cut."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hetero.devices._types import Device, Link
from hetero.errors import DeviceError

T = TypeVar("T")

PAUSES_S = (0.2, 8.0)  # between two tries: the first, and the longest


class Way:
    """A device's link, opened when it is first needed and again after each cut."""

    def __init__(self, device: Device, folder: Path, reconnect_s: float) -> None:
        self._device, self._folder, self._reconnect_s = device, folder, reconnect_s
        self._stack = contextlib.ExitStack()
        self._link: Link | None = None

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def is_open(self) -> bool:
        """Whether the last operation left the way open."""
        return self._link is not None

    def call(self, do: Callable[[Link], T]) -> T:
        """What `do` gives, which is called again after a cut: it must bear being done twice.

        Raises:
            DeviceError: The way was cut and did not come back in time.
        """
        left_s, pause_s = self._reconnect_s, PAUSES_S[0]
        while True:
            begun, there = time.monotonic(), self._link is not None
            try:
                if self._link is None:
                    self._link = self._stack.enter_context(self._device.connect(self._folder))
                there = True
                return do(self._link)
            except ConnectionError as error:
                self._link = None
                with contextlib.suppress(ConnectionError):  # closing what is cut may say so again
                    self._stack.close()
                # A device is away while it cannot be connected to. A file that was on its way for
                # minutes, or an answer that was waited for, is no reason not to try again.
                if not there:
                    left_s -= time.monotonic() - begun
                if pause_s > left_s:
                    raise DeviceError(
                        self._device.name,
                        f"cannot be reached ({error}), tried for {self._reconnect_s:g} s; its "
                        "worker may go on, the same command with --resume fetches what it did",
                    ) from error
                time.sleep(pause_s)
                left_s -= pause_s
                pause_s = min(2 * pause_s, PAUSES_S[1])
