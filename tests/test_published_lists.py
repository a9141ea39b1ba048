"""Published data sets, on small folders of their official layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hetero.data import load
from hetero.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda app: folder / app)


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def cub(tmp_path: Path) -> Path:
    root = tmp_path / "CUB_200_2011"
    # Classes on both sides of the border between training and test.
    names = [f"{n:03}.Bird_{n}/Bird_{k}.png" for n in (1, 2, 3, 100, 101, 200) for k in range(3)]
    for seed, name in enumerate(names):
        picture(root / "images" / name, seed)
    rows = list(enumerate(names, 1))
    (root / "images.txt").write_text("".join(f"{n} {name}\n" for n, name in rows))
    (root / "image_class_labels.txt").write_text(
        "".join(f"{n} {int(name[:3])}\n" for n, name in rows)
    )
    return root


@pytest.fixture
def inshop(tmp_path: Path) -> Path:
    root = tmp_path / "inshop"
    lines = []
    for item in range(8):
        for shot in range(4):
            path = f"img/WOMEN/Dresses/id_{item:08}/{shot:02}_front.png"
            status = "train" if item < 5 else ("query", "gallery")[shot % 2]
            lines.append(f"{path} id_{item:08} {status}")
            picture(root / "Img" / path, 10 * item + shot)
    (root / "Eval").mkdir()
    (root / "Eval" / "list_eval_partition.txt").write_text(
        f"{len(lines)}\nimage_name item_id evaluation_status\n" + "\n".join(lines) + "\n"
    )
    return root


def test_cub_trains_on_the_first_hundred_classes_and_tests_on_the_last(cub: Path) -> None:
    images = load(f"cub:{cub}")
    assert set(images.classes("train")) | set(images.classes("val")) == {"1", "2", "3", "100"}
    assert set(images.classes("test")) == {"101", "200"}
    assert images.classes("val")


def test_every_cub_test_picture_asks_and_answers_but_never_itself(cub: Path) -> None:
    images = load(f"cub:{cub}")
    rows = images.rows("test")
    assert {images.roles[r] for r in rows} == {"both"}
    assert len({images.groups[r] for r in rows}) == len(rows)


def test_in_shop_keeps_its_official_queries_and_gallery(inshop: Path) -> None:
    images = load(f"inshop:{inshop}")
    test = images.rows("test")
    assert {images.labels[r] for r in test} == {f"id_{n:08}" for n in (5, 6, 7)}
    for row in test:
        shot = int(images.ids[row].rpartition("/")[2][:2])
        assert images.roles[row] == ("query", "gallery")[shot % 2]
    assert len(images.rows("train")) + len(images.rows("val")) == 20


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda root: (root / "images.txt").unlink(), "cannot read images.txt"),
        (lambda root: (root / "images.txt").write_text("1\n"), "line 1: 1 columns, expected 2"),
        (
            lambda root: (root / "image_class_labels.txt").write_text("1 1\n"),
            "no class for image 10",
        ),
        (
            lambda root: (root / "image_class_labels.txt").write_text(
                "".join(f"{n} bird\n" for n in range(1, 19))
            ),
            "class 'bird' is not a number",
        ),
    ],
)
def test_a_folder_that_is_not_cub_is_refused(cub: Path, spoil: object, match: str) -> None:
    spoil(cub)  # type: ignore[operator]
    with pytest.raises(DataError, match=match):
        load(f"cub:{cub}")


def test_an_unknown_status_of_in_shop_is_refused(inshop: Path) -> None:
    path = inshop / "Eval" / "list_eval_partition.txt"
    path.write_text(path.read_text().replace(" query", " asker"))
    with pytest.raises(DataError, match="status 'asker'; there are train, query, gallery"):
        load(f"inshop:{inshop}")


def test_a_missing_data_set_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"list_eval_partition\.txt"):
        load(f"inshop:{tmp_path}/nothing")
