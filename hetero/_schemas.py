"""Versions of the files we write: an older one is brought up to date, a newer one refused.

A file says what it is as "NAME/NUMBER". A change that an older reader would misread raises the
number, and the module that owns the format gives a function from the old content to the new one:
one for each number that ever was. What is merely added, and may be missing, raises nothing.

docs/stability.md lists the formats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hetero.errors import BundleError, ConfigError

#: What taking a file apart raises where its content is not what we write.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)

#: The content of a file of one version in, that of the next version out.
Step = Callable[[dict[str, Any]], dict[str, Any]]


def check(
    where: object, found: object, own: str, *, again: str, writer: object = "", oldest: int = 1
) -> int:
    """The version a file has, if this program can read it.

    Args:
        where: The file, for messages.
        found: What it says it is.
        own: What this program writes: "hetero.report/2".
        again: What to do where it cannot be read: "export it again".
        writer: Version of the hetero that wrote it, where the file says so.
        oldest: The oldest version that can be read.

    Raises:
        BundleError: It is something else, or of a version that this program does not read.
    """
    name, _, newest = own.rpartition("/")
    theirs, _, number = found.rpartition("/") if isinstance(found, str) else ("", "", "")
    if theirs != name or not _counts(number):
        raise BundleError(
            f"{where}: schema {repr(found)[:60]}, this program reads {own!r}; {again}"
        )
    version = int(number)
    if version > int(newest):
        raise BundleError(f"{where}: schema {found!r}, {newer(own, writer)}, or {again}")
    if version < oldest:
        raise BundleError(
            f"{where}: schema {found!r}, this program reads {name}/{oldest} to {own}; {again}"
        )
    return version


def newer(own: object, writer: object = "") -> str:
    """The words for a file of a version to come, after what it is."""
    from hetero import __version__

    by = f"hetero {str(writer)[:20]}" if writer else "a newer hetero"
    return (
        f"written by {by}, where this one, {__version__}, reads up to {own!r}; "
        "update it with pip install --upgrade hetero"
    )


def up_to_date(
    where: object,
    content: dict[str, Any],
    own: str,
    steps: Sequence[Step],
    *,
    again: str,
    writer: object = "",
) -> dict[str, Any]:
    """The content as this program would have written it, its key "schema" included.

    Args:
        where: The file, for messages.
        content: As it was read; it is not changed.
        own: What this program writes.
        steps: From each version to the next; the last leads to `own`.
        again: See `check`.
        writer: See `check`.

    Raises:
        BundleError: See `check`.
    """
    newest = int(own.rpartition("/")[2])
    version = check(
        where,
        content.get("schema"),
        own,
        again=again,
        writer=writer,
        oldest=newest - len(steps),
    )
    for step in steps[len(steps) - (newest - version) :] if version < newest else ():
        content = step(content)
    return {**content, "schema": own}


def of_text(path: Path, content: dict[str, Any], newest: int = 1) -> dict[str, Any]:
    """The content of a TOML file written by people, without its version, which it need not have.

    Args:
        path: For messages.
        content: As it was read; it is not changed.
        newest: The version that this program reads.

    Raises:
        ConfigError: Its version is none, or one to come.
    """
    version = content.get("version", 1)
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"{path}: version {version!r}: leave it out, or write 1")
    if version > newest:
        raise ConfigError(f"{path}: version {version}, {newer(str(newest))}")
    return {key: value for key, value in content.items() if key != "version"}


def _counts(number: str) -> bool:
    """Whether a text is a version number: 1, 2, … as we write them."""
    return number.isascii() and number.isdecimal() and number[:1] != "0" and len(number) < 10
