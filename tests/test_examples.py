"""The files of examples/ run as they stand, on a toy collection and two toy models."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the examples embed and train; needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="the examples run an ONNX file; needs the extra 'onnx'")

from PIL import Image
from toys import GALLERY, PREPROCESS, QUERY, picture, quiet

from hetero.bundle import Bundle
from hetero.data import load
from hetero.fit import Settings
from hetero.stages.exporting import export_all
from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("[!_]*.py"))

#: What an example has to print, besides ending without an error.
SAYS = {
    "broken_preprocessing.py": r"cosine, median 0\.(.*\n)+right before, wrong now: \d+ of",
    "compare_exporters.py": r"cosine, worst: (1\.0000|0\.999)",
    "embed_and_index.py": r"refused: .*cannot be",
    "gate_export.py": r"verdict: \w+\n(.*\n)*cosine_worst onnx fp32: (1|0\.99)",
    "own_method.py": r"trained by mine.slack into \w+",
    "search_photos.py": r"the first answer is right for \d+% of \d+ queries",
    "upgrade.py": r"gallery2 in the index of gallery: Recall@1 \d+%",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first tutorial leaves behind: photos/, runs/gallery, runs/query with a file."""
    root = tmp_path_factory.mktemp("examples")
    for split, classes in {"train": range(8), "val": range(8, 11), "test": range(11, 16)}.items():
        for number in classes:
            into = root / "photos" / split / f"class{number:02}"
            into.mkdir(parents=True)
            for which in range(6):
                Image.fromarray(picture(number, which)).save(into / f"{which}.png")
    images = load(str(root / "photos"))
    short = Settings(epochs=12, batch=16, lr=1e-2, keep_going=True)
    gallery = train_gallery(
        images,
        GalleryRecipe(GALLERY, dim=12),
        PREPROCESS,
        short,
        root / "runs/gallery",
        reporter=quiet(),
    )
    query = train_query(
        gallery, images, QueryRecipe(QUERY), short, root / "runs/query", reporter=quiet()
    )
    export_all(
        query,
        ["onnx"],
        ["fp32"],
        images=None,
        bake=True,
        batch=None,
        resume=False,
        reporter=quiet(),
    )
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_says_what_it_is_about(
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "embed_and_index.py":
        pytest.importorskip("faiss", reason="an exact index is faiss's; needs the extra 'index'")
    before = {p.name for p in folder.iterdir()}
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name])
    try:
        with warnings.catch_warnings():
            # A user's interpreter goes on after a warning of a library; so may an example.
            warnings.simplefilter("ignore")
            runpy.run_path(str(FOLDER / name), run_name="__main__")
    finally:
        for module in ("_places", "mine", "mine.slack"):
            sys.modules.pop(module, None)
    assert re.search(SAYS[name], capsys.readouterr().out)
    assert {p.name for p in folder.iterdir()} == before, "results go below runs/"


def test_each_example_is_listed_with_its_story_and_there_are_eight_at_most() -> None:
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(listed) == EXAMPLES == sorted(SAYS)
    assert len(EXAMPLES) <= 8


def test_the_bundles_of_the_examples_are_in_one_space_and_the_file_agrees(folder: Path) -> None:
    # Not for the examples' sake: what they print is only worth reading if this holds.
    from hetero.export import FileEmbedder
    from hetero.models import TorchEmbedder

    gallery, query = (Bundle.load(folder / "runs" / n) for n in ("gallery", "query"))
    assert gallery.space == query.space
    pixels = np.stack([picture(12, which) for which in range(4)])
    ids = [str(i) for i in range(4)]
    with FileEmbedder(query, query.artifact("onnx", "fp32")) as file:
        ran = file.embed(ids, pixels)
    np.testing.assert_allclose(
        ran.vectors, TorchEmbedder(query).embed(ids, pixels).vectors, atol=1e-5
    )
