from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetero import _plugins, methods
from hetero.errors import ConfigError
from hetero.methods import Method, Step

NAMES = _plugins.names("hetero.methods")
DIM, CLASSES, HEAD_ROWS = 6, 4, 5


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def a_step(query: Tensor | None = None, count: int = 12) -> Step:
    """A batch in which the gallery model knows all but one of the classes."""
    labels = torch.arange(count) % CLASSES
    return Step(
        query=unit(count, DIM, seed=1).requires_grad_() if query is None else query,
        gallery=unit(count, DIM, seed=2),
        labels=labels,
        head=unit(HEAD_ROWS, DIM, seed=3),
        head_labels=torch.tensor([2, 0, 4, -1])[labels],
        progress=0.5,
    )


def own_part(method: Method) -> nn.Module:
    torch.manual_seed(5)
    return method.own(DIM, CLASSES)


# -- the contract that every method, a later one too, has to keep ---------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_method_names_its_paper_and_says_where_it_differs(name: str) -> None:
    text = _plugins.load("hetero.methods", name).__doc__ or ""
    assert "\nPaper: " in text
    assert "\nDiffers: " in text
    paper = text.partition("\nPaper: ")[2].partition("\nDiffers: ")[0]
    assert "arXiv:" in paper or "doi:" in paper
    assert text.index("\nPaper: ") < text.index("\nDiffers: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_method_is_a_frozen_dataclass_whose_settings_have_defaults(name: str) -> None:
    method = methods.make(name)
    assert isinstance(method, Method)
    assert is_dataclass(method)
    assert fields(method), "a method without a setting cannot be weighed against another"
    first = fields(method)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(method, first, 2.0)
    assert method.needs <= {"labels", "head"}
    assert methods.settings_of(method) == {f.name: f.default for f in fields(method)}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name: str) -> None:
    module = _plugins.load("hetero.methods", name)
    text = module.Method.__doc__
    for field in fields(module.Method):
        assert f"\n        {field.name}: " in text


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_the_loss(name: str) -> None:
    method = methods.make(name)
    plain = method.loss(a_step(), own_part(method))
    for field in fields(method):
        value = getattr(method, field.name)
        changed: Any = not value if isinstance(value, bool) else value * 2 + 1
        other = replace(method, **{field.name: changed})  # type: ignore[type-var]
        loss = other.loss(a_step(), own_part(other))
        assert not torch.isclose(loss, plain, rtol=1e-4), field.name


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_one_finite_number(name: str) -> None:
    method = methods.make(name)
    loss = method.loss(a_step(), own_part(method))
    assert loss.shape == ()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_where_both_vectors_are_the_same_or_opposite(name: str) -> None:
    method = methods.make(name)
    for sign in (1.0, -1.0):
        query = (sign * unit(12, DIM, seed=2)).requires_grad_()
        loss = method.loss(a_step(query), own_part(method))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_query_vector_and_what_the_method_learns(name: str) -> None:
    method = methods.make(name)
    step, own = a_step(), own_part(method)
    method.loss(step, own).backward()
    assert step.query.grad is not None
    assert (step.query.grad.norm(dim=1) > 1e-6).all()
    for parameter in own.parameters():
        assert parameter.grad is not None
        assert parameter.grad.norm() > 0


