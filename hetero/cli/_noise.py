"""Where the chatter of libraries goes: into a log, so that what a terminal shows is ours.

Runtimes and converters print to standard error from native code, and Python libraries warn of what
a user of `hetero` can do nothing about. For as long as a command runs, file descriptor 2 is a log
file, and `sys.stderr`, to which progress and errors are printed, is the terminal as before.
HETERO_DEBUG=1 leaves everything where it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from hetero.errors import HeteroWarning

#: Logs that are kept, of the commands before.
KEPT = 10


@contextlib.contextmanager
def aside(folder: Path | None = None) -> Iterator[Path | None]:
    """What libraries print is in this file for as long as the ``with`` block runs.

    The file is there afterwards if anything was printed. None where nothing is put aside: when
    debugging, where no log can be written, or where somebody has replaced standard error.

    Args:
        folder: For the log; without, the user's folder of logs.
    """
    if os.environ.get("HETERO_DEBUG") or not _plain():
        yield None
        return
    try:
        path = _path(folder)
        log = path.open("w", encoding="utf-8", buffering=1)
    except OSError:
        yield None
        return
    before, shown = sys.stderr, warnings.showwarning
    before.flush()
    terminal = os.fdopen(
        os.dup(2), "w", buffering=1, encoding=before.encoding, errors="backslashreplace"
    )
    handler = logging.StreamHandler(log)
    os.dup2(log.fileno(), 2)
    sys.stderr = terminal
    logging.getLogger().addHandler(handler)
    if not sys.warnoptions:  # who asked for warnings by -W or PYTHONWARNINGS sees them
        warnings.showwarning = _warner(log)
    try:
        yield path
    finally:
        warnings.showwarning, sys.stderr = shown, before
        logging.getLogger().removeHandler(handler)
        terminal.flush()
        os.dup2(terminal.fileno(), 2)
        terminal.close()
        log.close()
        _tidy(path)


def _plain() -> bool:
    """Whether `sys.stderr` is the process's own."""
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        return False


def _path(folder: Path | None) -> Path:
    from time import strftime

    if folder is None:
        from platformdirs import user_log_path

        folder = user_log_path("hetero", appauthor=False)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"


def _warner(log: TextIO) -> Callable[..., None]:
    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, HeteroWarning):
            print(f"hetero: {message}", file=sys.stderr)
            return
        with contextlib.suppress(OSError, ValueError):
            (file or log).write(warnings.formatwarning(message, category, filename, lineno, line))

    return show


def _tidy(path: Path) -> None:
    """Remove the log if it is empty, and the oldest of many."""
    with contextlib.suppress(OSError):
        if not path.stat().st_size:
            path.unlink()
        for old in sorted(path.parent.glob("*.log"))[:-KEPT]:
            old.unlink()
