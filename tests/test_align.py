"""Two models trained apart, made compatible by a map; and what the map leaves behind in the net."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="aligning needs the extra 'train'")

from torch import nn  # noqa: E402
from toys import GALLERY, PREPROCESS, QUERY, SIZE, quiet, toy_images  # noqa: E402

from hetero import cli, maps, models  # noqa: E402
from hetero.augment import Augment  # noqa: E402
from hetero.bundle import Bundle, FittedMap  # noqa: E402
from hetero.data import Images  # noqa: E402
from hetero.errors import ConfigError, SpaceMismatchError  # noqa: E402
from hetero.fit import Settings  # noqa: E402
from hetero.metrics import per_query  # noqa: E402
from hetero.models._mapped import MappedNet, folded  # noqa: E402
from hetero.stages import aligning  # noqa: E402
from hetero.stages.aligning import Aligned, AlignOptions  # noqa: E402
from hetero.train import GalleryRecipe, train_gallery  # noqa: E402

#: 90 pictures to learn from; 60 of 6 classes to score, enough to tell luck from agreement.
PICTURES = toy_images(train=9, val=6, test=1, per_class=10)
QUICK = {"hidden": 16, "epochs": 4}


def train_alone(root: Path, backbone: str, dim: int, seed: int) -> Bundle:
    """A model trained by classification, in a space of its own."""
    mild = Augment(scale=0.1, rotate_deg=0, stretch=0, colour=0.1, grey=0, erase=0)
    settings = Settings(20, batch=16, lr=1e-2, seed=seed, keep_going=True, augment=mild)
    recipe = GalleryRecipe(backbone, dim)
    return train_gallery(PICTURES, recipe, PREPROCESS, settings, root, reporter=quiet())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """gallery/ of 12 numbers, and same/ and short/, trained apart, of 12 and 8."""
    root = tmp_path_factory.mktemp("align")
    train_alone(root / "gallery", GALLERY, 12, seed=0)
    train_alone(root / "same", QUERY, 12, seed=1)
    train_alone(root / "short", QUERY, 8, seed=2)
    return root


def align(
    home: Path, query: str, output: Path, images: Images | None = None, **options: Any
) -> Aligned:
    return aligning.align(
        Bundle.load(home / query),
        Bundle.load(home / "gallery"),
        images or PICTURES,
        output,
        AlignOptions(**options),
        quiet(),
    )


def noisy(net: models.EmbeddingNet) -> models.EmbeddingNet:
    """The net with batch statistics and offsets that are not those it was born with."""
    generator = torch.Generator().manual_seed(0)
    norm = net.projection[1]
    with torch.no_grad():
        # A fresh backbone says little; as much as the offsets, please.
        net.projection[0].weight.mul_(1000)
        for name, low in (
            ("weight", 0.5),
            ("bias", -1),
            ("running_mean", -1),
            ("running_var", 0.1),
        ):
            part = getattr(norm, name)
            part.copy_(low + 2 * torch.rand(part.shape, generator=generator))
    return net.eval()


# -- the algebra ----------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [0, 5])
@pytest.mark.parametrize(("query_dim", "gallery_dim"), [(8, 8), (8, 16), (16, 8)])
def test_a_folded_matrix_is_the_matrix_behind_the_embedding(
    query_dim: int, gallery_dim: int, inner: int
) -> None:
    net = noisy(models.build(QUERY, query_dim, SIZE, inner=inner))
    turn = torch.randn(gallery_dim, query_dim, generator=torch.Generator().manual_seed(1)).double()
    images = torch.randn(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    made = folded(net, turn)
    with torch.no_grad():
        wanted = nn.functional.normalize(net(images) @ turn.T.float(), dim=1)
        torch.testing.assert_close(made(images), wanted, atol=1e-5, rtol=0)
        # In float64 nothing is left but the rounding of the folded weights.
        exact = nn.functional.normalize(net.double()(images.double()) @ turn.T, dim=1)
        torch.testing.assert_close(made.double()(images.double()), exact, atol=1e-7, rtol=0)
    net.float(), made.float()
    # The same architecture as a net of that length, and the net it was made of is untouched.
    plain = models.build(QUERY, gallery_dim, SIZE, inner=inner)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in plain.state_dict().items()
    }
    assert models.count(made, SIZE) == models.count(plain, SIZE)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_a_map_behind_the_embedding_sees_unit_rows_and_is_counted() -> None:
    net = noisy(models.build(QUERY, 8, SIZE))
    made = MappedNet(net, FittedMap(name="affine", dim=8), 12).eval()
    images = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = nn.functional.normalize(made.map(net(images)), dim=1)
        torch.testing.assert_close(made(images), wanted)
    plain, more = models.count(net, SIZE), models.count(made, SIZE)
    assert (more[0] - plain[0], more[1] - plain[1]) == (8 * 12 + 12, 8 * 12)


# -- the story ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "name", "settings", "folds"),
    [
        ("same", "procrustes", {}, True),
        ("short", "procrustes", {}, True),
        ("same", "affine", {"offset": False}, True),
        ("short", "affine", {"rank": 4}, False),
        ("same", "residual_mlp", QUICK, False),
        ("short", "residual_mlp", QUICK, False),
    ],
)
def test_models_trained_apart_search_together_afterwards(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    query: str,
    name: str,
    settings: dict[str, Any],
    folds: bool,
) -> None:
    fitted: list[nn.Module] = []
    fit = maps.fit

    def keeping(*given: Any) -> nn.Module:
        fitted.append(fit(*given))
        return fitted[-1]

    monkeypatch.setattr(maps, "fit", keeping)
    done = align(home, query, tmp_path / "out", map=name, settings=settings, views=2)
    source, gallery = Bundle.load(home / query), Bundle.load(home / "gallery")

    # It belongs to the gallery model's space, and says how it came there.
    bundle = Bundle.load(tmp_path / "out")
    manifest = bundle.manifest
    assert bundle.space == gallery.space
    assert (bundle.role, manifest.parent) == ("query", gallery.digest)
    assert manifest.recipe["method"] == f"align:{name}"
    assert manifest.recipe["source"] == source.digest
    assert manifest.recipe["train.epochs"] == 20
    assert (done.folded, manifest.model.map is None) == (folds, folds)
    assert done.pairs == manifest.recipe["pairs"] == 3 * 90

    # What is loaded is the model as it was, and then the map.
    net = models.load(bundle)
    probe = bundle.probe()
    plain = models.embed_pixels(models.load(source), PREPROCESS, probe.pixels)
    found = models.embed_pixels(net, PREPROCESS, probe.pixels)
    np.testing.assert_allclose(found, maps.apply(fitted[0], plain), atol=1e-5)
    np.testing.assert_allclose(found, probe.vectors, atol=1e-6)
    assert (manifest.model.parameters, manifest.model.macs) == models.count(net, SIZE)
    if folds and query == "same":
        assert manifest.model.macs == source.manifest.model.macs

    # It finds things in the gallery model's index.
    assert done.after.map.value > 2 * chance(done)
    if query == "same":
        assert done.before is not None
        assert done.after.map.value > done.before.map.value
    else:
        assert done.before is None


def chance(done: Aligned) -> float:
    """The mean mAP of validation pictures in random order."""
    from hetero.evaluate import task
    from hetero.space import Embeddings

    job, rng = task(PICTURES, "val"), np.random.default_rng(0)
    found = []
    for _ in range(40):
        a, b = (
            Embeddings.normalised(done.bundle.space, job.ids, rng.normal(size=(60, 12)), "noise")
            for _ in range(2)
        )
        found.append(per_query("average_precision", job.rank(a, b)).mean())
    return float(np.mean(found))


def test_a_model_turned_onto_itself_stays_as_it_is(home: Path, tmp_path: Path) -> None:
    # It would not, if the two sides saw different views of a picture.
    done = align(home, "gallery", tmp_path / "out", views=3)
    probe, own = done.bundle.probe(), Bundle.load(home / "gallery")
    wanted = models.embed_pixels(models.load(own), PREPROCESS, probe.pixels)
    np.testing.assert_allclose(probe.vectors, wanted, atol=1e-5)


def test_a_turned_model_is_as_good_on_both_sides_as_it_was(home: Path, tmp_path: Path) -> None:
    from hetero.evaluate import scores, task
    from hetero.stages.embedding import embed

    done = align(home, "same", tmp_path / "out")
    assert done.both_sides is not None
    job, own = task(PICTURES, "val"), Bundle.load(home / "same")
    pixels = PICTURES.pixels(job.rows, PREPROCESS)
    alone = embed(own, job.ids, pixels, quiet())
    wanted = scores(job.rank(alone, alone))
    assert done.both_sides.map.value == pytest.approx(wanted.map.value, abs=1e-6)


def test_the_best_on_validation_is_taken_of_all(home: Path, tmp_path: Path) -> None:
    each = {n: align(home, "same", tmp_path / n, map=n) for n in maps.names()}
    auto = align(home, "same", tmp_path / "auto", map="auto")
    best = max(done.after.map.value for done in each.values())
    assert auto.after.map.value == best
    assert each[auto.map].after.map.value == best
    assert auto.bundle.manifest.recipe["method"] == f"align:{auto.map}"


def test_equal_input_gives_an_equal_bundle_and_views_follow_the_seed(
    home: Path, tmp_path: Path
) -> None:
    one, two, other = (
        align(home, "same", tmp_path / str(n), seed=seed).bundle.digest
        for n, seed in enumerate((0, 0, 1))
    )
    assert one == two != other


def test_only_training_pictures_are_learnt_from_and_test_pictures_are_never_read(
    home: Path, tmp_path: Path
) -> None:
    images, read = PICTURES, []

    def reading(row: int) -> Any:
        read.append(images.splits[row])
        return images.read(row)

    done = align(home, "same", tmp_path / "a", replace(images, read=reading), views=0)
    assert (read.count("train"), read.count("val"), read.count("test")) == (90, 60, 0)
    assert done.pairs == 90
    # Other validation pictures change scores, and no number of the map.
    changed = toy_images(train=9, val=6, test=1, per_class=10, seed=5)
    mixed = replace(
        images,
        read=lambda row: (images if images.splits[row] == "train" else changed).read(row),
    )
    again = align(home, "same", tmp_path / "b", mixed, views=0)
    assert again.bundle.digest == done.bundle.digest
    assert again.after != done.after


def test_no_label_is_used_to_learn(home: Path, tmp_path: Path) -> None:
    images = PICTURES
    labels = tuple(
        x if s != "train" else f"class{row % 9:02}"
        for row, (x, s) in enumerate(zip(images.labels, images.splits, strict=True))
    )
    one, two = (
        align(home, "same", tmp_path / n, i).bundle.digest
        for n, i in (("a", images), ("b", replace(images, labels=labels)))
    )
    assert one == two


def test_pictures_without_labels_do(home: Path, tmp_path: Path) -> None:
    bare = replace(PICTURES, labels=PICTURES.ids, labelled=False)
    done = align(home, "same", tmp_path / "bare", bare)
    assert done.bundle.digest == align(home, "same", tmp_path / "labelled").bundle.digest
    # A query then looks for its own picture among the gallery model's, and nothing else can be
    # asked.
    assert done.before is not None
    assert done.after.map.value > 2 * done.before.map.value
    assert done.both_sides is done.paragon is None


def test_classes_that_either_model_was_trained_on_stay_barred(home: Path, tmp_path: Path) -> None:
    images = PICTURES
    renamed = replace(images, labels=tuple(f"x{x}" for x in images.labels))
    done = align(home, "same", tmp_path / "out", renamed)
    barred = set(done.bundle.train_classes())
    assert barred == set(images.classes("train")) | set(renamed.classes("train"))


# -- refused --------------------------------------------------------------------------------------


def test_models_that_see_pictures_differently_are_refused(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "same", tmp_path / "wider")
    was = Bundle.load(home / "same").manifest
    wider = replace(PREPROCESS, size_px=24).to_json()
    Bundle(tmp_path / "wider", was.model_copy(update={"preprocess": wider}))._write()
    with pytest.raises(SpaceMismatchError, match=r"preprocessing differs .*24 and 16 px"):
        align(home, str(tmp_path / "wider"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["same", "gallery"])
def test_neither_model_is_overwritten(home: Path, name: str) -> None:
    before = Bundle.load(home / name).digest
    with pytest.raises(ConfigError, match="choose another --output"):
        align(home, "same", home / "gallery" / ".." / name)
    assert Bundle.load(home / name).digest == before


def test_a_folded_model_can_be_aligned_again_and_one_with_a_map_behind_it_cannot(
    home: Path, tmp_path: Path
) -> None:
    align(home, "same", tmp_path / "folded")
    align(home, str(tmp_path / "folded"), tmp_path / "twice")
    align(home, "same", tmp_path / "mapped", map="affine")
    with pytest.raises(ConfigError, match=r"has a map \(affine\) behind it already"):
        align(home, str(tmp_path / "mapped"), tmp_path / "thrice")


def test_settings_need_one_map(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="settings belong to one map"):
        align(home, "same", tmp_path / "out", map="auto", settings={"rank": "3"})


# -- exported and called by name ------------------------------------------------------------------


def test_a_map_behind_the_embedding_exports_and_agrees_with_pytorch(
    home: Path, tmp_path: Path
) -> None:
    # One that folds leaves nothing new to export.
    pytest.importorskip("onnxruntime", reason="the extra 'onnx' is not installed")
    from hetero import export

    done = align(home, "short", tmp_path / "out", map="residual_mlp", settings=QUICK)
    (made,) = export.export_each(done.bundle, "onnx", ["fp32"])
    (file,) = made.exported()
    assert float(file.facts["cosine_worst"]) > 0.99999


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    from hetero.stages import embedding

    monkeypatch.setattr(embedding, "load_images", lambda *_: PICTURES)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        out, err = capsys.readouterr()
        return int(done.value.code or 0), out, err

    return call


def test_the_command_prints_before_after_and_paragon(
    run: Callable[..., tuple[int, str, str]], home: Path, tmp_path: Path
) -> None:
    words = ("align", home / "same", home / "gallery", "-q", "-o")
    code, out, _ = run(*words, tmp_path / "a")
    assert code == 0
    assert "fitted to 180 pairs" in out
    assert "folded into the model at no cost" in out
    code, out, _ = run(
        *words, tmp_path / "b", "--map", "affine", "--set", "rank=4", "--views", 0, "--json"
    )
    value = json.loads(out)
    assert code == 0
    assert (value["map"], value["folded"], value["pairs"]) == ("affine", False, 90)
    assert set(value["after"]) == {"recall_at_1", "map"}
    assert value["before"]["map"] < value["after"]["map"] <= 1
    assert Bundle.load(tmp_path / "b").manifest.recipe["map.rank"] == 4


def test_the_command_says_that_lengths_differ_and_names_a_wrong_map(
    run: Callable[..., tuple[int, str, str]], home: Path, tmp_path: Path
) -> None:
    code, out, _ = run("align", home / "short", home / "gallery", "-q", "-o", tmp_path / "a")
    assert code == 0
    assert "the vectors differ in length" in out
    code, _, err = run("align", home / "short", home / "gallery", "--map", "turn", "-q")
    assert code == 2
    assert "there are affine, procrustes, residual_mlp" in err
    code, _, err = run("align", home / "gallery", tmp_path / "a", "-q")
    assert code == 2
    assert "where a gallery bundle is needed" in err
