"""Rebuilds the pictures that ``hetero.data.emoji`` reads: ``python -m hetero.data._build_emoji``.

Nine openly licensed emoji designs, none share-alike, come as npm packages of pinned versions,
fetched with the ``npm`` client; ``resvg-py`` renders their drawings. A class is a Unicode emoji.
Left out are skin tones and joined sequences (most designs draw many of them alike), flags of
regions, drawings that are the same for two classes, and classes with fewer than `LEAST_DESIGNS`
designs.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import subprocess
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from hetero._files import canonical_json, write_atomically
from hetero.data._emoji_designs import DESIGNS, Design, notice
from hetero.data.emoji import class_split
from hetero.errors import ConfigError, DataError, require

TILE_PX = 32
TILES_PER_ROW = 128
#: Rendered this many times larger and then averaged: smoother than rendering small.
OVERSAMPLING = 4
LEAST_DESIGNS = 5
WEBP_QUALITY = 82

#: Whose names and groups stand for a class, the first that has it; they also give the code points.
NAMED_BY = ("noto", "twemoji", "fluent-flat", "fluent-hc")

#: fxemoji's names where they mean another emoji than Unicode's; "" is none of ours.
FXEMOJI_NAMES = {
    **{name: f"{name}face" for name in ("cat", "dog", "mouse", "pig", "tiger")},
    **{
        f"{name}side": name for name in ("cat", "dog", "dragon", "leopard", "mouse", "pig", "tiger")
    },
    "bunny": "rabbitface",
    "bunnyside": "rabbit",
    **dict.fromkeys(("compression", "keyboard", "kiss", "tramcar", "window"), ""),
}

Pack = Mapping[str, Any]


def fetch(design: Design, folder: Path) -> Pack:
    """The JSON files of a design's npm package, by stem.

    Args:
        design: What to fetch.
        folder: Where the archive goes.

    Raises:
        ConfigError: npm is missing or refuses, or the package declares another licence.
    """
    wanted = f"@iconify-json/{design.package}@{design.version}"
    command = ["npm", "pack", "--silent", wanted, "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    except FileNotFoundError as error:
        raise ConfigError("npm is not installed; it fetches the drawings") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"npm pack {wanted} failed: {last}") from error
    pack = {}
    with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
        for name in archive.getnames():
            file = archive.extractfile(name) if name.endswith(".json") else None
            if file is not None:
                pack[Path(name).stem] = json.load(file)
    licence = pack["info"]["license"]["spdx"]
    if licence != design.licence:
        raise ConfigError(
            f"{wanted}: licence {licence}, expected {design.licence}; look before use"
        )
    return pack


def _plain(name: str) -> str:
    return name.replace("-", "").replace(" ", "")


def _wanted(code: str) -> bool:
    """Whether a code is one emoji: no skin tone, joined sequence, or flag of a region."""
    points = [int(point, 16) for point in code.split("-")]
    tones, joiner = range(0x1F3FB, 0x1F400), 0x200D
    letters, tags = range(0x1F1E6, 0x1F200), range(0xE0020, 0xE0080)
    flag = len(points) > 1 and all(point in letters for point in points)
    return not flag and not any(p in tones or p == joiner or p in tags for p in points)


def codes_of(design: Design, packs: Mapping[str, Pack]) -> dict[str, str]:
    """Code point -> name of the drawing in this design.

    A design without a table of code points is joined by name: another design, or Unicode, calls
    the emoji the same, hyphens and spaces aside.
    """
    icons, chars = packs[design.name]["icons"], packs[design.name].get("chars")
    if chars:
        return {code: name for code, name in chars.items() if _wanted(code)}
    by_name: dict[str, str] = {}
    for other in NAMED_BY:
        for code, name in packs[other]["chars"].items():
            if _wanted(code):
                by_name.setdefault(_plain(name), code)
    for code in sorted(set(by_name.values())):
        if "-" not in code:
            by_name.setdefault(_plain(unicodedata.name(chr(int(code, 16)), code).lower()), code)
    for other in NAMED_BY:
        for name, alias in packs[other]["icons"].get("aliases", {}).items():
            # A turned or mirrored alias is another emoji.
            if set(alias) == {"parent"} and _plain(alias["parent"]) in by_name:
                by_name.setdefault(_plain(name), by_name[_plain(alias["parent"])])
    found: dict[str, str] = {}
    renamed = FXEMOJI_NAMES if design.name == "fxemoji" else {}
    for name in sorted(icons["icons"]):
        meant = renamed.get(name, _plain(name))
        if meant in by_name:
            found.setdefault(by_name[meant], name)
    used = set(found.values())
    for name, alias in sorted(icons.get("aliases", {}).items()):
        # A drawing that has a place under its own name stands for that emoji alone.
        if set(alias) == {"parent"} and alias["parent"] not in used and _plain(name) in by_name:
            found.setdefault(by_name[_plain(name)], name)
    return found


def render(pack: Pack, name: str, side_px: int = TILE_PX) -> UInt8[np.ndarray, "s s 3"]:
    """A drawing on white, RGB.

    Args:
        pack: The design's files.
        name: Of the drawing, or an alias of it.
        side_px: Side of the picture.
    """
    from PIL import Image

    resvg = require("resvg_py", "dev")
    icons = pack["icons"]
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = icons["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">'
        f"{icon['body']}</svg>"
    )
    zoom = side_px * OVERSAMPLING / max(width, height)
    png = bytes(
        resvg.svg_to_bytes(
            svg_string=svg,
            width=round(width * zoom),
            height=round(height * zoom),
            background="#ffffff",
            skip_system_fonts=True,
        )
    )
    with Image.open(io.BytesIO(png)) as picture:
        large = Image.new("RGB", (side_px * OVERSAMPLING,) * 2, "white")
        at = ((large.width - picture.width) // 2, (large.height - picture.height) // 2)
        large.paste(picture.convert("RGB"), at)
    return np.asarray(large.reduce(OVERSAMPLING))


def drawings(
    packs: Mapping[str, Pack],
) -> dict[str, dict[str, UInt8[np.ndarray, "s s 3"]]]:
    """Code point -> design -> picture, after all the rules of this file."""
    joined = {design.name: codes_of(design, packs) for design in DESIGNS}
    designs_of = Counter(code for table in joined.values() for code in table)
    found: dict[str, dict[str, UInt8[np.ndarray, "s s 3"]]] = defaultdict(dict)
    for name, table in joined.items():
        alike = defaultdict(list)
        for code in sorted(code for code in table if designs_of[code] >= LEAST_DESIGNS):
            picture = render(packs[name], table[code])
            if picture.min() < 255:
                alike[picture.tobytes()].append((code, picture))
        for group in alike.values():
            if len(group) == 1:
                found[group[0][0]][name] = group[0][1]
        same = sum(len(group) for group in alike.values() if len(group) > 1)
        print(f"{name}: {len(alike)} drawings, {same} left out because they stand for two emoji")
    return {code: found[code] for code in sorted(found) if len(found[code]) >= LEAST_DESIGNS}


def _described(code: str, packs: Mapping[str, Pack]) -> Iterator[str]:
    """Name and group of a class."""
    by = next((d for d in NAMED_BY if code in packs[d]["chars"]), None)
    if by is None:
        raise DataError(f"emoji {code}: no design names it")
    name = packs[by]["chars"][code]
    yield name
    groups = packs[by]["metadata"]["categories"]
    yield next((group for group, names in sorted(groups.items()) if name in names), "")


def build(output: Path) -> None:
    """Nothing; ``emoji.webp``, ``emoji.json`` and ``NOTICE`` are in `output` afterwards.

    Raises:
        ConfigError: npm cannot fetch a package, or its licence is not the expected one.
        DataError: Two classes have one name.
    """
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        packs = {design.name: fetch(design, Path(folder)) for design in DESIGNS}
    found = drawings(packs)
    vendors = [design.name for design in DESIGNS]
    tiles = [
        (at, vendors.index(vendor), picture)
        for at, pictures in enumerate(found.values())
        for vendor, picture in sorted(pictures.items())
    ]
    rows = math.ceil(len(tiles) / TILES_PER_ROW)
    sheet = np.full((rows * TILE_PX, TILES_PER_ROW * TILE_PX, 3), 255, dtype=np.uint8)
    for place, (_, _, picture) in enumerate(tiles):
        top, left = (TILE_PX * at for at in divmod(place, TILES_PER_ROW))
        sheet[top : top + TILE_PX, left : left + TILE_PX] = picture
    classes = [[code, *_described(code, packs), class_split(code)] for code in found]
    double = [n for n, count in Counter(name for _, name, _, _ in classes).items() if count > 1]
    if double:
        raise DataError(f"emoji: {double[0]!r} names more than one class")
    table = {
        "tile": TILE_PX,
        "tiles_per_row": TILES_PER_ROW,
        "vendors": vendors,
        "domains": {design.name: design.family for design in DESIGNS},
        "class": [at for at, _, _ in tiles],
        "vendor": [vendor for _, vendor, _ in tiles],
        "classes": classes,
    }
    packed = io.BytesIO()
    Image.fromarray(sheet).save(packed, "WEBP", quality=WEBP_QUALITY, method=6)
    write_atomically(
        output / "NOTICE",
        notice({name: pack["info"] for name, pack in packs.items()}, TILE_PX),
    )
    write_atomically(output / "emoji.webp", packed.getvalue())
    write_atomically(output / "emoji.json", canonical_json(table) + "\n")
    split = Counter(entry[3] for entry in classes)
    print(f"{len(classes)} classes {dict(split)}, {len(tiles)} pictures, {packed.tell()} bytes")


def main() -> None:
    """Nothing; builds the sheet in the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m hetero.data._build_emoji")
    parser.add_argument("--output", type=Path, required=True, help="folder for the three files")
    build(parser.parse_args().output)


if __name__ == "__main__":
    main()
