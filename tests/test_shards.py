"""Pictures in tar files made here; the same pictures as files are the second opinion."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hetero import preprocess
from hetero.data import Images, _tar, load, open_set_split
from hetero.data.shards import expanded
from hetero.errors import DataError
from hetero.preprocess import Preprocess


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: folder / app)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts what is decoded to find out whether it can be."""
    seen: list[int] = []

    def spy(source: Any) -> Any:
        seen.append(len(source))
        return preprocess.decode(source)

    monkeypatch.setattr(_tar, "decode", spy)
    return seen


def png(seed: int) -> bytes:
    rgb = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, "PNG")
    return out.getvalue()


def told(**what: Any) -> bytes:
    return json.dumps(what).encode()


def pack(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, raw in members:
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def samples(count: int = 8, each: int = 4) -> list[tuple[str, bytes]]:
    """Pairs of a picture and its class, each class in a row."""
    return [
        member
        for c in range(count)
        for n in range(each)
        for member in (
            (f"class{c}/{n}.png", png(10 * c + n)),
            (f"class{c}/{n}.cls", f"class{c}\n".encode()),
        )
    ]


def packed(root: Path, per_shard: int = 10) -> str:
    """Thirty-two pictures in shards of so many samples."""
    members = samples()
    for at in range(0, len(members), 2 * per_shard):
        some = members[at : at + 2 * per_shard]
        pack(root / f"train-{at // (2 * per_shard):03}.tar", some)
    return f"{root}/train-{{000..{(len(members) // 2 - 1) // per_shard:03}}}.tar"


def skipped(images: Images) -> dict[str, str]:
    return {s.path: s.reason for s in images.skipped}


# -- the same as a folder of the same pictures ----------------------------------------------------


def test_shards_say_the_same_as_the_table_of_the_same_pictures(tmp_path: Path) -> None:
    table = ["path,label"]
    for name, raw in samples():
        if name.endswith(".png"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(raw)
            table.append(f"{name},{name.split('/')[0]}")
    (tmp_path / "list.csv").write_text("\n".join(table) + "\n")
    files, images = load(str(tmp_path / "list.csv")), load(packed(tmp_path / "shards"))
    assert images.ids == tuple(i.removesuffix(".png") for i in files.ids)
    assert (images.labels, images.splits) == (files.labels, files.splits)
    assert images.skipped == ()
    assert {images.roles[row] for row in images.rows("test")} == {"query", "gallery"}
    rows, size = [31, 0, 17, 17, 8], Preprocess(size_px=8)
    np.testing.assert_array_equal(images.pixels(rows, size), files.pixels(rows, size))


def test_how_samples_are_packed_into_shards_changes_nothing(tmp_path: Path) -> None:
    one, other = load(packed(tmp_path / "a", 10)), load(packed(tmp_path / "b", 3))
    assert one.digest == other.digest
    apart = samples()
    together = pack(tmp_path / "c.tar", apart[::2] + apart[1::2])  # all pictures, then all classes
    assert load(str(together)).digest == one.digest
    np.testing.assert_array_equal(load(str(together)).read(5), one.read(5))


def test_a_folder_of_shards_and_one_shard_are_named_by_their_path(tmp_path: Path) -> None:
    pattern = packed(tmp_path / "shards")
    digest = load(pattern).digest
    assert load(str(tmp_path / "shards")).digest == digest
    assert load(f"shards:{tmp_path / 'shards'}").digest == digest
    one = load(str(pack(tmp_path / "all.tar", samples())))
    assert one.digest == digest
    assert one.name == f"shards:{tmp_path}/all.tar"
    # With class folders beside it a tar file is only a file.
    (tmp_path / "shards" / "cats").mkdir()
    with pytest.raises(DataError, match="no usable picture"):
        load(str(tmp_path / "shards"))


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{x}.tar", ["{x}.tar"]),
        ("{5..3}", []),
    ],
)
def test_a_pattern_counts_with_its_digits_and_lists(pattern: str, wanted: list[str]) -> None:
    assert list(expanded(pattern)) == wanted


# -- what a sample says ---------------------------------------------------------------------------


def test_a_sample_may_say_everything(tmp_path: Path) -> None:
    def row(c: int, n: int) -> dict[str, Any]:
        split = "train" if c < 4 else "validation" if c < 6 else "test"
        role = "" if c < 4 else ("query" if n == 0 else "gallery")
        more = {"caption": "not ours", "width": 8}
        return {"label": f"name, {c}", "split": split, "role": role, "group": n, **more}

    members = [
        member
        for c in range(8)
        for n in range(3)
        for member in ((f"{c}{n}.json", told(**row(c, n))), (f"{c}{n}.jpg", png(c + n)))
    ]
    images = load(str(pack(tmp_path / "a.tar", members)))
    assert [len(images.classes(s)) for s in ("train", "val", "test")] == [4, 2, 2]
    at = images.ids.index("70")
    assert (images.labels[at], images.groups[at]) == ("name, 7", "0")
    assert (images.roles[at], images.splits[at]) == ("query", "test")
    assert {images.roles[row] for row in images.rows("train")} == {"both"}


