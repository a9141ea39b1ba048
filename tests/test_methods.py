from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hetero import _plugins, methods
from hetero.errors import ConfigError
from hetero.methods import Method, Setup, Step, bt2
from hetero.methods._bank import Bank

NAMES = _plugins.names("hetero.methods")
CONTROLS = ("pkt", "rkd", "vanilla_kd")
COMPATIBLE = [name for name in NAMES if name not in CONTROLS]
PICTURES, DIM, CLASSES, HEAD_ROWS, BATCH = 300, 16, 4, 5, 12

#: What changes a setting when twice as much and one more is out of range or changes nothing.
OTHER = {
    "neighbours": 9,
    "bank": 280,
    "parts": 8,
    "bits": 1,
    "form": "contrastive",
}


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def a_setup(seed: int = 0, views: int = 2) -> Setup:
    """Pictures of which the gallery model's head knows all but one of the classes."""
    labels = torch.arange(PICTURES) % CLASSES
    lengths = torch.linspace(0.5, 3.0, HEAD_ROWS)[:, None]
    return Setup(
        gallery=unit(views, PICTURES, DIM, seed=2).numpy(),
        labels=labels,
        classes=CLASSES,
        head=unit(HEAD_ROWS, DIM, seed=3) * lengths,
        head_labels=torch.tensor([2, 0, 4, -1])[labels],
        seed=seed,
        independent=unit(views, PICTURES, DIM, seed=6).numpy(),
    )


def a_step(setup: Setup, query: Tensor | None = None) -> Step:
    rows = torch.arange(BATCH) * 7 % PICTURES
    return Step(
        query=unit(BATCH, DIM, seed=1).requires_grad_() if query is None else query,
        gallery=torch.from_numpy(setup.gallery[0, rows.numpy()]),
        rows=rows,
        labels=None if setup.labels is None else setup.labels[rows],
        progress=0.5,
        independent=None
        if setup.independent is None
        else torch.from_numpy(setup.independent[0, rows.numpy()]),
    )


def own_part(method: Method, setup: Setup) -> nn.Module:
    torch.manual_seed(5)
    return method.own(setup)


def loss_of(method: Method, setup: Setup | None = None, query: Tensor | None = None) -> Tensor:
    setup = setup or a_setup()
    return method.loss(a_step(setup, query), own_part(method, setup))


def rotation(dim: int = DIM) -> Tensor:
    """A turn of the whole space."""
    turn: Tensor = torch.linalg.qr(
        torch.randn(dim, dim, generator=torch.Generator().manual_seed(8))
    )[0]
    return turn


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
    assert method.needs <= {"labels", "head", "independent"}
    assert methods.settings_of(method) == {f.name: f.default for f in fields(method)}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name: str) -> None:
    module = _plugins.load("hetero.methods", name)
    text = module.Method.__doc__
    for field in fields(module.Method):
        assert f"\n        {field.name}: " in text


