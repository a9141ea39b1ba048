"""Sources, splits and the embedded collection, on files made here."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hetero import preprocess
from hetero.data import Images, _pictures, load, open_set_split
from hetero.errors import ConfigError, DataError, MissingExtraError
from hetero.preprocess import Preprocess


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: folder / app)
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Counts what is decoded to find out whether it can be."""
    seen = []

    def spy(source):
        seen.append(source)
        return preprocess.decode(source)

    monkeypatch.setattr(_pictures, "decode", spy)
    return seen


def draw(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(path, **options)
    return rgb


def classes(root, count=8, each=4):
    for c in range(count):
        for n in range(each):
            draw(root / f"class{c}" / f"{n}.png", seed=10 * c + n)
    return root


def skipped(images):
    return {s.path: s.reason for s in images.skipped}


def by_class(images):
    rows = defaultdict(list)
    for row, label in enumerate(images.labels):
        rows[label].append(row)
    return rows


# -- naming a source ------------------------------------------------------------------------------


def test_a_bare_path_is_a_folder_and_a_bare_table_a_manifest(tmp_path, monkeypatch):
    classes(tmp_path / "photos")
    (tmp_path / "photos" / "list.csv").write_text(
        "path,label\n" + "".join(f"class{c}/{n}.png,{c}\n" for c in range(6) for n in range(2))
    )
    monkeypatch.chdir(tmp_path)
    assert load("photos").digest == load("folder:photos").digest == load("photos/").digest
    assert load("photos/list.csv").digest == load("manifest:photos/list.csv").digest
    (tmp_path / "photos").rename(tmp_path / "odd:name")
    assert load("odd:name").name == "folder:odd:name"


def test_a_name_that_is_no_source_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="cub, emoji, folder, inshop, manifest"):
        load("emojis")
    with pytest.raises(DataError, match="no such folder"):
        load("nowhere/at/all")
    with pytest.raises(DataError, match="no such file"):
        load("nowhere.csv")


def test_a_source_of_ones_own_is_named_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_pictures").mkdir()
    (tmp_path / "my_pictures" / "shop.py").write_text(
        "from hetero.data import Images\n"
        "def source(where, seed):\n"
        "    one = ((where,), ('label',), ('group',), ('train',), ('both',))\n"
        "    return Images(f'seed {seed}', *one, read=len)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    found = load("my_pictures.shop:a:b", seed=3)
    assert (found.name, found.ids) == ("seed 3", ("a:b",))
    sys.modules.pop("my_pictures.shop")


# -- a collection ---------------------------------------------------------------------------------


def collection(read, n=2):
    return Images(
        "mine",
        tuple(f"i{k}" for k in range(n)),
        ("a",) * n,
        ("g",) * n,
        ("train",) * n,
        ("both",) * n,
        read,
    )


def test_pixels_come_in_the_order_asked_for_and_are_counted():
    images = collection(lambda row: np.full((16, 16, 3), row, np.uint8), n=50)
    seen = []
    got = images.pixels([30, 7, 7], Preprocess(size_px=16), on_row=lambda: seen.append(1))
    assert got[:, 0, 0, 0].tolist() == [30, 7, 7]
    assert len(seen) == 3


@pytest.mark.parametrize(
    "odd",
    [
        np.zeros((16, 16, 3), np.float32),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((16, 16), np.uint8),
        np.zeros((0, 16, 3), np.uint8),
    ],
)
def test_a_source_that_reads_the_wrong_kind_of_array_is_told_so(odd):
    with pytest.raises(DataError, match=r"mine: 'i1' was read as .*expected uint8 \(height"):
        collection(lambda row: odd).pixels([1], Preprocess(size_px=16))


# -- splits ---------------------------------------------------------------------------------------

NAMES = st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=60)


def placed(name, seed):
    share = int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:8], 16) % 100
    return "train" if share < 60 else "val" if share < 70 else "test"


@given(NAMES, st.integers(0, 99))
def test_every_class_is_in_one_split_and_none_is_starved(names, seed):
    split = open_set_split(sorted(names) * 2, seed)
    count = Counter(split.values())
    assert set(split) == names
    assert count["train"] >= min(2, len(names))
    assert count["test"] >= min(2, len(names) - 2)
    assert count["val"] >= min(2, len(names) - 4)


@given(NAMES, st.integers(0, 99))
def test_a_split_does_not_depend_on_the_order_of_the_pictures(names, seed):
    assert open_set_split(sorted(names), seed) == open_set_split(sorted(names)[::-1] * 3, seed)