def test_the_label_of_json_goes_before_that_of_cls(tmp_path: Path) -> None:
    more = [(f"class0/{n}.json", told(label="cats")) for n in range(4)]
    images = load(str(pack(tmp_path / "a.tar", samples() + more)))
    assert images.labels[images.ids.index("class0/0")] == "cats"
    assert images.labels[images.ids.index("class1/0")] == "class1"


def test_class_numbers_are_labels_and_split_by_hash(tmp_path: Path) -> None:
    members = [
        member
        for n in range(40)
        for member in ((f"{n:06}.jpg", png(n)), (f"{n:06}.cls", str(n % 10).encode()))
    ]
    images = load(str(pack(tmp_path / "a.tar", members)))
    assert set(images.labels) == {str(n) for n in range(10)}
    assert images.splits == tuple(open_set_split(images.labels)[label] for label in images.labels)


def test_without_any_label_the_pictures_are_unlabelled(tmp_path: Path) -> None:
    members = [m for n in range(40) for m in ((f"{n}.jpg", png(n)), (f"{n}.txt", b"a caption"))]
    images = load(str(pack(tmp_path / "a.tar", members)))
    assert not images.labelled
    assert images.labels == images.ids
    assert [len(images.rows(s)) for s in ("train", "val", "test")] == [36, 4, 0]
    # The same as the source of unlabelled files does.
    for n in range(40):
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{n}").write_bytes(png(n))
    files = load(f"unlabelled:{tmp_path / 'files'}")
    assert (images.splits, images.roles) == (files.splits, files.roles)


# -- what is passed over --------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return os.mkdir, ("exploded",)


def test_members_that_are_no_pictures_are_listed_and_none_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    whole = png(0)
    more = [
        ("class0/0.pyd", bomb),
        ("class0/9.pickle", bomb),
        ("class0/bad.jpg", b"a text file\n" * 50),
        ("class0/bad.cls", b"class0"),
        ("class0/cut.png", whole[: len(whole) // 2]),
        ("class0/empty.png", b""),
        ("class0/1.jpg", png(3)),
        ("class0/0.seg.png", png(4)),
        ("class0/._0.png", b"x"),
        ("class0/two\nlines.png", whole),
        ("README", b"x"),
        ("class0/none.png", png(5)),
    ]
    path = pack(tmp_path / "a.tar", samples() + more)
    with tarfile.open(path, "a") as archive:
        for name, kind in (
            ("class0/link.png", tarfile.SYMTYPE),
            ("class0/hard.png", tarfile.LNKTYPE),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        folder = tarfile.TarInfo("class0")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    images = load(str(path))
    assert len(images) == 32
    reasons = skipped(images)
    never = "pickled, which is never opened"
    assert reasons == {
        "class0/0.pyd": never,
        "class0/9.pickle": never,
        "class0/bad": "not a picture that can be read",
        "class0/cut": reasons["class0/cut"],
        "class0/empty": "the file is empty",
        "class0/1.jpg": "the sample has a picture already",
        "class0/._0.png": "hidden",
        "class0/two\\nlines.png": "the name has a line break or another control character",
        "README": "its name has no extension",
        "class0/none": "no label: no .cls, no label in its .json",
        "class0/link.png": "not a regular file",
        "class0/hard.png": "not a regular file",
    }
    assert "cannot be decoded" in reasons["class0/cut"]
    assert not (tmp_path / "exploded").exists()


# -- what is refused ------------------------------------------------------------------------------


def replaced(name: str, raw: bytes) -> list[tuple[str, bytes]]:
    return [*samples(), ("class0/9.png", png(1)), (name, raw)]


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ([], "no usable picture"),
        ([("a.txt", b"x")], "no usable picture"),
        ([("a.png", png(0))], "1 pictures; training needs at least four"),
        (samples(count=1), "one class, 'class0'"),
        (samples(each=1), "each of the 8 classes has one picture"),
        (replaced("class0/9.json", b"{"), "class0/9.json: not JSON"),
        (replaced("class0/9.json", b"[" * 100_000), "class0/9.json: not JSON"),
        (replaced("class0/9.json", b"[1]"), "class0/9.json: expected an object, got list"),
        (replaced("class0/9.json", told(label=[1])), "label is [1]; expected text or a whole"),
        (replaced("class0/9.json", told(label=True)), "label is True; expected text or a whole"),
        (replaced("class0/9.json", told(label="a", role="probe")), "role is 'probe'; expected que"),
        (replaced("class0/9.json", told(label="a", split="dev")), "split is 'dev'; expected train"),
        (replaced("class0/9.json", told(label="a", split="test")), "has no split, and others have"),
        (replaced("class0/9.json", told(label="a\nb")), "the name has a line break"),
        (replaced("class0/9.cls", b"\xff"), "class0/9.cls: not UTF-8"),
        (replaced("class0/9.cls", b"x" * (1 << 21)), "2097152 bytes; more than a description"),
    ],
)
def test_shards_that_cannot_be_used_are_refused_in_one_line(
    tmp_path: Path, members: list[tuple[str, bytes]], says: str
) -> None:
    pack(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=re.escape(says)) as caught:
        load(f"shards:{tmp_path}/a.tar")
    assert str(caught.value).startswith(f"shards:{tmp_path}/a.tar: ")
    assert "\n" not in str(caught.value)


def test_a_class_in_two_splits_is_refused(tmp_path: Path) -> None:
    members = [
        member
        for n, split in enumerate(["train"] * 4 + ["test"])
        for member in ((f"{n}.png", png(n)), (f"{n}.json", told(label=f"{n % 4}", split=split)))
    ]
    pack(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"class '0' is in test \('4'\) and in train \('0'\)"):
        load(str(tmp_path / "a.tar"))


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        pack(tmp_path / f"{name}.tar", samples())
    with pytest.raises(DataError, match=r"'class0/0' is in a\.tar and in b\.tar"):
        load(str(tmp_path))


def squeeze(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def overwrite(path: Path) -> None:
    path.write_bytes(b"not a tar file at all" * 100)


@pytest.mark.parametrize("damage", [squeeze, shorten, overwrite])
def test_a_shard_that_is_cut_off_or_compressed_is_no_smaller_collection(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    pattern = packed(tmp_path)
    damage(tmp_path / "train-001.tar")
    with pytest.raises(DataError, match=r"train-001\.tar is cut off, damaged or compressed"):
        load(pattern)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "no path"),
        ("nowhere/a.tar", "nowhere/a.tar: no such file"),
        ("nowhere/{00..10}.tar", "nowhere/00.tar: no such file, the first of 11 that is missing"),
        ("{0..9}{0..999999999}.tar", "the pattern stands for more than 100000 files"),
        ("{5..3}.tar", "the pattern stands for no file"),
        ("pipe:cat a.tar", "no such file"),
        (".", "no .tar file in this folder"),
    ],
)
def test_shards_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=re.escape(says)):
        load(f"shards:{where}")


