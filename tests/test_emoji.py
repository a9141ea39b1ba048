"""The embedded collection, and the script that rebuilds it."""

from __future__ import annotations

import hashlib
import io
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image

from hetero import preprocess
from hetero.data import _build_emoji, load
from hetero.data._emoji_designs import DESIGNS
from hetero.errors import ConfigError, DataError

#: SHA-256 over ids, labels, groups, splits and roles of the embedded collection. It changes only
#: when the collection is rebuilt, and then every published figure on it is void.
EMOJI_DIGEST = "2af1e19acfe8a90e77239d766feac8a97f57ac677dd2d7e3b56349a9c50cff8b"


# -- the embedded collection ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji():
    return load("emoji")


def test_the_embedded_collection_is_the_one_that_figures_were_published_for(emoji):
    assert emoji.digest == EMOJI_DIGEST
    assert len(emoji) == 10_900
    assert [len(emoji.classes(s)) for s in ("train", "val", "test")] == [835, 158, 420]
    assert load("emoji", seed=7).digest == emoji.digest


def test_each_emoji_is_in_the_split_that_its_code_point_gives(emoji):
    for i, split in zip(emoji.ids, emoji.splits, strict=True):
        share = int.from_bytes(hashlib.md5(i.split("/")[1].encode()).digest(), "big") % 100
        assert split == ("train" if share < 60 else "val" if share < 70 else "test")


def test_each_emoji_is_of_one_class_in_at_least_five_designs_of_two_families(emoji):
    members = defaultdict(list)
    for row, label in enumerate(emoji.labels):
        members[label].append(row)
    for label, rows in members.items():
        codes = {emoji.ids[row].split("/")[1] for row in rows}
        designs = {emoji.ids[row].split("/")[2] for row in rows}
        assert len(codes) == 1, label
        assert len(designs) == len(rows) >= 5, label
        assert len({emoji.groups[row] for row in rows}) >= 2, label
    assert set(emoji.roles) == {"both"}


def test_no_two_emoji_share_a_name(emoji):
    codes = {i.split("/")[1] for i in emoji.ids}
    assert len(set(emoji.labels)) == len(codes)


def test_designs_that_share_drawings_are_one_family(emoji):
    family = {i.split("/")[2]: g for i, g in zip(emoji.ids, emoji.groups, strict=True)}
    assert family == {design.name: design.family for design in DESIGNS}
    assert family["fluent"] == family["fluent-flat"] == family["fluent-hc"]
    assert family["emojione"] == family["emojione-mono"]
    assert len(set(family.values())) == 6


def test_a_tile_is_cut_from_its_place_on_the_sheet(emoji):
    raw = files("hetero.data").joinpath("assets", "emoji.webp").read_bytes()
    with Image.open(io.BytesIO(raw)) as sheet:
        for row in (0, 127, 128, 5000, len(emoji) - 1):
            left, top = 32 * (row % 128), 32 * (row // 128)
            tile = sheet.convert("RGB").crop((left, top, left + 32, top + 32))
            np.testing.assert_array_equal(emoji.read(row), np.asarray(tile))


def test_a_known_emoji_has_its_colour_in_every_coloured_design(emoji):
    for row, i in enumerate(emoji.ids):
        if i.startswith("emoji/1f7e9/") and not i.endswith(("-hc", "-mono")):  # green square
            red, green, blue = emoji.read(row)[16, 16].astype(int)
            assert green > red + 40, i
            assert green > blue + 40, i


def test_the_sheet_is_decoded_once_and_only_when_a_picture_is_wanted(monkeypatch):
    count = []
    decode = preprocess.decode
    monkeypatch.setattr(preprocess, "decode", lambda raw: count.append(1) or decode(raw))
    images = load("emoji")
    assert not count
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.read, range(40)))
    assert len(count) == 1


def test_a_tile_is_the_callers_own(emoji):
    emoji.read(3)[:] = 0
    assert emoji.read(3).any()


@pytest.mark.parametrize("row", [-1, 10_900])
def test_a_row_that_is_not_there_is_no_tile(emoji, row):
    with pytest.raises(IndexError, match="of 10900"):
        emoji.read(row)


def test_the_embedded_collection_takes_no_path():
    with pytest.raises(DataError, match="takes no path"):
        load("emoji:photos")


def test_the_notice_names_every_design_and_its_licence_and_none_is_share_alike():
    notice = files("hetero.data").joinpath("assets", "NOTICE").read_text()
    for design in DESIGNS:
        part = re.search(rf"^{design.name}: .*?\n\n", notice, re.MULTILINE | re.DOTALL)
        assert part
        assert f"{design.licence}, http" in part[0]
        assert f"@iconify-json/{design.package} {design.version}\n" in part[0]
    assert {design.licence for design in DESIGNS} == {"CC-BY-4.0", "MIT", "Apache-2.0"}
    assert "Permission is hereby granted" in notice
    for word in ("rendered", "downscaled", "recompressed"):
        assert word in notice


