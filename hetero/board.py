"""A fleet at work: what each file is doing on each device, as a live table or as lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

State = Literal["waiting", "running", "done", "failed"]

_STYLES: dict[State, str] = {"waiting": "dim", "running": "", "done": "green", "failed": "red"}


class Board:
    """The state of each cell; any thread may say one.

    Args:
        devices: Its rows.
        files: Its columns, each a format and a precision.
        say: Takes lines where there is no live table, or None to say nothing.
        every_s: At least this long between two lines that only count on, of all cells together.
    """

    def __init__(
        self,
        devices: Sequence[str],
        files: Sequence[tuple[str, str]],
        say: Callable[[str], None] | None = None,
        every_s: float = 10.0,
    ) -> None:
        """See the class."""
        self._devices, self._files = tuple(devices), tuple(files)
        self._say, self._every_s, self._said = say, every_s, time.monotonic()
        self.is_live = False
        self._lock = threading.Lock()
        self._cells: dict[tuple[str, str, str], tuple[State, str]] = {}

    def tell(self, device: str, format: str, precision: str, state: State, note: str = "") -> None:
        """Note what a cell is doing.

        Args:
            device: As in `devices`.
            format: As in `files`.
            precision: As in `files`.
            state: What it is doing.
            note: How far it is, how long it took, or why it failed.
        """
        with self._lock:
            before = self._cells.get((device, format, precision))
            self._cells[device, format, precision] = (state, note)
            now = time.monotonic()
            news = state not in ("waiting", "running") or before is None or before[0] != state
            if self._say is None or not (news or now - self._said >= self._every_s):
                return
            self._said = now
        self._say(f"{device}: {format} {precision}: {state}{' ' if note else ''}{note}")

    @contextlib.contextmanager
    def live(self, console: Console) -> Iterator[Board]:
        """Show it as a table that keeps up, for as long as the ``with`` block runs."""
        from rich.live import Live

        self.is_live = True
        with Live(
            get_renderable=self.table, console=console, refresh_per_second=4, transient=False
        ):
            yield self

    def table(self) -> Table:
        """The table as it is now: devices down, files across."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        out = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        out.add_column("Device", no_wrap=True)
        for format, precision in self._files:
            out.add_column(f"{format}\n{precision}", min_width=10)
        with self._lock:
            cells = dict(self._cells)
        for device in self._devices:
            row = []
            for format, precision in self._files:
                found = cells.get((device, format, precision))
                if found is None:
                    row.append(Text("\N{EN DASH}", style="dim"))
                    continue
                state, note = found
                text = note if state == "running" and note else f"{state} {note}".rstrip()
                row.append(Text(text, style=_STYLES[state]))
            out.add_row(Text(device), *row)
        return out
