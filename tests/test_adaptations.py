"""Adaptations: files, arithmetic, training from a bundle, and model files equal to the JVP."""

from __future__ import annotations

import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import PREPROCESS, SIZE, Listener, picture, quiet, toy_images
from typer.testing import CliRunner

from hetero import lqf, models
from hetero.bundle import Bundle
from hetero.errors import BundleError, ConfigError, DataError, ExportError
from hetero.fit import Settings
from hetero.lqf import Adaptation
from hetero.lqf.probe import ridge
from hetero.space import Space
from hetero.stages import adapting, inspecting

SPEC = "leaky:resnet:width=4"
CLASSES = ("class00", "class01", "class02")


@functools.cache
def bundle(spec: str = SPEC) -> Bundle:
    """A query bundle whose batch statistics are not those of a fresh one."""
    torch.manual_seed(0)
    net = models.build(spec, 6, SIZE).train()
    for _ in range(3):
        net(torch.randn(16, 3, SIZE, SIZE))
    pixels = np.stack([picture(n, 0) for n in range(6)])
    root = Path(tempfile.mkdtemp(prefix="hetero-lqf-"))
    return models.as_it_is(root, net.eval(), spec, Space("toy", "0" * 64, 6), PREPROCESS, pixels)


@functools.cache
def an_adaptation(seed: int = 0) -> Adaptation:
    """A change drawn at random; those of all seeds are of one base."""
    made = bundle()
    generator = torch.Generator().manual_seed(100)
    features = models.load(made).projection[0].in_features
    head = {
        "weight": torch.randn(3, features, generator=generator) * 0.3,
        "bias": torch.randn(3, generator=generator),
    }
    net = lqf.base(made, head)
    generator.manual_seed(seed)
    change = {
        f"{name}.{leaf}": 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)
        for leaf, parameter in module.named_parameters(recurse=False)
    }
    return Adaptation(made.digest, lqf.digest_of(net), CLASSES, head, change, {"seed": seed})


def some() -> torch.Tensor:
    pixels = np.stack([picture(n, 1) for n in range(5)])
    return torch.from_numpy(PREPROCESS.tensor(pixels))


def outputs(adaptation: Adaptation) -> torch.Tensor:
    return lqf.linearised(bundle(), adaptation)(some()).detach()


# -- files ----------------------------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved_and_equal_ones_have_equal_bytes(tmp_path: Path) -> None:
    made = an_adaptation()
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    made.save(first)
    found = Adaptation.load(first)
    found.save(second)
    assert first.read_bytes() == second.read_bytes()
    assert (found.bundle, found.base, found.classes) == (made.bundle, made.base, made.classes)
    assert found.recipe == {"seed": 0}
    assert all(torch.equal(found.change[k], v) for k, v in made.change.items())
    assert all(torch.equal(found.head[k], v) for k, v in made.head.items())


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(BundleError, match="cannot be read as an adaptation"):
        Adaptation.load(path)
    an_adaptation().save(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BundleError, match="cannot be read as an adaptation"):
        Adaptation.load(path)
    with pytest.raises(BundleError, match=r"schema None.*hetero lqf train"):
        Adaptation.load(bundle().path(bundle().artifact("weights")))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"classes": ("a",)}, "at least two classes"),
        ({"classes": ("a", "a", "b")}, "each once"),
        ({"classes": ("a", "b")}, "is for 3 classes, there are 2"),
        ({"change": {}}, "0 changes"),
        ({"change": {"x": torch.tensor([float("nan")])}}, "not finite"),
        ({"change": {"x": torch.zeros(1, dtype=torch.float64)}}, "float32 expected"),
    ],
)
def test_what_does_not_hold_together_is_refused(changed: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        replace(an_adaptation(), **changed)  # type: ignore[arg-type]


def test_inspect_says_what_an_adaptation_is(tmp_path: Path) -> None:
    an_adaptation().save(tmp_path / "a.safetensors")
    found = inspecting.inspect(tmp_path / "a.safetensors")
    assert found["classes"] == list(CLASSES)
    assert found["base"] == an_adaptation().base
    assert inspecting.ADAPTATION == lqf.adaptation.SCHEMA


# -- arithmetic -----------------------------------------------------------------------------------


def test_outputs_of_a_sum_are_the_sum_of_what_each_part_adds() -> None:
    a, b = an_adaptation(1), an_adaptation(2)
    plain = outputs(lqf.combine([(a, 0.0)]))
    both = outputs(lqf.combine([(a, 1.0), (b, -0.5)]))
    torch.testing.assert_close(
        both - plain, (outputs(a) - plain) - 0.5 * (outputs(b) - plain), rtol=1e-4, atol=1e-5
    )
    assert (outputs(a) - plain).abs().max() > 0.1


def test_what_is_added_and_taken_away_leaves_no_trace() -> None:
    a, b = an_adaptation(1), an_adaptation(2)
    found = lqf.combine([(a, 1.0), (b, 1.0), (b, -1.0)])
    assert all(torch.equal(found.change[name], tensor) for name, tensor in a.change.items())


def test_a_sum_that_was_saved_gives_a_part_back_but_for_one_rounding() -> None:
    a, b = an_adaptation(1), an_adaptation(2)
    back = lqf.combine([(lqf.combine([(a, 1.0), (b, 1.0)]), 1.0), (b, -1.0)])
    for name, tensor in a.change.items():
        room = torch.finfo(torch.float32).eps * (tensor + b.change[name]).abs() + 1e-12
        assert bool(((back.change[name] - tensor).abs() <= room).all()), name


def test_adaptations_of_two_bases_are_not_added() -> None:
    other = replace(an_adaptation(), base="0" * 64)
    with pytest.raises(ConfigError, match=r"cannot be added.*--base"):
        lqf.combine([(an_adaptation(), 1.0), (other, 1.0)])
    with pytest.raises(ConfigError, match="finite"):
        lqf.combine([(an_adaptation(), float("inf"))])
    with pytest.raises(ConfigError, match="no adaptation"):
        lqf.combine([])


def test_an_adaptation_of_another_bundle_or_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="belongs to the bundle"):
        lqf.linearised(bundle(), replace(an_adaptation(), bundle="0" * 64))
    made = an_adaptation()
    turned = {**made.head, "bias": made.head["bias"] + 1}
    with pytest.raises(ConfigError, match="is of a base"):
        lqf.linearised(bundle(), replace(made, head=turned))