# -- what is remembered ---------------------------------------------------------------------------


def test_a_second_run_decodes_nothing_and_a_changed_shard_is_gone_through_again(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = packed(tmp_path, per_shard=8)
    first = load(pattern)
    assert len(decoded) == 32
    decoded.clear()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # not even the members are listed again
        again = load(pattern)
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.read(3), first.read(3))
    assert decoded == []
    some = samples()[:16]
    pack(
        tmp_path / "train-000.tar",
        [*some, ("class0/new.png", png(99)), ("class0/new.cls", b"class0")],
    )
    assert "class0/new" in load(pattern).ids
    assert len(decoded) == 9


def test_an_interrupted_run_goes_on_with_the_shard_it_was_at(
    tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, spy = packed(tmp_path, per_shard=8), _tar.decode

    def stops(source: Any) -> Any:
        if len(decoded) >= 20:
            raise KeyboardInterrupt
        return spy(source)

    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr(_tar, "decode", stops)
    with pytest.raises(KeyboardInterrupt):
        load(pattern)
    decoded.clear()
    monkeypatch.setattr(_tar, "decode", spy)
    load(pattern)
    assert len(decoded) == 16


@pytest.mark.parametrize(
    "garbage",
    [b"", b"{", b"[]", b"{}", b'{"schema": "hetero.shard/1", "pillow": 3, "facts": []}', b"\xff"],
)
def test_a_damaged_cache_is_made_anew(
    tmp_path: Path, cache: Path, decoded: list[int], garbage: bytes
) -> None:
    path = pack(tmp_path / "a.tar", samples())
    first = load(str(path))
    (store,) = (cache / "hetero" / "shards").iterdir()
    store.write_bytes(garbage)
    decoded.clear()
    assert load(str(path)).digest == first.digest
    assert len(decoded) == 32
    assert len(json.loads(store.read_bytes())["samples"]) == 32


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(tmp_path: Path, cache: Path) -> None:
    (cache / "hetero").write_text("a file where a folder has to be")
    with pytest.warns(UserWarning, match="gone through again next time"):
        images = load(str(pack(tmp_path / "a.tar", samples())))
    assert len(images) == 32


def test_a_shard_that_changed_or_vanished_since_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", samples())
    images = load(str(path))
    shutil.copy(path, tmp_path / "kept.tar")
    pack(path, samples()[::-1])
    with pytest.raises(DataError, match=r"a\.tar: changed while it was in use"):
        images.read(0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.tar: class0/0: cannot be read"):
        images.read(0)