@given(NAMES, NAMES, st.integers(0, 99))
@settings(max_examples=200)
def test_a_class_keeps_its_split_when_others_are_added(names, more, seed):
    raw = {name: placed(name, seed) for name in names}
    count = Counter(raw.values())
    if count["train"] >= 2 and count["test"] >= 2 and count["val"] >= 2:
        assert open_set_split(sorted(names), seed) == raw
        grown = open_set_split(sorted(names | more), seed)
        assert {name: grown[name] for name in names} == raw


def test_the_shares_are_about_60_10_and_30_per_cent():
    count = Counter(open_set_split([f"class {n}" for n in range(5000)]).values())
    assert count["train"] == pytest.approx(3000, abs=120)
    assert count["val"] == pytest.approx(500, abs=70)
    assert count["test"] == pytest.approx(1500, abs=110)


def test_another_seed_is_another_split():
    names = [f"class {n}" for n in range(40)]
    assert open_set_split(names, 0) != open_set_split(names, 1)


@given(st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=40), st.integers(0, 9))
def test_validation_classes_come_from_train_and_leave_two_there(names, seed):
    given_split = {**dict.fromkeys(names, "train"), ("test class",): "test"}
    got = _pictures.with_validation(given_split, seed)
    count = Counter(got.values())
    assert count["test"] == 1
    assert count["train"] >= min(2, len(names))
    assert (count["val"] >= 1) == (len(names) >= 3)
    assert _pictures.with_validation(got, seed + 1) == got or len(names) < 3


# -- folders --------------------------------------------------------------------------------------


def test_a_folder_of_class_folders_is_a_collection(tmp_path):
    classes(tmp_path)
    images = load(f"folder:{tmp_path}")
    assert len(images) == 32
    assert images.ids[0] == "class0/0.png"
    assert images.groups == images.ids
    assert images.skipped == ()
    split = open_set_split(images.labels)
    for row, i in enumerate(images.ids):
        assert images.labels[row] == i.split("/")[0]
        assert images.splits[row] == split[images.labels[row]]
        c, n = int(i[5]), int(i[7])
        np.testing.assert_array_equal(images.read(row), draw(tmp_path / "x.png", seed=10 * c + n))


def test_the_seed_moves_classes_and_nothing_else(tmp_path):
    classes(tmp_path, count=20, each=2)
    one, other = load(str(tmp_path), seed=0), load(str(tmp_path), seed=1)
    assert one.ids == other.ids
    assert one.splits != other.splits


def test_folders_below_a_class_folder_belong_to_that_class(tmp_path):
    classes(tmp_path, count=4)
    draw(tmp_path / "class1" / "studio" / "left" / "a.png")
    images = load(str(tmp_path))
    assert images.labels[images.ids.index("class1/studio/left/a.png")] == "class1"


def test_queries_and_gallery_share_no_picture_and_every_class_has_both(tmp_path):
    classes(tmp_path, count=12, each=5)
    draw(tmp_path / "lonely0" / "one.png")
    draw(tmp_path / "lonely1" / "one.png")
    draw(tmp_path / "lonely2" / "one.png")
    images = load(str(tmp_path))
    for rows in by_class(images).values():
        roles = Counter(images.roles[row] for row in rows)
        if images.splits[rows[0]] == "train":
            assert set(roles) == {"both"}
        elif len(rows) == 1:
            assert set(roles) == {"gallery"}
        else:
            assert roles == {"gallery": 3, "query": 2}
    held_out = (*images.rows("val"), *images.rows("test"))
    assert any(images.labels[row].startswith("lonely") for row in held_out)