# -- the probe and the stage ----------------------------------------------------------------------


def test_the_probe_is_scikit_learns_ridge() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 6, generator=generator) * torch.arange(1, 7)
    labels = torch.randint(3, (40,), generator=generator)
    head = ridge(rows, labels, 3, alpha=15.0, penalty=0.5)
    scaled = ((rows - rows.mean(0)) / rows.std(0, correction=0)).numpy()
    theirs = linear_model.Ridge(alpha=0.5 * 40).fit(scaled, 15.0 * np.eye(3)[labels.numpy()])
    found = rows @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(found.numpy(), theirs.predict(scaled), rtol=1e-4, atol=1e-4)


def test_each_class_holds_a_fifth_of_its_groups_out() -> None:
    images = toy_images(per_class=10)
    seen, held = adapting.split(images, ["class00", "class05"])
    assert not set(seen) & set(held)
    assert (len(seen), len(held)) == (16, 4)
    assert {images.labels[r] for r in held} == {"class00", "class05"}
    assert adapting.split(images, ["class00"])[1] == [
        r for r in held if images.labels[r] == "class00"
    ]
    with pytest.raises(DataError, match=r"'class00' has 1 pictures.*at least 2"):
        adapting.split(toy_images(per_class=1), ["class00"])


def test_pictures_of_a_group_are_on_one_side() -> None:
    images = toy_images(per_class=10)
    images = replace(images, groups=tuple(f"camera {i % 5}" for i in range(len(images))))
    seen, held = adapting.split(images, ["class00"])
    assert {images.groups[r] for r in held}.isdisjoint(images.groups[r] for r in seen)


def test_classes_are_named_or_all() -> None:
    images = toy_images(2, 1, 1)
    assert adapting.chosen(images, "") == ("class00", "class01", "class02", "class03")
    assert adapting.chosen(images, "class02, class00") == ("class00", "class02")
    with pytest.raises(ConfigError, match="no class 'nothing'; there are class00"):
        adapting.chosen(images, "class00,nothing")


TRAIN = lqf.Settings(epochs=3, batch=16, pull=1e-2)


@functools.cache
def trained() -> tuple[adapting.Adapted, Path]:
    path = Path(tempfile.mkdtemp(prefix="hetero-lqf-")) / "a.safetensors"
    images = toy_images(per_class=10)
    return adapting.train(bundle(), images, CLASSES, TRAIN, path, reporter=quiet()), path


def test_training_lowers_the_objective_and_writes_what_it_scored() -> None:
    done, path = trained()
    assert done.objective[-1] < done.objective[0]
    assert (done.pictures, done.held_out, done.silent) == (24, 6, 0)
    right, count = adapting.score(bundle(), Adaptation.load(path), toy_images(per_class=10))
    assert (right, count) == (done.accuracy, done.held_out)
    assert done.accuracy > 1.5 / 3


