"""Devices by names of one's own: `devices.toml`.

    [devices]
    desk = "local:threads=2"
    garage = { spec = "ssh:pi@garage.local", note = "Pi 4 behind the freezer", tags = ["arm"] }

It is looked for in the working folder, then in the user's configuration folder. A name of the
inventory is what reports, errors and run folders call the device.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from hetero import _schemas
from hetero._files import write_atomically
from hetero.errors import ConfigError, require

FILE = "devices.toml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
#: More than any inventory has; a device or a huge file is not read.
_MAX_BYTES = 1 << 20


class Entry(BaseModel):
    """One device of an inventory.

    Attributes:
        spec: What `open_device` takes: "ssh:pi@garage.local".
        note: For people.
        tags: By which a part of the fleet is chosen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    spec: str
    note: str = ""
    tags: list[str] = []

    @field_validator("spec")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if not value or value != value.strip() or not value.isprintable():
            raise ValueError(f"{value!r} is not KIND or KIND:ADDRESS")
        return value

    @field_validator("tags")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        for tag in value:
            if not _NAME.fullmatch(tag):
                raise ValueError(f"tag {tag!r} is not a word of letters, digits, - and _")
        return value


@dataclass(frozen=True)
class Inventory:
    """The devices of a file, by name, in the order of the file.

    Attributes:
        entries: By name.
        path: Where they stand, or None for an inventory without a file.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)
    path: Path | None = None

    def __post_init__(self) -> None:
        for name in self.entries:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"{self.path or 'inventory'}: the name {name!r} is not a word of at most 40 "
                    "letters, digits, - and _"
                )

    def chosen(self, tag: str = "") -> tuple[str, ...]:
        """The names with a tag, or all.

        Raises:
            ConfigError: None.
        """
        found = tuple(n for n, e in self.entries.items() if not tag or tag in e.tags)
        if not found:
            where = self.path or "the inventory"
            if tag and self.entries:
                tags = sorted({t for e in self.entries.values() for t in e.tags})
                have = ", ".join(tags) or "none"
                raise ConfigError(f"{where}: no device has the tag {tag!r} (tags: {have})")
            raise ConfigError(f"{where}: no device in it; run: hetero devices add NAME SPEC")
        return found


def default_path() -> Path:
    """``devices.toml`` of the working folder where there is one, else the user's own."""
    import platformdirs

    here = Path(FILE)
    return here if here.exists() else platformdirs.user_config_path("hetero") / FILE


def load_inventory(path: Path | None = None) -> Inventory:
    """The inventory of a file, or of `default_path`, which need not be there.

    Raises:
        ConfigError: A named file is missing, or one is not an inventory.
    """
    source = path or default_path()
    if path is None and not source.exists():
        return Inventory({}, source)
    return Inventory(_entries(source, _read(source)), source)


def _read(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not an ordinary file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES} bytes; is it an inventory?")
        return data.decode()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such inventory; run: hetero devices add NAME SPEC"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error


def _entries(path: Path, text: str) -> dict[str, Entry]:
    try:
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    raw = _schemas.of_text(path, raw)
    if unknown := sorted(set(raw) - {"devices"}):
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; devices stand below [devices]")
    table = raw.get("devices", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: devices is not a table; write [devices]")
    return {name: _entry(path, name, value) for name, value in table.items()}


def _entry(path: Path | None, name: str, value: object) -> Entry:
    given = {"spec": value} if isinstance(value, str) else value
    try:
        return Entry.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in (name, *first["loc"]))
        what = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{path or 'inventory'}: {where}: {what}; write NAME = "
            '"KIND:ADDRESS" or NAME = { spec = "…", note = "…", tags = ["…"] }'
        ) from error


def add(path: Path, name: str, spec: str, *, note: str = "", tags: Sequence[str] = ()) -> Inventory:
    """The inventory with one device more, written; comments and order of the file stay.

    Args:
        path: Made with its folder if it is not there.
        name: Not yet in it.
        spec: As `open_device` takes it; it is the caller's to have tried that.
        note: See `Entry`.
        tags: See `Entry`.

    Raises:
        ConfigError: The name is taken or cannot be one, or the file is not an inventory.
        MissingExtraError: tomlkit is not installed.
    """
    text = _read(path) if path.exists() else ""
    before = _entries(path, text)
    if name in before:
        raise ConfigError(
            f"{path}: {name!r} is there already ({before[name].spec}); "
            f"run: hetero devices remove {name}"
        )
    whole: dict[str, Any] = {"spec": spec}
    whole |= {"note": note} if note else {}
    whole |= {"tags": list(tags)} if tags else {}
    after = Inventory({**before, name: _entry(path, name, whole)}, path)
    tomlkit = require("tomlkit", "fleet")
    document = tomlkit.parse(text)
    if "devices" not in document:
        document["devices"] = tomlkit.table()
    value: Any = spec
    if len(whole) > 1:
        value = tomlkit.inline_table()
        value.update(whole)
    document["devices"][name] = value
    _write(path, tomlkit.dumps(document), after)
    return after


def remove(path: Path, name: str) -> Inventory:
    """The inventory with one device less, written.

    Raises:
        ConfigError: It is not there, or the file is missing or is not an inventory.
        MissingExtraError: tomlkit is not installed.
    """
    text = _read(path)
    before = _entries(path, text)
    if name not in before:
        have = ", ".join(before) or "none"
        raise ConfigError(f"{path}: no device {name!r} in it (there are: {have})")
    tomlkit = require("tomlkit", "fleet")
    document = tomlkit.parse(text)
    del document["devices"][name]
    after = Inventory({n: e for n, e in before.items() if n != name}, path)
    _write(path, tomlkit.dumps(document), after)
    return after


def _write(path: Path, text: str, meant: Inventory) -> None:
    """Write the file, if it says what was meant: an odd layout must not lose a device."""
    if _entries(path, text) != dict(meant.entries):
        raise ConfigError(f"{path}: cannot be edited by program; change it by hand")
    # A link to an inventory kept elsewhere stays a link.
    write_atomically(Path(os.path.realpath(path)), text)
