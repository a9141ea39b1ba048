"""What stages share that draw: a plot is welcome, and nothing fails for want of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hetero._files import write_atomically
from hetero.errors import MissingExtraError
from hetero.progress import Reporter


def drawn(path: Path, draw: Callable[[], str], reporter: Reporter) -> None:
    """A plot in a file, or a word on why there is none."""
    try:
        write_atomically(path, draw())
    except MissingExtraError as error:
        reporter.line(f"no plot: {error}")
