"""What sources that read a published list of pictures share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hetero.errors import DataError


def rows(name: str, path: Path, columns: int, *, skip: int = 0, layout: str) -> Iterator[list[str]]:
    """The rows of a white-space separated list, each with its number of columns checked.

    Args:
        name: Of the source, for messages.
        path: The list.
        columns: How many a row has.
        skip: Lines of heading.
        layout: What is expected where, for messages.

    Raises:
        DataError: There is no such file, or a row has another number of columns.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: cannot read {path.name} ({error}); expected {layout}") from error
    for at, line in enumerate(lines[skip:], skip + 1):
        found = line.split()
        if not found:
            continue
        if len(found) != columns:
            raise DataError(
                f"{name}: {path.name}, line {at}: {len(found)} columns, expected {columns}"
            )
        yield found
