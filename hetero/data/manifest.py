"""A table of pictures and their classes: ``manifest:FILE.csv`` or ``manifest:FILE.parquet``.

Columns ``path`` (relative to the table's folder, or absolute) and ``label``, and if wanted
``split`` (train, val, test), ``role`` (query, gallery, both) and ``group``. Without ``split``,
classes are split by hash of their names; with a split but no val, about one in seven classes of
train takes its place. Without ``role``, pictures of val and test take turns as query and gallery,
or are both if the table has groups, which then keep a picture from answering itself.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

from hetero.data import Images, Split
from hetero.data._pictures import Entry, collection, odd_name
from hetero.errors import DataError, require

_NEEDED = ("path", "label")
_OPTIONAL = ("split", "role", "group")
_ROLES = ("query", "gallery", "both")

#: What a row is called in messages, and its fields; an absent or null field is "".
_Row = tuple[str, Mapping[str, str]]


def source(where: str, seed: int = 0) -> Images:
    """The pictures that a table lists; files that are missing or unusable are in `skipped`.

    Args:
        where: A .csv file (UTF-8, commas, first line the column names) or a .parquet file.
        seed: Of the split, where the table has none.

    Raises:
        DataError: The table cannot be used; the message names the line or row.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    name, path = f"manifest:{where}", Path(where).expanduser()
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise DataError(f"{name}: expected a .csv or .parquet file")
    if not os.path.isfile(path):
        what = "is a folder, not a file" if os.path.isdir(path) else "no such file"
        raise DataError(f"{name}: {what}; expected a table with columns path and label")
    entries, seen, split_of = [], dict[str, str](), dict[str, tuple[Split, str]]()
    rows = _csv_rows(name, path) if path.suffix.lower() == ".csv" else _parquet_rows(name, path)
    for at, row in rows:
        entry = _entry(f"{name}, {at}", row)
        # Two ways of writing one path are one picture.
        key = os.path.normpath(entry.id)
        if key in seen:
            raise DataError(f"{name}, {at}: {entry.id!r} is listed already, {seen[key]}")
        seen[key] = at
        if entry.split:
            first, there = split_of.setdefault(entry.label, (entry.split, at))
            if first != entry.split:
                raise DataError(
                    f"{name}, {at}: class {entry.label!r} is in {entry.split} here and in {first} "
                    f"in {there}; the open-set protocol tests on classes that training never saw"
                )
        entries.append(entry)
    if not entries:
        raise DataError(f"{name}: the table has no rows")
    return collection(name, path, path.parent, entries, (), seed)


def _entry(at: str, row: Mapping[str, str]) -> Entry:
    """A row checked field by field."""
    for column in _NEEDED:
        if not row[column]:
            raise DataError(f"{at}: {column} is empty")
    for column in ("path", "label", "group"):
        if reason := odd_name(row.get(column, "")):
            raise DataError(f"{at}: {column}: {reason}")
    split, role = row.get("split"), row.get("role", "")
    if split is not None:
        split = "val" if split == "validation" else split
        if split not in get_args(Split):
            raise DataError(f"{at}: split is {split!r}; expected {', '.join(get_args(Split))}")
    if role not in _ROLES and not (role == "" and ("role" not in row or split == "train")):
        raise DataError(f"{at}: role is {role!r}; expected {', '.join(_ROLES)}")
    path = Path(row["path"]).as_posix()
    return Entry(path, row["label"], cast("Split | None", split), role, row.get("group", ""))


def _check_columns(name: str, columns: list[str]) -> None:
    allowed = f"there are {', '.join(_NEEDED)} and, if wanted, {', '.join(_OPTIONAL)}"
    for column in columns:
        if column not in (*_NEEDED, *_OPTIONAL):
            raise DataError(f"{name}: unknown column {column!r}; {allowed}")
        if columns.count(column) > 1:
            raise DataError(f"{name}: column {column!r} is there more than once")
    missing = [column for column in _NEEDED if column not in columns]
    if missing:
        raise DataError(f"{name}: no column {' and no column '.join(missing)}; {allowed}")


def _csv_rows(name: str, path: Path) -> Iterator[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [column.strip() for column in next(reader, [])]
            _check_columns(name, columns)
            for fields in reader:
                if not fields:
                    continue
                at = f"line {reader.line_num}"
                if len(fields) != len(columns):
                    raise DataError(
                        f"{name}, {at}: {len(fields)} fields where the first line names "
                        f"{len(columns)}; a field with a comma in it needs quotes"
                    )
                yield at, dict(zip(columns, fields, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 ({error.reason} at byte {error.start})") from error
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not CSV ({error})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error


def _parquet_rows(name: str, path: Path) -> Iterator[_Row]:
    arrow, parquet = (
        require("pyarrow", "parquet"),
        require("pyarrow.parquet", "parquet"),
    )
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{name}: cannot be read ({str(error).splitlines()[0]})") from error
    columns = [str(column) for column in table.column_names]
    _check_columns(name, columns)
    values = [table.column(column).to_pylist() for column in columns]
    for number, fields in enumerate(zip(*values, strict=True), start=1):
        texts = ("" if field is None else str(field) for field in fields)
        yield f"row {number}", dict(zip(columns, texts, strict=True))