#: Settings that act under others than the defaults only.
UNDER: dict[tuple[str, str], dict[str, Any]] = {
    ("aml", "positive"): {"form": "contrastive"},
    ("aml", "negative"): {"form": "contrastive"},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_changes_the_loss(name: str) -> None:
    for field in fields(methods.make(name)):  # type: ignore[arg-type]
        method: Any = methods.make(name, UNDER.get((name, field.name)))
        plain = loss_of(method)
        value = getattr(method, field.name)
        changed: Any = not value if isinstance(value, bool) else OTHER.get(field.name)
        if changed is None:
            changed = value * 2 + 1
        loss = loss_of(replace(method, **{field.name: changed}))
        assert not torch.isclose(loss, plain, rtol=1e-4), field.name


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_one_finite_number(name: str) -> None:
    loss = loss_of(methods.make(name))
    assert loss.shape == ()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_where_both_vectors_are_the_same_or_opposite(name: str) -> None:
    setup = a_setup()
    for sign in (1.0, -1.0):
        query = (sign * a_step(setup).gallery).requires_grad_()
        loss = loss_of(methods.make(name), setup, query)
        loss.backward()
        assert torch.isfinite(loss)
        assert query.grad is not None
        assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_finite_where_all_query_vectors_are_one(name: str) -> None:
    query = unit(1, DIM, seed=4).expand(BATCH, DIM).clone().requires_grad_()
    loss_of(methods.make(name), None, query).backward()
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_every_query_vector_and_what_the_method_learns(name: str) -> None:
    method, setup = methods.make(name), a_setup()
    step, own = a_step(setup), own_part(method, setup)
    method.loss(step, own).backward()
    assert step.query.grad is not None
    assert (step.query.grad.norm(dim=1) > 1e-6).all()
    for parameter in own.parameters():
        assert parameter.grad is not None
        assert parameter.grad.norm() > 0


@pytest.mark.parametrize("name", NAMES)
def test_training_changes_neither_gallery_vectors_nor_the_gallerys_head(name: str) -> None:
    method, setup = methods.make(name), a_setup()
    assert setup.head is not None
    stored, head = setup.gallery.copy(), setup.head.clone()
    step, own = a_step(setup), own_part(method, setup)
    before = [step.gallery.clone(), *(b.clone() for b in own.buffers())]
    optimizer = torch.optim.SGD([step.query, *own.parameters()], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        method.loss(step, own).backward()
        optimizer.step()
    assert np.array_equal(setup.gallery, stored)
    assert torch.equal(setup.head, head)
    for now, then in zip([step.gallery, *own.buffers()], before, strict=True):
        assert torch.equal(now, then)
        assert not now.requires_grad
        assert now.grad is None


@pytest.mark.parametrize("name", NAMES)
def test_only_what_a_method_says_it_needs_is_needed(name: str) -> None:
    method, setup = methods.make(name), a_setup()
    if "head" not in method.needs:
        setup = replace(setup, head=None, head_labels=None)
    if "labels" not in method.needs:
        setup = replace(setup, labels=None, classes=0, head_labels=None)
    if "independent" not in method.needs:
        setup = replace(setup, independent=None)
    assert torch.isfinite(loss_of(method, setup))


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_own_part_twice(name: str) -> None:
    small = {"bank": 280} if hasattr(methods.make(name), "bank") else {}
    method, setup = methods.make(name, small), a_setup()
    one, other = own_part(method, setup).state_dict(), own_part(method, setup).state_dict()
    assert all(torch.equal(one[k], other[k]) for k in one)
    first, second = (list(own_part(method, setup).buffers()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", COMPATIBLE)
def test_descent_leads_query_vectors_towards_the_gallerys(name: str) -> None:
    # Gallery vectors lie near their class's row of the head, as they do after training.
    method = methods.make(name)
    labels = torch.arange(PICTURES) % CLASSES
    head = torch.eye(HEAD_ROWS, DIM)
    gallery = nn.functional.normalize(head[labels] + 0.5 * unit(PICTURES, DIM, seed=2), dim=1)
    alone = unit(1, PICTURES, DIM, seed=6).numpy()
    setup = Setup(gallery[None].numpy(), labels, CLASSES, head, labels, independent=alone)
    wanted = a_step(setup).gallery
    raw, own = unit(BATCH, DIM, seed=9).clone().requires_grad_(), own_part(method, setup)
    optimizer = torch.optim.Adam([raw, *own.parameters()], lr=0.05)

    def cosine() -> Tensor:
        return (nn.functional.normalize(raw, dim=1) * wanted).sum(1).detach()

    begun = cosine()
    for _ in range(80):
        optimizer.zero_grad()
        method.loss(a_step(setup, nn.functional.normalize(raw, dim=1)), own).backward()
        optimizer.step()
    # Relations to anchors alone lead there too, but not as straight.
    assert cosine().mean() > begun.mean() + (0.2 if name in ("csd", "ssp") else 0.3)


# -- negative controls: they cannot know the space ------------------------------------------------


def test_the_negative_controls_say_so_and_no_other_method_does() -> None:
    assert tuple(n for n in NAMES if methods.is_control(methods.make(n))) == CONTROLS


@pytest.mark.parametrize("name", NAMES)
def test_turning_the_whole_query_side_is_seen_by_compatible_methods_only(name: str) -> None:
    method, setup, turn = methods.make(name), a_setup(), rotation()
    own, query = own_part(method, setup), unit(BATCH, DIM, seed=1)
    plain = method.loss(a_step(setup, query), own).detach()
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.copy_(parameter @ turn)
    turned = method.loss(a_step(setup, query @ turn), own).detach()
    if name in CONTROLS:
        torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-6)
    else:
        assert not torch.isclose(turned, plain, rtol=1e-3)


# -- regression: by hand on a circle --------------------------------------------------------------


def circle(*degrees: float) -> Tensor:
    angles = torch.tensor([math.radians(d) for d in degrees], dtype=torch.float64)
    return torch.stack([angles.cos(), angles.sin()], 1)


def test_regression_on_a_circle_is_ten_times_the_mean_of_one_minus_cosine() -> None:
    # 0, 60, 90 and 180 degrees apart: 1 - cos = 0, 1/2, 1, 2; their mean is 7/8.
    step = Step(circle(0, 10, 20, 30), circle(0, 70, 110, 210), torch.arange(4))
    loss = methods.make("regression").loss(step, nn.Identity())
    assert float(loss) == pytest.approx(10 * 7 / 8)
    half = methods.make("regression", {"weight": 5.0}).loss(step, nn.Identity())
    assert float(half) == pytest.approx(5 * 7 / 8)


# -- every other loss against its formula, one number at a time -----------------------------------

Rows = list[list[float]]


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def length(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def softmax(logits: list[float]) -> list[float]:
    whole = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(whole) for x in whole]


def divergence(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def huber(difference: float) -> float:
    size = abs(difference)
    return 0.5 * size * size if size < 1 else size - 0.5


def both(setup: Setup) -> tuple[Step, Rows, Rows]:
    step = a_step(setup, unit(BATCH, DIM, seed=1))
    return step, step.query.tolist(), step.gallery.tolist()


def check(
    name: str, settings: dict[str, Any], expected: float, own: nn.Module | None = None
) -> None:
    method, setup = methods.make(name, settings), a_setup()
    loss = method.loss(both(setup)[0], own or own_part(method, setup))
    assert float(loss.detach()) == pytest.approx(expected, rel=2e-4)


def neighbours_by_hand(setup: Setup, row: int, count: int) -> Rows:
    others = [
        (dot(setup.gallery[0, row].tolist(), v.tolist()), n)
        for n, v in enumerate(setup.gallery[0])
        if n != row
    ]
    return [setup.gallery[0, n].tolist() for _, n in sorted(others, reverse=True)[:count]]


def test_csd_is_the_mean_divergence_over_each_pictures_neighbours() -> None:
    step, query, gallery = both(a_setup())
    total = 0.0
    for q, g, row in zip(query, gallery, step.rows.tolist(), strict=True):
        near = neighbours_by_hand(a_setup(), row, 7)
        total += divergence(
            softmax([dot(g, n) / 0.2 for n in near]), softmax([dot(q, n) / 0.3 for n in near])
        )
    settings = {
        "neighbours": 7,
        "gallery_temperature": 0.2,
        "query_temperature": 0.3,
        "weight": 2.0,
    }
    check("csd", settings, 2 * total / BATCH)


def test_d3still_is_the_weighted_mean_of_relative_residuals_of_all_pairs() -> None:
    step, query, gallery = both(a_setup())
    point, parts = 0.0, []
    for q, g, row in zip(query, gallery, step.rows.tolist(), strict=True):
        near = neighbours_by_hand(a_setup(), row, 5)
        point += (1 - dot(q, g)) / BATCH
        for i in range(5):
            for j in range(i + 1, 5):
                wanted, have = dot(g, near[i]) - dot(g, near[j]), dot(q, near[i]) - dot(q, near[j])
                hard = 3.0 if wanted * have < 0 else 1.0
                parts.append(hard * ((have - wanted) / (0.2 + abs(wanted))) ** 2)
    expected = 4 * point + 0.5 * sum(parts) / len(parts)
    settings = {"point": 4.0, "weight": 0.5, "neighbours": 5, "floor": 0.2, "hard": 3.0}
    check("d3still", settings, expected)


def test_ssp_is_the_divergence_over_the_centroids_of_each_sub_space() -> None:
    method = methods.make("ssp", {"parts": 4, "bits": 2, "sharpness": 6.0, "weight": 3.0})
    own: Any = own_part(method, a_setup())
    assert own.centroids.shape == (4, 4, 4)
    centroids = own.centroids.tolist()
    _, query, gallery = both(a_setup())
    total = 0.0
    for q, g in zip(query, gallery, strict=True):
        for part in range(4):
            spread = []
            for whole in (g, q):
                some = whole[4 * part : 4 * part + 4]
                spread.append(
                    softmax(
                        [6.0 * dot(some, c) / length(some) / length(c) for c in centroids[part]]
                    )
                )
            total += divergence(*spread)
    check("ssp", methods.settings_of(method), 3 * total / BATCH, own)


def test_the_anchors_of_ssp_are_where_the_vectors_of_each_sub_space_lie() -> None:
    # Two clumps in each half, so that two centroids have only one place to be.
    clumps = torch.tensor([[1.0, 0, 0, 1], [0, 1, 1, 0]])[torch.arange(100) % 2]
    setup = Setup(nn.functional.normalize(clumps, dim=1)[None].numpy())
    own: Any = methods.make("ssp", {"parts": 2, "bits": 1}).own(setup)
    found = [sorted(part) for part in own.centroids.round().tolist()]
    assert found == [[[0, 1], [1, 0]]] * 2


def test_ssp_refuses_parts_that_do_not_divide_the_dimension() -> None:
    with pytest.raises(ConfigError, match="5 parts do not divide the embedding's length 16"):
        methods.make("ssp", {"parts": 5}).own(a_setup())


def test_raml_is_the_squared_distance_and_two_matrices_of_similarities() -> None:
    _, query, gallery = both(a_setup())
    point = sum((1 - dot(q, g)) ** 2 for q, g in zip(query, gallery, strict=True)) / BATCH
    across = within = 0.0
    for i in range(BATCH):
        for j in range(BATCH):
            wanted = dot(gallery[i], gallery[j])
            across += (dot(query[i], gallery[j]) - wanted) ** 2 / BATCH**2
            within += (dot(query[i], query[j]) - wanted) ** 2 / BATCH**2
    settings = {"point": 2.0, "across": 0.5, "within": 0.25, "weight": 3.0}
    check("raml", settings, 3 * (2 * point + 0.5 * across + 0.25 * within))


def test_rkd_is_huber_on_normalised_distances_and_on_angles() -> None:
    _, query, gallery = both(a_setup())

    def distances(rows: Rows) -> Rows:
        plain = [[math.dist(a, b) for b in rows] for a in rows]
        mean = sum(map(sum, plain)) / (len(rows) * (len(rows) - 1))
        return [[x / mean for x in row] for row in plain]

    def angle(rows: Rows, at: int, i: int, j: int) -> float:
        if at in (i, j):
            return 0.0
        one = [a - b for a, b in zip(rows[i], rows[at], strict=True)]
        two = [a - b for a, b in zip(rows[j], rows[at], strict=True)]
        return dot(one, two) / length(one) / length(two)

    ours, theirs, everyone = distances(query), distances(gallery), range(BATCH)
    far = sum(huber(ours[i][j] - theirs[i][j]) for i in everyone for j in everyone) / BATCH**2
    turn = sum(
        huber(angle(query, at, i, j) - angle(gallery, at, i, j))
        for at in everyone
        for i in everyone
        for j in everyone
    )
    settings = {"distance": 5.0, "angle": 7.0, "weight": 2.0}
    check("rkd", settings, 2 * (5 * far + 7 * turn / BATCH**3))


def test_pkt_is_the_divergence_of_neighbour_probabilities() -> None:
    _, query, gallery = both(a_setup())
    total = 0.0
    for at in range(BATCH):
        p, q = (
            [(dot(rows[at], rows[j]) + 1) / 2 for j in range(BATCH) if j != at]
            for rows in (gallery, query)
        )
        total += divergence([x / sum(p) for x in p], [x / sum(q) for x in q])
    check("pkt", {"weight": 30.0}, 30 * total / BATCH)


def test_vanilla_kd_is_the_divergence_under_each_models_own_classifier() -> None:
    method, setup = (
        methods.make("vanilla_kd", {"scale": 9.0, "temperature": 2.0, "weight": 0.5}),
        a_setup(),
    )
    own = own_part(method, setup)
    assert setup.head is not None
    mine, theirs = next(own.parameters()).tolist(), setup.head.tolist()
    _, query, gallery = both(setup)
    total = 0.0
    for q, g in zip(query, gallery, strict=True):
        p = softmax([9 * dot(g, r) / length(r) / 2 for r in theirs])
        total += divergence(p, softmax([9 * dot(q, r) / length(r) / 2 for r in mine]))
    check("vanilla_kd", methods.settings_of(method), 0.5 * 2**2 * total / BATCH, own)


@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("form", ["contrastive", "triplet"])
def test_aml_has_query_anchors_and_gallery_positives_and_negatives(form: str, label: bool) -> None:
    step, query, gallery = both(a_setup())
    assert step.labels is not None
    same = (step.labels if label else step.rows).tolist()
    near, far = [], []
    for i in range(BATCH):
        for j in range(BATCH):
            (near if same[i] == same[j] else far).append((i, dot(query[i], gallery[j])))

    def mean(costs: list[float]) -> float:
        # The library's: over those that cost anything.
        some = [c for c in costs if c > 0]
        return sum(some) / len(some) if some else 0.0

    if form == "contrastive":
        expected = mean([0.9 - c for _, c in near]) + mean([c - 0.1 for _, c in far])
    else:
        expected = mean([m - c + 0.4 for i, c in near for k, m in far if i == k])
    settings = {"form": form, "label": label, "positive": 0.9, "negative": 0.1, "margin": 0.4}
    check("aml", {**settings, "weight": 2.0}, 2 * expected)


def test_aml_knows_two_forms() -> None:
    with pytest.raises(ConfigError, match="form is contrastive or triplet, got 'quadruplet'"):
        methods.make("aml", {"form": "quadruplet"})


# -- ract: both models' rows of other classes stand in the way -------------------------------------


def test_ract_is_the_share_of_the_right_vector_among_other_classes_of_both_models() -> None:
    step, query, gallery = both(a_setup())
    assert step.labels is not None
    labels, total = step.labels.tolist(), 0.0
    for i in range(BATCH):
        right = math.exp(dot(query[i], gallery[i]) / 0.3)
        others = sum(
            math.exp(dot(query[i], rows[j]) / 0.3)
            for rows in (gallery, query)
            for j in range(BATCH)
            if labels[j] != labels[i]
        )
        total -= math.log(right / (right + others))
    check("ract", {"weight": 2.0, "temperature": 0.3}, 2 * total / BATCH)


# -- bct: two cross-entropies by hand -------------------------------------------------------------


def entropy_by_hand(logits: list[float], right: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[right]


def bct_setup(known: str) -> Setup:
    table = {"all": [2, 0, 4, 1], "some": [2, -1, 4, -1], "none": [-1] * 4}[known]
    setup = a_setup()
    return replace(setup, head_labels=torch.tensor(table)[torch.arange(PICTURES) % CLASSES])


@pytest.mark.parametrize("known", ["all", "some", "none"])
@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("synthesise", [True, False])
def test_bct_is_the_sum_of_two_cross_entropies(
    known: str, normalised: bool, synthesise: bool
) -> None:
    settings = {"influence": 0.3, "own_weight": 2.0, "scale": 12.0, "margin": 0.2}
    method = methods.make("bct", {**settings, "synthesise": synthesise, "normalised": normalised})
    setup = bct_setup(known)
    own, step = own_part(method, setup), a_step(setup, unit(BATCH, DIM, seed=1))
    assert setup.labels is not None
    assert setup.head is not None
    assert setup.head_labels is not None
    frozen, place = setup.head.tolist(), {}
    for c in range(CLASSES):
        place[c] = int(setup.head_labels[c])
        if place[c] < 0 and synthesise:
            vectors = setup.gallery[:, setup.labels.numpy() == c].reshape(-1, DIM).mean(0)
            mean_length = sum(map(length, setup.head.tolist())) / HEAD_ROWS
            place[c] = len(frozen)
            frozen.append((vectors / np.linalg.norm(vectors) * mean_length).tolist())

    def margined(vector: list[float], rows: Rows, right: int) -> list[float]:
        cosines = [dot(vector, r) / length(r) for r in rows]
        return [12 * (c - 0.2 * (n == right)) for n, c in enumerate(cosines)]

    (parameter,) = own.parameters()
    mine, theirs = 0.0, []
    assert step.labels is not None
    for q, c in zip(step.query.tolist(), step.labels.tolist(), strict=True):
        mine += entropy_by_hand(margined(q, parameter.tolist(), c), c) / BATCH
        if place[c] >= 0:
            plain = [dot(q, r) for r in frozen]
            logits = margined(q, frozen, place[c]) if normalised else plain
            theirs.append(entropy_by_hand(logits, place[c]))
    expected = 2 * mine + (0.3 * sum(theirs) / len(theirs) if theirs else 0.0)
    assert float(method.loss(step, own).detach()) == pytest.approx(expected, rel=1e-4)


def test_pictures_the_gallery_head_does_not_know_move_by_the_own_head_alone() -> None:
    method = methods.make("bct", {"own_weight": 0.0, "synthesise": False})
    setup = a_setup()
    step = a_step(setup)
    method.loss(step, own_part(method, setup)).backward()
    assert setup.head_labels is not None
    unknown = setup.head_labels[step.rows] < 0
    assert step.query.grad is not None
    assert unknown.any()
    assert (step.query.grad[unknown] == 0).all()
    assert (step.query.grad[~unknown].norm(dim=1) > 1e-6).all()


def test_the_own_head_of_bct_starts_from_the_gallerys_rows() -> None:
    setup = a_setup()
    (rows,) = own_part(methods.make("bct"), setup).parameters()
    assert setup.head is not None
    for mine, theirs in enumerate([2, 0, 4]):
        torch.testing.assert_close(rows[mine], nn.functional.normalize(setup.head[theirs], dim=0))


# -- the bank of neighbours -----------------------------------------------------------------------


@pytest.mark.parametrize(("size", "views"), [(1000, 1), (1000, 2), (30, 1), (30, 2), (1000, 9)])
def test_a_banks_neighbours_are_those_of_a_full_search_without_the_picture_itself(
    size: int, views: int
) -> None:
    setup = a_setup()
    bank, views = Bank(setup, 6, size, views), min(views, 2)
    held = min(size, PICTURES)
    assert bank.vectors.shape == (held * views, DIM)
    place = {v.tobytes(): (view, n) for view in range(2) for n, v in enumerate(setup.gallery[view])}
    members = [place[v.tobytes()] for v in bank.vectors.numpy()]
    assert {view for view, _ in members} == set(range(views))
    assert len({n for _, n in members}) == held
    found = bank.of(torch.arange(PICTURES))
    for row in range(PICTURES):
        others = [setup.gallery[at] for at in members if at[1] != row]
        order = np.argsort(-(np.stack(others) @ setup.gallery[0, row]))[:6]
        np.testing.assert_array_equal(found[row], np.stack(others)[order])


def test_another_seed_puts_other_pictures_into_a_small_bank() -> None:
    one, same, other = (Bank(a_setup(seed), 3, 20).vectors for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("neighbours", "size", "views", "most"), [(20, 20, 1, 19), (39, 20, 2, 38), (0, 20, 1, 19)]
)
def test_a_bank_too_small_for_its_neighbours_says_how_many_it_can_give(
    neighbours: int, size: int, views: int, most: int
) -> None:
    with pytest.raises(ConfigError, match=rf"cannot give {neighbours} .*at most {most}$"):
        Bank(a_setup(), neighbours, size, views)
    Bank(a_setup(), most, size, views)


# -- bt2: a basis with the old space at its beginning ---------------------------------------------

LONGER, OWN = DIM + 4, DIM - 2


def a_longer_setup() -> Setup:
    """Whole vectors longer than the gallery's, and an unconstrained model's shorter than both."""
    alone = unit(2, PICTURES, OWN, seed=6).numpy()
    return replace(a_setup(), length=LONGER, independent=alone)


def a_longer_step(setup: Setup, whole: Tensor) -> Step:
    assert setup.independent is not None
    step = a_step(setup, nn.functional.normalize(whole[:, :DIM], dim=1))
    rows = step.rows.numpy()
    alone = torch.from_numpy(setup.independent[0, rows])
    return replace(step, whole=whole, independent=alone)


def a_trained_basis(setup: Setup, name: str = "bt2", steps: int = 30) -> tuple[Tensor, bt2.Basis]:
    """Whole vectors and the basis after some descent on both."""
    method: Method = methods.make(name)
    raw, own = unit(BATCH, LONGER, seed=9).clone().requires_grad_(), own_part(method, setup)
    optimizer = torch.optim.Adam([raw, *own.parameters()], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        method.loss(a_longer_step(setup, nn.functional.normalize(raw, dim=1)), own).backward()
        optimizer.step()
    assert isinstance(own, bt2.Basis)
    return nn.functional.normalize(raw, dim=1).detach(), own


def cayley(square: list[list[float]]) -> np.ndarray:
    """(1 - S)⁻¹(1 + S) with S = A - Aᵀ, eigenvalue by eigenvalue."""
    skew = np.array(square) - np.array(square).T
    values, vectors = np.linalg.eig(skew.astype(complex))
    return np.real(vectors @ np.diag((1 + values) / (1 - values)) @ np.linalg.inv(vectors))


def test_the_basis_of_bt2_is_orthogonal_after_training_and_no_longer_where_it_began() -> None:
    _, basis = a_trained_basis(a_longer_setup())
    read = basis.own_part(torch.eye(LONGER)).detach().double()
    assert read.shape == (LONGER, OWN)
    assert float((read.T @ read - torch.eye(OWN)).abs().max()) < 1e-5
    for square in (basis.first, basis.second):
        turn = bt2._turn(square).detach().double()
        assert float((turn @ turn.T - torch.eye(len(turn))).abs().max()) < 1e-5
        assert float((turn - torch.eye(len(turn))).abs().max()) > 0.1


def test_own_vectors_of_bt2_are_projections_by_two_turns_one_number_at_a_time() -> None:
    whole, basis = a_trained_basis(a_longer_setup())
    first, second = cayley(basis.first.tolist()), cayley(basis.second.tolist())
    found = basis.own_part(whole).detach()
    for row, own in zip(whole.tolist(), found.tolist(), strict=True):
        begin, more = row[:DIM], row[DIM:]
        turned = [sum(begin[i] * second[i, j] for i in range(DIM)) for j in range(OWN - 4)]
        held = turned + more
        expected = [sum(held[i] * first[i, j] for i in range(OWN)) for j in range(OWN)]
        assert own == pytest.approx(expected, abs=1e-5)


def test_all_of_a_longer_vectors_extra_numbers_are_in_its_own_part() -> None:
    # Nothing that the old space has no room for may be lost to the new model.
    _, basis = a_trained_basis(a_longer_setup())
    extra = torch.eye(LONGER)[DIM:]
    lengths = basis.own_part(extra).detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(4), atol=1e-5, rtol=0)


def test_bt2_is_the_sum_of_both_cosines_and_the_frozen_classifiers_entropy() -> None:
    setup = a_longer_setup()
    whole, basis = a_trained_basis(setup)
    step = a_longer_step(setup, whole)
    assert step.independent is not None
    frozen = methods.make("bct", {"influence": 2.0, "own_weight": 0.0, "scale": 8.0})
    expected = float(frozen.loss(step, frozen.own(setup)))
    parts = zip(
        whole.tolist(),
        step.gallery.tolist(),
        basis.own_part(whole).tolist(),
        step.independent.tolist(),
        strict=True,
    )
    for row, old, own, alone in parts:
        expected += 3 * (1 - dot(row[:DIM], old) / length(row[:DIM])) / BATCH
        expected += 0.5 * (1 - dot(own, alone) / length(own)) / BATCH
    method = methods.make(
        "bt2", {"weight": 3.0, "independent": 0.5, "influence": 2.0, "scale": 8.0}
    )
    assert float(method.loss(step, basis).detach()) == pytest.approx(expected, rel=2e-4)


def test_descent_on_bt2_finds_room_for_both_where_one_space_has_none() -> None:
    # Old and unconstrained vectors have nothing to do with each other, and few numbers are extra.
    setup = replace(a_setup(), length=2 * DIM, independent=unit(2, PICTURES, DIM, seed=6).numpy())
    narrow = replace(setup, length=DIM)

    def cosines(setup: Setup) -> tuple[float, float]:
        method: Method = methods.make("bt2", {"influence": 0.0})
        raw = unit(BATCH, setup.length, seed=9).clone().requires_grad_()
        own = own_part(method, setup)
        assert isinstance(own, bt2.Basis)
        optimizer = torch.optim.Adam([raw, *own.parameters()], lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            step = a_longer_step(setup, nn.functional.normalize(raw, dim=1))
            method.loss(step, own).backward()
            optimizer.step()
        alike = nn.functional.cosine_similarity
        assert step.independent is not None
        with torch.no_grad():
            return (
                float(alike(raw[:, :DIM], step.gallery).mean()),
                float(alike(own.own_part(raw), step.independent).mean()),
            )

    old, own = cosines(setup)
    assert old > 0.98
    assert own > 0.98
    held, lost = cosines(narrow)
    assert held > 0.9
    assert lost < own - 0.05


@pytest.mark.parametrize(("own", "whole"), [(20, 18), (3, 20)])
def test_bt2_refuses_an_own_part_that_does_not_fit_the_whole_vector(own: int, whole: int) -> None:
    setup = replace(a_setup(), length=whole, independent=unit(2, PICTURES, own, seed=6).numpy())
    with pytest.raises(ConfigError, match=rf"has {own} numbers.*set --dim"):
        methods.make("bt2").own(setup)


# -- sums -----------------------------------------------------------------------------------------


def test_methods_joined_by_a_plus_are_added() -> None:
    setup = a_setup()
    whole = methods.make("csd+regression", {"csd.neighbours": "7", "regression.weight": 3})
    parts = [methods.make("csd", {"neighbours": 7}), methods.make("regression", {"weight": 3.0})]
    expected = sum(float(loss_of(p, setup).detach()) for p in parts)
    assert float(loss_of(whole, setup).detach()) == pytest.approx(expected, rel=1e-6)
    assert methods.settings_of(whole)["csd.neighbours"] == 7
    assert methods.make("csd+regression", methods.settings_of(whole)) == whole
    assert isinstance(whole, Method)
    assert not methods.is_control(whole)


def test_a_sum_needs_what_any_part_needs_and_learns_what_any_part_learns() -> None:
    both_needs = methods.make("regression+bct")
    assert both_needs.needs == {"labels", "head"}
    assert methods.make("csd+regression").needs == set()
    assert len(list(own_part(both_needs, a_setup()).parameters())) == 1


def test_a_sum_refuses_a_setting_of_no_part_and_a_part_twice() -> None:
    with pytest.raises(ConfigError, match=r"write csd\.SETTING or regression\.SETTING"):
        methods.make("csd+regression", {"weight": 2})
    with pytest.raises(ConfigError, match=r"'bct\.scale' names none of its parts"):
        methods.make("csd+regression", {"bct.scale": 2})
    with pytest.raises(ConfigError, match=r"method csd: no setting 'margin'"):
        methods.make("csd+regression", {"csd.margin": 2})
    with pytest.raises(ConfigError, match=r"unknown method 'nothing'"):
        methods.make("csd+nothing")
    with pytest.raises(ConfigError, match="each part once"):
        methods.make("csd+csd")


@pytest.mark.parametrize("pictures", [2, 512, 513, 10**6])
def test_what_auto_takes_can_be_made_and_has_a_bank_to_fill(pictures: int) -> None:
    choice = methods.choose(pictures)
    made = methods.make(choice.method)
    assert made.needs == set()
    assert len(choice.reason) > 20
    assert methods.settings_of(made).get("csd.neighbours", 0) < pictures


# -- making one -----------------------------------------------------------------------------------


def test_settings_come_as_text_from_a_command_line() -> None:
    assert methods.make("bct", {"influence": "0.5"}).influence == 0.5  # type: ignore[attr-defined]


def test_an_unknown_method_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown method 'regresion'; there are .*regression"):
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
        "    def own(self, setup): return nn.Identity()\n"
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


def test_bct_without_weight_on_its_own_classifier_has_none() -> None:
    method, setup = methods.make("bct", {"own_weight": 0.0}), a_setup()
    assert not list(own_part(method, setup).parameters())
    # The same influence term as beside an own classifier.
    both_terms, own_only = methods.make("bct"), methods.make("bct", {"influence": 0.0})
    apart = loss_of(both_terms, setup) - loss_of(own_only, setup)
    torch.testing.assert_close(loss_of(method, setup), apart, rtol=1e-4, atol=1e-4)
