"""The tutorials run as they stand, each in the folder that the first one leaves behind."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from documentation import ROOT, blocks, run

pytest.importorskip("torch", reason="the tutorials train; needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="the tutorials export; needs the extra 'onnx'")

FIRST = "docs/tutorials/own-images.md"
OTHERS = sorted(
    name
    for path in (ROOT / "docs/tutorials").glob("*.md")
    if (name := path.relative_to(ROOT).as_posix()) != FIRST and blocks(path.read_text())
)

pytestmark = pytest.mark.slow


def follow(name: str, folder: Path) -> None:
    """Run a page's blocks one after another."""
    for line, kind, code in blocks((ROOT / name).read_text()):
        done = run(kind, code, folder)
        assert done.returncode == 0, f"{name}:{line}\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder after the first tutorial."""
    folder = tmp_path_factory.mktemp("tutorial")
    follow(FIRST, folder)
    return folder


@pytest.fixture
def folder(first: Path, tmp_path: Path) -> Path:
    """A copy of it, so that no tutorial needs another one but the first."""
    copy = tmp_path / "tutorial"
    shutil.copytree(first, copy)
    return copy


def test_the_first_tutorial_leaves_what_the_others_and_the_examples_begin_with(first: Path) -> None:
    classes = [len(list(c.iterdir())) for c in (first / "photos").iterdir()]
    assert len(classes) == 30
    assert 4 <= min(classes) <= max(classes) == 6
    for wanted in ("gallery/manifest.json", "query/model.fp32.onnx", "check/report.html"):
        assert (first / "runs" / wanted).is_file(), wanted


@pytest.mark.parametrize("name", OTHERS)
def test_a_tutorial_runs_in_the_folder_of_the_first(name: str, folder: Path) -> None:
    follow(name, folder)


def test_the_tutorial_of_timm_runs_with_random_weights(
    timm: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No weights can be fetched here; in this process, where `timm` is made to load.
    from hetero import cli
    from hetero.bundle import Bundle

    text = (ROOT / "docs/tutorials/timm.md").read_text()
    block = re.search(
        r"<!-- not run: .*with random ones -->\n```bash\n(.*?)^```", text, re.S | re.M
    )
    assert block
    assert "pretrained=1" in block[1]
    monkeypatch.chdir(folder)
    for line in block[1].replace(",pretrained=1", "").splitlines():
        program, *arguments = shlex.split(line)
        assert program == "hetero"
        cli.app(arguments, standalone_mode=False)
    gallery, query = Bundle.load(folder / "runs/timm"), Bundle.load(folder / "runs/timm-query")
    assert gallery.manifest.model.backbone.startswith("timm:resnet10t")
    assert query.space == gallery.space