# -- how it is built ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("1f600", True),
        ("0023-20e3", True),
        ("1f1e7", True),
        ("1f3c1", True),
        ("1f1e9-1f1ea", False),
        ("1f44d-1f3fd", False),
        ("1f468-200d-1f469", False),
        ("1f3f4-e0067-e0062-e0065-e006e-e0067-e007f", False),
    ],
)
def test_skin_tones_joined_sequences_and_flags_of_regions_are_left_out(code, wanted):
    assert _build_emoji._wanted(code) is wanted


def square(colour):
    return {"body": f'<path fill="{colour}" d="M2 2h12v12H2z"/>'}


def packs(**icons):
    """A pack for each design; those of `icons` have tables of code points, the others names."""
    found = {}
    for design in DESIGNS:
        drawn, chars = icons.get(design.name.replace("-", "_"), ({}, None))
        found[design.name] = {"icons": {"icons": drawn}, "metadata": {"categories": {}}}
        found[design.name]["chars"] = chars or {}
    return found


def test_a_design_without_code_points_is_joined_by_the_names_of_others_and_of_unicode():
    all_packs = packs(
        noto=({"grinning-face": {}, "recycling-symbol": {}, "mouse": {}, "mouse-face": {}}, None),
        fxemoji=(
            {"grinningface": {}, "blackuniversalrecyclingsymbol": {}, "mouse": {}, "kiss": {}},
            None,
        ),
        emojione=({"smiling-one": {}, "mouse": {}}, None),
    )
    all_packs["noto"]["chars"] = {
        "1f600": "grinning-face",
        "267b": "recycling-symbol",
        "1f401": "mouse",
        "1f42d": "mouse-face",
        "1f48f": "kiss",
    }
    all_packs["emojione"]["icons"]["aliases"] = {
        "grinning-face": {"parent": "smiling-one"},
        "recycling-symbol": {"parent": "smiling-one", "hFlip": True},
        "mouse-face": {"parent": "mouse"},
    }
    design = {d.name: d for d in DESIGNS}
    assert _build_emoji.codes_of(design["fxemoji"], all_packs) == {
        "1f600": "grinningface",
        "267b": "blackuniversalrecyclingsymbol",
        "1f42d": "mouse",  # it draws the face under this name
    }
    # A mirrored alias is another drawing; one of a drawing with its own place says nothing.
    assert _build_emoji.codes_of(design["emojione"], all_packs) == {
        "1f600": "grinning-face",
        "1f401": "mouse",
    }
    assert _build_emoji.codes_of(design["noto"], all_packs) == all_packs["noto"]["chars"]


def test_a_drawing_is_rendered_on_white_at_its_place():
    pytest.importorskip("resvg_py", reason="resvg-py renders the drawings")
    pack = {
        "icons": {
            "icons": {"a": square("#f00"), "wide": {**square("#f00"), "width": 32, "height": 16}},
            "aliases": {"b": {"parent": "a"}},
        }
    }
    tile = _build_emoji.render(pack, "b").copy()
    assert tile.shape == (32, 32, 3)
    np.testing.assert_array_equal(tile[4:28, 4:28], np.broadcast_to([255, 0, 0], (24, 24, 3)))
    tile[4:28, 4:28] = 255
    assert tile.min() == 255
    wide = _build_emoji.render(pack, "wide").copy()
    np.testing.assert_array_equal(wide[10:22, 2:14], np.broadcast_to([255, 0, 0], (12, 12, 3)))
    wide[10:22, 2:14] = 255
    assert wide.min() == 255


def test_drawings_that_stand_for_two_emoji_and_rare_emoji_are_left_out(capsys):
    pytest.importorskip("resvg_py", reason="resvg-py renders the drawings")
    named = {"1f534": "red", "1f535": "blue", "1f7e2": "green", "26ab": "rare", "26aa": "blank"}
    all_packs = packs()
    for number, design in enumerate(DESIGNS[:6]):
        icons = {
            name: square(colour)
            for name, colour in {
                "red": "#f00",
                "blue": "#00f",
                "green": "#0f0",
                "blank": "#fff",
            }.items()
        }
        if number == 0:  # one-coloured: its circles say nothing
            icons = {name: square("#000") for name in icons}
        if number < 4:
            icons["rare"] = square("#222")
        all_packs[design.name]["icons"]["icons"] = icons
        all_packs[design.name]["chars"] = {c: n for c, n in named.items() if n in icons}
    found = _build_emoji.drawings(all_packs)
    assert sorted(found) == ["1f534", "1f535", "1f7e2"]
    for pictures in found.values():
        assert sorted(pictures) == [design.name for design in DESIGNS[1:6]]
    assert "3 left out" not in capsys.readouterr().out.splitlines()[1]


def test_a_build_without_npm_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="npm is not installed"):
        _build_emoji.fetch(DESIGNS[0], tmp_path)
