from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from toys import GALLERY, PREPROCESS, QUERY, quiet, toy_images

from hetero.bundle import Bundle
from hetero.errors import ConfigError
from hetero.fit import Settings
from hetero.train import GalleryRecipe, QueryRecipe, train_gallery, train_query

PAGE = Path(__file__).parents[1] / "docs/extending.md"
SHORT = Settings(epochs=2, batch=16, keep_going=True)


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path with the page's method in it, word for word."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "pull.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    root = tmp_path_factory.mktemp("gallery")
    recipe = GalleryRecipe(GALLERY, dim=12)
    return train_gallery(toy_images(), recipe, PREPROCESS, SHORT, root, reporter=quiet())


@pytest.mark.parametrize(
    ("method", "settings", "recorded"),
    [
        ("mine.pull", {"centre": "1"}, {"method.centre": 1.0, "method.weight": 10.0}),
        (
            "mine.pull+csd",
            {"csd.neighbours": "8"},
            {"method.mine.pull.centre": 0.5, "method.csd.neighbours": 8},
        ),
    ],
)
def test_the_pages_method_trains_by_its_dotted_path(
    users_folder: Path,
    gallery: Bundle,
    method: str,
    settings: dict[str, str],
    recorded: dict[str, float],
) -> None:
    made = train_query(
        gallery,
        toy_images(),
        QueryRecipe(QUERY, method, settings),
        SHORT,
        users_folder / "query",
        reporter=quiet(),
    )
    assert made.space == gallery.space
    assert made.manifest.recipe["method"] == method
    for name, value in recorded.items():
        assert made.manifest.recipe[name] == value
    assert set(made.tensors("weights")) == set(
        train_query(
            gallery,
            toy_images(),
            QueryRecipe(QUERY),
            SHORT,
            users_folder / "plain",
            reporter=quiet(),
        ).tensors("weights")
    )


def test_the_pages_method_refuses_pictures_without_labels(
    users_folder: Path, gallery: Bundle
) -> None:
    bare = replace(toy_images(), labelled=False)
    with pytest.raises(ConfigError, match=r"mine\.pull needs labels"):
        train_query(
            gallery,
            bare,
            QueryRecipe(QUERY, "mine.pull"),
            SHORT,
            users_folder / "query",
            reporter=quiet(),
        )


def test_the_pages_commands_name_options_that_exist() -> None:
    from typer.testing import CliRunner

    from hetero.cli import app

    said = CliRunner().invoke(app, ["train", "query", "--help"], env={"COLUMNS": "200"}).output
    for option in set(
        re.findall(
            r"(?<=\s)(--?[a-z]+)", "\n".join(re.findall(r"^hetero .*$", PAGE.read_text(), re.M))
        )
    ):
        assert option in said