def test_files_that_are_no_pictures_are_listed_with_the_reason(tmp_path):
    classes(tmp_path)
    whole = (tmp_path / "class0" / "0.png").read_bytes()
    bad = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"a text file\n" * 50, "not a picture"),
        "cut.png": (whole[: len(whole) // 2], "cannot be decoded"),
    }
    for name, (raw, _) in bad.items():
        (tmp_path / "class0" / name).write_bytes(raw)
    (tmp_path / "class0" / ".DS_Store").write_bytes(b"x")
    (tmp_path / ".git").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    images = load(str(tmp_path))
    assert len(images) == 32
    reasons = skipped(images)
    assert len(reasons) == 6
    for name, (_, why) in bad.items():
        assert reasons[f"class0/{name}"].startswith(why)
    assert reasons["class0/.DS_Store"] == reasons[".git"] == "hidden"
    assert reasons["notes.txt"] == "not in a class folder"


def test_pictures_of_awkward_kinds_are_used(tmp_path):
    classes(tmp_path)
    rgb = Image.fromarray(draw(tmp_path / "class0" / "0.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.convert("CMYK").save(tmp_path / "class0" / "cmyk.jpg")
    rgb.convert("P").save(tmp_path / "class0" / "palette.gif")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(tmp_path / "class0" / "sixteen.png")
    rgb.save(tmp_path / "class0" / "turned.jpg", exif=exif)
    rgb.save(tmp_path / "class0" / "wrong suffix.txt", "PNG")
    images = load(str(tmp_path))
    assert images.skipped == ()
    shape = {i: images.read(row).shape for row, i in enumerate(images.ids)}
    assert shape["class0/turned.jpg"] == (8, 6, 3)
    assert shape["class0/cmyk.jpg"] == shape["class0/wrong suffix.txt"] == (6, 8, 3)


def test_names_that_cannot_be_ids_are_skipped(tmp_path):
    classes(tmp_path)
    raw = (tmp_path / "class0" / "0.png").read_bytes()
    (tmp_path / "class0" / "two\nlines.png").write_bytes(raw)
    draw(tmp_path / "class\r9" / "0.png")
    try:
        with open(os.fsencode(tmp_path / "class0") + b"/\xff.png", "wb") as file:
            file.write(raw)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    images = load(str(tmp_path))
    assert len(images) == 32
    line = "the name has a line break or another control character"
    assert skipped(images) == {
        "class0/two\\nlines.png": line,
        "class\\r9": line,
        "class0/\\udcff.png": "the name is not UTF-8",
    }


def test_names_in_any_script_are_ids(tmp_path):
    classes(tmp_path)
    draw(tmp_path / "Größe 日本" / "ключ 🔑.png")
    draw(tmp_path / "Größe 日本" / "b.png")
    assert "Größe 日本/ключ 🔑.png" in load(str(tmp_path)).ids


def test_links_that_run_in_circles_end_and_count_nothing_twice(tmp_path):
    root = classes(tmp_path / "root", count=5, each=2)
    (root / "class0" / "up").symlink_to(root)
    (root / "class0" / "self").symlink_to(root / "class0")
    (root / "class1" / "other").symlink_to(root / "class2")
    (root / "class2" / "other").symlink_to(root / "class1")
    (root / "class3" / "a").symlink_to("b")
    (root / "class3" / "b").symlink_to("a")
    (root / "class3" / "gone.png").symlink_to("nowhere.png")
    (root / "again").symlink_to(root / "class4")
    images = load(str(root))
    assert len(images) == 10
    assert set(images.labels) == {f"class{n}" for n in range(5)}
    reasons = skipped(images)
    assert len(reasons) == 8
    for path in ("class0/up", "class0/self", "class1/other", "class2/other", "again"):
        assert reasons[path] == "a link to a folder that is read elsewhere"


def test_links_to_pictures_and_to_folders_elsewhere_are_followed(tmp_path):
    draw(tmp_path / "store" / "a.png")
    draw(tmp_path / "more" / "b.png")
    root = classes(tmp_path / "root", count=4)
    (root / "class0" / "linked.png").symlink_to(tmp_path / "store" / "a.png")
    (root / "class9").symlink_to(tmp_path / "more")
    assert {"class0/linked.png", "class9/b.png"} <= set(load(str(root)).ids)


def test_what_is_not_a_regular_file_is_not_opened(tmp_path):
    classes(tmp_path)
    os.mkfifo(tmp_path / "class0" / "pipe.png")
    assert skipped(load(str(tmp_path))) == {"class0/pipe.png": "not a regular file"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read_is_skipped(tmp_path):
    classes(tmp_path)
    (tmp_path / "class0" / "0.png").chmod(0)
    (tmp_path / "class1").chmod(0)
    reasons = skipped(load(str(tmp_path)))
    (tmp_path / "class1").chmod(0o700)
    assert set(reasons) == {"class0/0.png", "class1"}
    assert all("Permission denied" in why for why in reasons.values())


def make_nothing(root):
    root.mkdir()


def make_loose(root):
    draw(root / "a.png")
    draw(root / "b.png")


def make_hollow(root):
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()


def make_broken(root):
    (root / "a").mkdir(parents=True)
    (root / "a" / "x.jpg").write_bytes(b"")


def make_one_class(root):
    draw(root / "cats" / "a.png")
    draw(root / "cats" / "b.png")


def make_singles(root):
    for name in "abcdef":
        draw(root / name / "one.png")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda root: None, "no such folder"),
        (lambda root: root.write_text("x"), "is a file, not a folder"),
        (make_nothing, "empty, no class folders"),
        (make_loose, "2 files but no class folders; put the pictures of each class in"),
        (make_hollow, "no usable picture"),
        (make_broken, "no usable picture; 1 files were skipped, first a/x.jpg: the file is empty"),
        (make_one_class, "one class, 'cats'"),
        (make_singles, "each of the 6 classes has one picture"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(tmp_path, make, says):
    root = tmp_path / "photos"
    make(root)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load(f"folder:{root}")
    assert str(caught.value).startswith(f"folder:{root}: ")
    assert "\n" not in str(caught.value)


def test_a_folder_source_without_a_path_is_refused():
    with pytest.raises(DataError, match="no path"):
        load("folder:")


def test_a_picture_that_vanished_since_is_named(tmp_path):
    images = load(str(classes(tmp_path)))
    (tmp_path / "class0" / "0.png").unlink()
    with pytest.raises(DataError, match=r"class0/0\.png: cannot be read"):
        images.read(0)


# -- folders that bring their split ---------------------------------------------------------------


def split_folders(root, val="val"):
    for n in range(9):
        for k in range(2):
            draw(root / "train" / f"t{n}" / f"{k}.png", seed=n)
    for name in (val, "test") if val else ("test",):
        for n in range(2):
            for k in range(3):
                draw(root / name / f"{name}{n}" / f"{k}.png", seed=n)
    return root


@pytest.mark.parametrize("val", ["val", "validation"])
def test_train_val_and_test_folders_are_the_split(tmp_path, val):
    images = load(str(split_folders(tmp_path, val)))
    assert images.classes("train") == tuple(f"t{n}" for n in range(9))
    assert images.classes("val") == (f"{val}0", f"{val}1")
    assert images.classes("test") == ("test0", "test1")
    assert images.ids[0] == "test/test0/0.png"
    assert {images.roles[row] for row in images.rows("test")} == {"query", "gallery"}


def test_without_a_val_folder_some_classes_of_train_take_its_place(tmp_path):
    images = load(str(split_folders(tmp_path, val="")))
    assert images.classes("test") == ("test0", "test1")
    assert set(images.classes("val")) < {f"t{n}" for n in range(9)}
    assert 1 <= len(images.classes("val")) <= 7
    assert load(str(tmp_path)).splits == images.splits


def test_a_class_in_two_split_folders_is_refused_with_what_to_do(tmp_path):
    draw(split_folders(tmp_path) / "test" / "t3" / "0.png")
    told = r"1 classes, first 't3', are in both .*/train; for a classifier .*, classes:"
    with pytest.raises(DataError, match=told) as caught:
        load(str(tmp_path))
    assert "open-set protocol" in str(caught.value)


def test_a_split_without_its_test_folder_is_refused(tmp_path):
    draw(tmp_path / "train" / "a" / "0.png")
    with pytest.raises(DataError, match="but no test/"):
        load(str(tmp_path))


def test_a_split_folder_without_class_folders_is_refused(tmp_path):
    draw(tmp_path / "train" / "a" / "0.png")
    draw(tmp_path / "test" / "0.png")
    with pytest.raises(DataError, match="test/ has no class folders"):
        load(str(tmp_path))


def test_a_class_may_be_called_train_where_others_are_not(tmp_path):
    classes(tmp_path)
    draw(tmp_path / "train" / "0.png")
    assert "train" in load(str(tmp_path)).labels


# -- what is remembered ---------------------------------------------------------------------------


def test_a_second_run_opens_only_what_is_new_or_changed(tmp_path, decoded):
    classes(tmp_path, count=5, each=2)
    (tmp_path / "class0" / "bad.png").write_bytes(b"x")
    first = load(str(tmp_path))
    assert len(decoded) == 11
    decoded.clear()
    assert load(str(tmp_path)).digest == first.digest
    assert [path.name for path in decoded] == ["bad.png"]  # what was refused is tried again
    decoded.clear()
    changed = tmp_path / "class1" / "0.png"
    status = changed.stat()
    changed.write_bytes(b"no longer a picture")
    os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    draw(tmp_path / "class1" / "new.png")
    images = load(str(tmp_path))
    assert sorted(path.name for path in decoded) == ["0.png", "bad.png", "new.png"]
    assert "class1/0.png" in skipped(images)
    assert "class1/new.png" in images.ids


def test_an_interrupted_check_goes_on_where_it_was(tmp_path, monkeypatch, decoded):
    classes(tmp_path, count=5, each=4)
    spy = _pictures.decode

    def stops(source):
        if len(decoded) >= 7:
            raise KeyboardInterrupt
        return spy(source)

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(_pictures, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        load(str(tmp_path))
    decoded.clear()
    monkeypatch.setattr(_pictures, "decode", spy)
    load(str(tmp_path))
    assert len(decoded) == 20 - 7


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"{}", b'{"schema": "hetero.usable/1", "pillow": 3, "usable": {}}', b"\xff"],
)
def test_a_damaged_cache_is_made_anew(tmp_path, cache, decoded, garbage):
    classes(tmp_path, count=5, each=2)
    first = load(str(tmp_path))
    (store,) = (cache / "hetero" / "usable").iterdir()
    store.write_bytes(garbage)
    decoded.clear()
    assert load(str(tmp_path)).digest == first.digest
    assert len(decoded) == 10
    assert len(json.loads(store.read_bytes())["usable"]) == 10


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path, cache):
    (cache / "hetero").write_text("a file where a folder has to be")
    with pytest.warns(UserWarning, match="checked again next time"):
        images = load(str(classes(tmp_path)))
    assert len(images) == 32


# -- tables ---------------------------------------------------------------------------------------


def table(folder, text):
    classes(folder, count=8, each=4)
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return f"manifest:{folder / 'list.csv'}"


def lines(columns="path,label", per_row=lambda c, n: f"class{c}/{n}.png,name {c}", count=8):
    return "\n".join([columns, *(per_row(c, n) for c in range(count) for n in range(4))]) + "\n"


def test_a_table_gives_paths_their_labels(tmp_path):
    images = load(table(tmp_path, lines()))
    assert len(images) == 32
    assert images.labels[images.ids.index("class3/1.png")] == "name 3"
    assert images.splits == tuple(open_set_split(images.labels)[label] for label in images.labels)
    assert images.groups == images.ids
    assert {images.roles[row] for row in images.rows("test")} == {"query", "gallery"}
    np.testing.assert_array_equal(images.read(0), draw(tmp_path / "x.png", seed=0))


def test_the_order_of_rows_does_not_matter(tmp_path):
    text = lines()
    head, *rows = text.splitlines()
    first = load(table(tmp_path, text)).digest
    assert load(table(tmp_path, "\n".join([head, *rows[::-1]]))).digest == first


def test_a_table_may_say_everything(tmp_path):
    def row(c, n):
        split = "train" if c < 4 else "validation" if c < 6 else "test"
        role = "" if c < 4 else ("query" if n == 0 else "gallery")
        return f'{split},"class{c}/{n}.png",{role},camera {n},"name, {c}"'

    images = load(table(tmp_path, "\ufeff" + lines("split,path,role,group,label", row)))
    assert [len(images.classes(s)) for s in ("train", "val", "test")] == [4, 2, 2]
    at = images.ids.index("class7/0.png")
    assert (images.labels[at], images.groups[at]) == ("name, 7", "camera 0")
    assert (images.roles[at], images.splits[at]) == ("query", "test")
    assert {images.roles[row] for row in images.rows("train")} == {"both"}


def test_with_groups_and_no_roles_every_picture_is_both(tmp_path):
    text = lines("path,label,group", lambda c, n: f"class{c}/{n}.png,{c},{'' if n else 'cam'}")
    images = load(table(tmp_path, text))
    assert set(images.roles) == {"both"}
    assert images.groups[images.ids.index("class2/1.png")] == "class2/1.png"
    assert images.groups[images.ids.index("class2/0.png")] == "cam"


def test_without_val_rows_some_train_classes_take_their_place(tmp_path):
    text = lines(
        "path,label,split", lambda c, n: f"class{c}/{n}.png,{c},{'train' if c < 5 else 'test'}"
    )
    images = load(table(tmp_path, text))
    assert images.classes("test") == ("5", "6", "7")
    assert images.classes("val")


def test_files_of_a_table_that_are_missing_or_broken_are_skipped(tmp_path):
    spec = table(tmp_path, lines() + "gone.png,name 0\nclass0,name 0\nlist.csv,name 0\n")
    images = load(spec)
    assert len(images) == 32
    assert skipped(images) == {
        "gone.png": "cannot be read (No such file or directory)",
        "class0": "not a regular file",
        "list.csv": "not a picture that can be read",
    }


def test_absolute_paths_and_paths_above_the_table_are_read(tmp_path):
    classes(tmp_path / "photos", count=5, each=2)
    root = tmp_path / "photos"
    rows = [f"{root}/class{c}/0.png,{c}\n../photos/class{c}/1.png,{c}\n" for c in range(5)]
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("path,label\n" + "".join(rows))
    images = load(str(tmp_path / "lists" / "a.csv"))
    assert len(images) == 10
    assert images.read(0).shape == (6, 8, 3)


GOOD = "class0/0.png,a\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column path and no column label"),
        ("path,label\n", "the table has no rows"),
        ("path\nclass0/0.png\n", "no column label"),
        ("path,label,colour\n", "unknown column 'colour'"),
        ("path;label\n", "unknown column 'path;label'"),
        ("path,label,label\n", "column 'label' is there more than once"),
        ("path,label\n" + GOOD + "\nclass0/1.png\n", "line 4: 1 fields where the first line names"),
        ("path,label\nclass0/0.png,a,b\n", "line 2: 3 fields where the first line names 2"),
        ("path,label\n,a\n", "line 2: path is empty"),
        ("path,label\n" + GOOD + "class0/1.png,\n", "line 3: label is empty"),
        ("path,label\n" + GOOD + GOOD, "line 3: 'class0/0.png' is listed already, line 2"),
        ("path,label\n" + GOOD + "class1/../class0/0.png,b\n", "is listed already, line 2"),
        ('path,label\n"class0/\n0.png",a\n', "line 3: path: the name has a line break"),
        ('path,label\n"class0/0.png,a\n', "not CSV"),
        ("path,label,split\nclass0/0.png,a,dev\n", "line 2: split is 'dev'; expected train, val"),
        ("path,label,split\nclass0/0.png,a,\n", "line 2: split is ''"),
        ("path,label,role\nclass0/0.png,a,probe\n", "line 2: role is 'probe'; expected query"),
        ("path,label,role\nclass0/0.png,a,\n", "line 2: role is ''"),
        (
            "path,label,split\nclass0/0.png,a,train\nclass0/1.png,a,test\n",
            "line 3: class 'a' is in test here and in train in line 2",
        ),
        ("path,label\ngone.png,a\n", "no usable picture; 1 files were skipped, first gone.png"),
        ("path,label\nclass0/0.png,a\nclass0/1.png,a\n", "one class, 'a'"),
        ("path,label\nclass0/0.png,a\nclass0/1.png,b\n", "each of the 2 classes has one picture"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_at_its_line(tmp_path, text, says):
    spec = table(tmp_path, text)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load(spec)
    assert str(caught.value).startswith(spec)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_utf8_or_not_there_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("path,label\ncafé.png,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(str(tmp_path / "a.csv"))
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load(f"manifest:{tmp_path / 'b.csv'}")
    with pytest.raises(DataError, match=r"expected a \.csv or \.parquet"):
        load("manifest:list.txt")


def parquet(file, **columns):
    arrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), file)
    return f"manifest:{file}"


def test_a_parquet_table_says_the_same_as_its_csv(tmp_path):
    wanted = load(table(tmp_path, lines(per_row=lambda c, n: f"class{c}/{n}.png,{c}")))
    paths = [f"class{c}/{n}.png" for c in range(8) for n in range(4)]
    spec = parquet(tmp_path / "list.parquet", path=paths, label=[int(p[5]) for p in paths])
    assert load(spec).digest == wanted.digest


def test_mistakes_in_parquet_are_refused_at_their_row(tmp_path):
    spec = parquet(tmp_path / "a.parquet", path=["x.png", "y.png"], label=["a", None])
    with pytest.raises(DataError, match="row 2: label is empty"):
        load(spec)
    spec = parquet(tmp_path / "b.parquet", path=["x.png"], label=["a"], fold=[1])
    with pytest.raises(DataError, match="unknown column 'fold'"):
        load(spec)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read") as caught:
        load(str(tmp_path / "c.parquet"))
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hetero\[parquet\]'"):
        load(str(tmp_path / "a.parquet"))