def test_a_second_adaptation_of_the_same_base_can_be_added(tmp_path: Path) -> None:
    _, path = trained()
    first = Adaptation.load(path)
    images = toy_images(per_class=10, seed=1)
    target = tmp_path / "b.safetensors"
    adapting.train(bundle(), images, CLASSES[:2], TRAIN, target, base=first, reporter=quiet())
    second = Adaptation.load(target)
    assert (second.base, second.classes) == (first.base, CLASSES)
    parts = [(path, 1.0), (target, 1.0)]
    total = adapting.combine(bundle(), parts, tmp_path / "c.safetensors")
    assert total.recipe["1.trained_classes"] == 2
    with pytest.raises(ConfigError, match="class 'class05' is none of the base's 3"):
        adapting.train(bundle(), images, ["class05"], TRAIN, target, base=first, reporter=quiet())


def test_a_backbone_with_relus_is_told_of(tmp_path: Path) -> None:
    listener = Listener()
    adapting.train(
        bundle("resnet:width=4"),
        toy_images(per_class=4),
        CLASSES,
        replace(TRAIN, epochs=1),
        tmp_path / "a.safetensors",
        reporter=listener,
    )
    assert any("9 activations of resnet:width=4 are not leaky" in x for x in listener.lines)


# -- leaky backbones ------------------------------------------------------------------------------


