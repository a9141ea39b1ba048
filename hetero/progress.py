"""How far a long job is: bars or a table on a terminal, lines elsewhere; on standard error."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hetero.board import Board


#: Characters a line; on a narrower terminal a note goes below what it is about.
NARROW = 120


class Bar(Protocol):
    """One job under way."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Count steps as done; a note (loss, score, speed) replaces the one before."""
        ...


class Reporter:
    """Where a command tells what it does. Make one a command and pass it down.

    Args:
        quiet: Say nothing; errors are exceptions and not said here.
        every_s: Without a terminal, at least this long between two lines of one job.
    """

    def __init__(self, quiet: bool = False, every_s: float = 10.0) -> None:
        """See the class."""
        from rich.console import Console

        self._quiet, self._every_s = quiet, every_s
        self._console = Console(stderr=True, highlight=False)

    def line(self, text: str) -> None:
        """Say one thing on a line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a job of `total` steps for as long as the ``with`` block runs.

        Args:
            what: Its name.
            total: Steps in all.
            done: Steps that an earlier run did; they do not count for the speed.
        """
        if self._quiet:
            yield _Silent()
        elif self._console.is_terminal:
            with self._rich() as progress:
                yield _Shown(
                    progress, progress.add_task(what, total=total, completed=done, note="")
                )
        else:
            lines = _Lines(self, what, total, done, self._every_s)
            yield lines
            lines.finish()

    @contextlib.contextmanager
    def board(self, devices: Sequence[str], files: Sequence[tuple[str, str]]) -> Iterator[Board]:
        """Show what each file is doing on each device for as long as the ``with`` block runs.

        Args:
            devices: Their names.
            files: Format and precision of each.
        """
        from hetero.board import Board

        if self._quiet:
            yield Board(devices, files)
        elif self._console.is_terminal:
            with Board(devices, files).live(self._console) as shown:
                yield shown
        else:
            yield Board(devices, files, self.line, self._every_s)

    def _rich(self) -> Progress:
        from rich import progress
        from rich.table import Column
        from rich.text import Text

        narrow = self._console.width < NARROW

        class Said(progress.ProgressColumn):
            def render(self, task: progress.Task) -> Text:
                note = task.fields["note"] if narrow else ""
                return Text(f"{task.description}\n  {note}" if note else task.description)

        note = progress.TextColumn("{task.fields[note]}", markup=False)
        return progress.Progress(
            Said(table_column=Column(no_wrap=True)),
            progress.BarColumn(bar_width=24),
            progress.MofNCompleteColumn(table_column=Column(no_wrap=True)),
            progress.TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            *([] if narrow else [note]),
            console=self._console,
        )


class _Silent:
    def advance(self, steps: int = 1, note: str = "") -> None:
        pass


class _Shown:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1, note: str = "") -> None:
        if note:
            self._progress.update(self._task, advance=steps, note=note)
        else:
            self._progress.update(self._task, advance=steps)


class _Lines:
    def __init__(
        self, reporter: Reporter, what: str, total: int, done: int, every_s: float
    ) -> None:
        self._reporter, self._what, self._total, self._every_s = reporter, what, total, every_s
        self._before, self._done, self._note = done, done, ""
        self._said = self._begun = time.monotonic()
        self._lock = threading.Lock()  # decoding threads count together

    def advance(self, steps: int = 1, note: str = "") -> None:
        with self._lock:
            self._done += steps
            self._note = note or self._note
            now, fresh = time.monotonic(), self._done - self._before
            if now - self._said >= self._every_s and fresh and self._done < self._total:
                self._said = now
                left_s = (now - self._begun) / fresh * (self._total - self._done)
                # The first steps wait for what comes once: files opened, libraries loaded.
                known = fresh * 100 >= self._total - self._before
                self._say(f", {left_s:.0f} s left" if known else "")

    def finish(self) -> None:
        self._say(f" in {time.monotonic() - self._begun:.0f} s")

    def _say(self, tail: str) -> None:
        note = f"  {self._note}" if self._note else ""
        self._reporter.line(f"{self._what}: {self._done} of {self._total}{tail}{note}")