@pytest.mark.parametrize("name", NAMES)
def test_training_changes_neither_gallery_vectors_nor_the_gallerys_head(name: str) -> None:
    method = methods.make(name)
    step, own = a_step(), own_part(method)
    assert step.head is not None
    before = [step.gallery.clone(), step.head.clone()]
    mine = {id(step.gallery), id(step.head)}
    learnt = [step.query, *own.parameters()]
    assert not mine & {id(p) for p in learnt}
    optimizer = torch.optim.SGD(learnt, lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        method.loss(step, own).backward()
        optimizer.step()
    assert torch.equal(step.gallery, before[0])
    assert torch.equal(step.head, before[1])
    assert not step.gallery.requires_grad
    assert step.gallery.grad is None
    assert step.head.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_descent_leads_query_vectors_towards_the_gallerys(name: str) -> None:
    # Gallery vectors lie near their class's row of the head, as they do after training.
    torch.manual_seed(0)
    method = methods.make(name)
    head = torch.eye(HEAD_ROWS, DIM)
    labels = torch.arange(12) % CLASSES
    gallery = nn.functional.normalize(head[labels] + 0.1 * unit(12, DIM, seed=2), dim=1)
    raw = unit(12, DIM, seed=9).clone().requires_grad_()
    own = own_part(method)
    optimizer = torch.optim.SGD([raw, *own.parameters()], lr=0.1)

    def cosine() -> Tensor:
        return (nn.functional.normalize(raw, dim=1) * gallery).sum(1).detach()

    begun = cosine()
    for at in range(60):
        query = nn.functional.normalize(raw, dim=1)
        step = Step(query, gallery, labels, head, labels, at / 60)
        optimizer.zero_grad()
        method.loss(step, own).backward()
        optimizer.step()
    assert (cosine() > begun).all()
    assert cosine().mean() > begun.mean() + 0.3


@pytest.mark.parametrize("name", NAMES)
def test_only_what_a_method_says_it_needs_is_needed(name: str) -> None:
    method = methods.make(name)
    step = a_step()
    if "head" not in method.needs:
        step = replace(step, head=None, head_labels=None)
    if "labels" not in method.needs:
        step = replace(step, labels=None)
    assert torch.isfinite(method.loss(step, own_part(method)))


# -- regression: by hand on a circle --------------------------------------------------------------


def circle(*degrees: float) -> Tensor:
    angles = torch.tensor([math.radians(d) for d in degrees], dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_regression_on_a_circle_is_ten_times_the_mean_of_one_minus_cosine() -> None:
    # 0, 60, 90 and 180 degrees apart: 1 - cos = 0, 1/2, 1, 2; their mean is 7/8.
    step = Step(circle(0, 10, 20, 30), circle(0, 70, 110, 210), None, None, None, 0.0)
    loss = methods.make("regression").loss(step, nn.Identity())
    assert float(loss) == pytest.approx(10 * 7 / 8)
    half = methods.make("regression", {"weight": 5.0}).loss(step, nn.Identity())
    assert float(half) == pytest.approx(5 * 7 / 8)


# -- bct: two cross-entropies by hand -------------------------------------------------------------


def entropy_by_hand(vector: Tensor, rows: Tensor, right: int, scale: float, margin: float) -> float:
    logits = []
    for number, row in enumerate(rows.tolist()):
        cosine = sum(a * b for a, b in zip(vector.tolist(), row, strict=True))
        cosine /= math.sqrt(sum(x * x for x in row))
        logits.append(scale * (cosine - (margin if number == right else 0.0)))
    return math.log(sum(math.exp(x) for x in logits)) - logits[right]


@pytest.mark.parametrize("known", ["all", "some", "none"])
@pytest.mark.parametrize(("influence", "own_weight"), [(1.0, 1.0), (0.3, 2.0), (0.0, 1.0)])
def test_bct_is_the_sum_of_two_cross_entropies(
    known: str, influence: float, own_weight: float
) -> None:
    settings = {"influence": influence, "own_weight": own_weight, "scale": 12.0, "margin": 0.2}
    method = methods.make("bct", settings)
    own = own_part(method)
    labels = torch.tensor([0, 1, 2, 3, 1])
    in_head = {"all": [2, 0, 4, 1, 0], "some": [2, -1, 4, -1, -1], "none": [-1] * 5}[known]
    query, head = unit(5, DIM, seed=1), unit(HEAD_ROWS, DIM, seed=3)
    step = Step(query, unit(5, DIM), labels, head, torch.tensor(in_head), 0.0)
    (rows,) = own.parameters()
    mine = [
        entropy_by_hand(v, rows.detach(), int(c), 12.0, 0.2)
        for v, c in zip(query, labels, strict=True)
    ]
    theirs = [
        entropy_by_hand(v, head, c, 12.0, 0.2)
        for v, c in zip(query, in_head, strict=True)
        if c >= 0
    ]
    expected = own_weight * sum(mine) / 5
    expected += influence * sum(theirs) / len(theirs) if theirs else 0.0
    assert float(method.loss(step, own).detach()) == pytest.approx(expected, rel=1e-5)


def test_pictures_the_gallery_head_does_not_know_move_by_the_own_head_alone() -> None:
    method = methods.make("bct", {"own_weight": 0.0})
    step = a_step()
    method.loss(step, own_part(method)).backward()
    assert step.head_labels is not None
    unknown = step.head_labels < 0
    assert (step.query.grad[unknown] == 0).all()
    assert (step.query.grad[~unknown].norm(dim=1) > 1e-6).all()


# -- making one -----------------------------------------------------------------------------------


def test_settings_come_as_text_from_a_command_line() -> None:
    assert methods.make("bct", {"influence": "0.5"}).influence == 0.5  # type: ignore[attr-defined]


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'regresion'; there are bct.*regression"):
        methods.make("regresion")


def test_an_unknown_setting_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'wieght'; there are weight"):
        methods.make("regression", {"wieght": 1.0})


def test_a_setting_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"weight needs a float, got 'much'"):
        methods.make("regression", {"weight": "much"})


def write_method(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        f"from typing import ClassVar\nfrom torch import nn\n{body}"
    )
    return f"{folder.name}.{name}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of a user's own, importable under a name no other test uses."""
    package = tmp_path / f"mine_{tmp_path.name}"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    return package


def test_truth_values_are_read_as_words(folder: Path) -> None:
    name = write_method(
        folder,
        "switch",
        "@dataclass(frozen=True)\nclass Method:\n    on: bool = True\n"
        "    needs: ClassVar[frozenset[str]] = frozenset()\n"
        "    def own(self, dim, classes): return nn.Identity()\n"
        "    def loss(self, step, own): return step.query.sum()\n",
    )
    for text, value in (("false", False), ("True", True), ("0", False), (False, False)):
        assert methods.make(name, {"on": text}).on is value  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="on needs a bool, got 'perhaps'"):
        methods.make(name, {"on": "perhaps"})


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("", "has no dataclass Method"),
        ("class Method: pass\n", "has no dataclass Method"),
        ("Method = 3\n", "has no dataclass Method"),
        ("@dataclass(frozen=True)\nclass Method:\n    weight: float\n", "weight has no default"),
    ],
)
def test_a_module_that_is_no_method_is_refused(folder: Path, body: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        methods.make(write_method(folder, "broken", body))


def test_a_dotted_path_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.at\.all.*PYTHONPATH"):
        methods.make("nowhere.at.all")