def test_a_leaky_backbone_is_the_same_but_for_the_slope() -> None:
    plain, leaky = (
        models.backbone("resnet:width=4"),
        models.backbone("leaky:slope=0.3,resnet:width=4"),
    )
    leaky.load_state_dict(plain.state_dict())
    slopes = {m.negative_slope for m in leaky.modules() if isinstance(m, torch.nn.LeakyReLU)}
    assert slopes == {0.3}
    assert not any(isinstance(m, torch.nn.ReLU) for m in leaky.modules())


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("leaky:", "write leaky:SPEC"),
        ("leaky:slope=2,resnet", "between 0 and 1"),
        ("leaky:slope=x,resnet", "between 0 and 1"),
        ("leaky:mobilenet:act=hswish", r"no module of nn\.ReLU"),
    ],
)
def test_a_leaky_backbone_that_would_not_be_one_is_refused(spec: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        models.backbone(spec)


def test_the_name_of_a_leaky_backbone_forgets_pretrained_weights() -> None:
    assert models.architecture("leaky:timm:resnet18,pretrained=1") == "leaky:timm:resnet18"
    spec = "leaky:slope=0.1,timm:resnet18,pretrained=1"
    assert models.architecture(spec) == "leaky:slope=0.1,timm:resnet18"


def test_a_trained_bundle_turned_leaky_stays_in_its_space(tmp_path: Path) -> None:
    from hetero.train import GalleryRecipe, train_gallery

    images, recipe = toy_images(), GalleryRecipe("resnet:width=4", 8)
    gallery = train_gallery(
        images,
        recipe,
        PREPROCESS,
        # Long enough that batch norms have settled: else any further step moves the vectors.
        Settings(epochs=30, batch=16, lr=1e-2, keep_going=True),
        tmp_path / "gallery",
        reporter=quiet(),
    )
    how = Settings(epochs=10, batch=16, lr=1e-4, keep_going=True)
    made = adapting.leaky(gallery, images, how, tmp_path / "leaky", reporter=quiet())
    assert made.manifest.model.backbone == "leaky:resnet:width=4"
    assert made.space == gallery.space
    assert made.manifest.parent == gallery.digest
    probe = gallery.probe()
    turned = models.build("leaky:resnet:width=4", 8, SIZE).eval()
    turned.load_state_dict(models.load(gallery).state_dict())
    swapped, after = (
        (models.embed_pixels(net, PREPROCESS, probe.pixels) * probe.vectors).sum(1).mean()
        for net in (turned, models.load(made))
    )
    assert after > swapped
    assert after > 0.9  # seeds and processors: 0.94 to 0.99, from 0.80 to 0.97
    with pytest.raises(ConfigError, match="a gallery bundle without a map is needed"):
        adapting.leaky(made, images, how, tmp_path / "again", reporter=quiet())


# -- model files ----------------------------------------------------------------------------------


def files(formats: str, tmp_path: Path, **more: object) -> tuple[Path, dict[str, object]]:
    from hetero.export import _linear

    adaptation = tmp_path / "a.safetensors"
    an_adaptation(3).save(adaptation)
    item = _linear.export(bundle(), adaptation, formats, tmp_path / "out", **more)  # type: ignore[arg-type]
    return tmp_path / "out" / item.path, dict(item.facts)


@pytest.mark.parametrize(
    ("format", "library"),
    [("onnx", "onnxscript"), ("tflite", "litert_torch"), ("coreml", "coremltools")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_file_equals_the_jvp_on_pictures_it_was_not_held_to(
    format: str, library: str, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    from hetero import export

    path, facts = files(format, tmp_path, bake=False)
    assert facts["max_abs_diff"] < 1e-4
    made = an_adaptation(3)
    net = lqf.base(bundle(), made.head)
    # PyTorch's own forward mode, called here and not by the package.
    names = list(made.change)
    exact = net.double()
    value, change = torch.func.jvp(
        lambda w: torch.func.functional_call(exact, w, (some().double(),)),
        ({n: exact.get_parameter(n).detach() for n in names},),
        ({n: made.change[n].double() for n in names},),
    )
    with export.load(path, format) as runner:
        got = runner(some().numpy())
    assert change.abs().max() > 0.1
    assert np.abs(got - (value + change).detach().numpy()).max() < 1e-4
    texts = export.module(format).metadata(path)
    assert texts["hetero.schema"] == "hetero.linear/1"
    assert json.loads(texts["hetero.classes"]) == list(CLASSES)
    assert texts["hetero.base_sha256"] == made.base
    assert inspecting.inspect(path)["hetero.adaptation_sha256"]


def test_a_file_takes_pixels_with_the_preprocessing_inside(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    from hetero import export

    path, _ = files("onnx", tmp_path)
    pixels = np.stack([picture(n, 1) for n in range(5)])
    with export.load(path, "onnx") as runner:
        got = runner(pixels)
    right = outputs(an_adaptation(3)).numpy()
    np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-4)


def test_a_file_that_is_off_is_refused(tmp_path: Path) -> None:
    from hetero.export import _parity
    from hetero.export._job import ConvertJob

    adaptation = tmp_path / "a.safetensors"
    an_adaptation(3).save(adaptation)
    job = ConvertJob(
        bundle=bundle().root,
        output=tmp_path / "x.onnx",
        format="onnx",
        precision="fp32",
        bake=True,
        batch=0,
        size_px=SIZE,
        dim=3,
        metadata={},
        adaptation=adaptation,
    )
    probe = bundle().probe()
    images = torch.from_numpy(PREPROCESS.tensor(probe.pixels))
    right = lqf.linearised(bundle(), an_adaptation(3))(images).detach().numpy()
    assert _parity._outputs(job, adaptation, probe, right)["max_abs_diff"] < 1e-4
    wrong = right.copy()
    wrong[2, 1] += 3e-4
    with pytest.raises(ExportError, match=r"Jacobian-vector product.*picture 2"):
        _parity._outputs(job, adaptation, probe, wrong)
    wrong[2, 1] = np.nan
    with pytest.raises(ExportError, match="differ by nan"):
        _parity._outputs(job, adaptation, probe, wrong)
    with pytest.raises(ExportError, match="shape"):
        _parity._outputs(job, adaptation, probe, right[:, :2])


def test_an_adaptation_of_another_bundle_is_not_exported(tmp_path: Path) -> None:
    from hetero.export import _linear

    replace(an_adaptation(), bundle="0" * 64).save(tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match="belongs to the bundle with weights 000000000000"):
        _linear.export(bundle(), tmp_path / "a.safetensors", "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the command line -----------------------------------------------------------------------------


def command(*arguments: object) -> str:
    from hetero.cli import app

    found = CliRunner().invoke(app, ["lqf", *map(str, arguments)])
    if found.exception and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found.stdout


def test_commands_train_combine_and_score(tmp_path: Path) -> None:
    from PIL import Image

    for number in range(3):
        folder = tmp_path / "pictures" / f"class{number:02}"
        folder.mkdir(parents=True)
        for which in range(6):
            Image.fromarray(picture(number, which)).save(folder / f"{which}.png")
    root, data = bundle().root, ("--data", tmp_path / "pictures")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    quick = ("--epochs", 1, "--json", "-q")
    first = json.loads(command("train", root, *data, "-o", a, *quick))
    assert (first["classes"], first["pictures"], first["held_out"]) == (3, 15, 3)
    more = ("--classes", "class00,class01", "--base", a, *quick)
    assert json.loads(command("train", root, *data, "-o", b, *more))["pictures"] == 10
    total = tmp_path / "c.safetensors"
    said = json.loads(
        command("combine", root, f"{a}:+1", f"{b}:+1", f"{b}:-1", "-o", total, "--json")
    )
    assert said["recipe"]["1.share"] == 0
    assert all(
        torch.equal(t, Adaptation.load(total).change[n])
        for n, t in Adaptation.load(a).change.items()
    )
    scored = json.loads(command("score", root, total, *data, "--json"))
    assert scored["accuracy"] == pytest.approx(first["accuracy"])
    with pytest.raises(ConfigError, match="FILE:SHARE with a number"):
        command("combine", root, f"{a}:much")
