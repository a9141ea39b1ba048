from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hetero.errors import ConfigError
from hetero.heads import CosineHead, simplex

KINDS = ("cosine", "arcface")


def embeddings(count: int = 6, dim: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def slow_logits(
    rows: Tensor, weight: Tensor, labels: Tensor | None, scale: float, margin: float, kind: str
) -> Tensor:
    """The definition, one number at a time, in Python's double precision."""
    out = torch.zeros(len(rows), len(weight), dtype=torch.float64)
    for i, row in enumerate(rows.tolist()):
        for c, centre in enumerate(weight.tolist()):
            length = math.sqrt(sum(x * x for x in centre))
            cosine = sum(a * b for a, b in zip(row, centre, strict=True)) / length
            if labels is not None and int(labels[i]) == c:
                if kind == "cosine":
                    cosine -= margin
                else:
                    angle = math.acos(max(-1.0, min(1.0, cosine)))
                    if angle + margin <= math.pi:
                        cosine = math.cos(angle + margin)
                    else:
                        cosine -= margin * math.sin(margin)
            out[i, c] = scale * cosine
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("labelled", [True, False])
def test_logits_equal_the_definition_computed_number_by_number(
    kind: str, margin: float, labelled: bool
) -> None:
    torch.manual_seed(0)
    head = CosineHead(5, 4, 20.0, margin, kind)
    rows, labels = embeddings(), torch.tensor([0, 1, 2, 3, 1, 0]) if labelled else None
    expected = slow_logits(rows, head.weight.detach(), labels, 20.0, margin, kind)
    torch.testing.assert_close(
        head(rows, labels).double(), expected, rtol=1e-5, atol=1e-4, check_dtype=False
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scale", "margin"), [(16.0, 0.1), (64.0, 0.35), (30.0, 0.5)])
def test_the_loss_equals_that_of_pytorch_metric_learning(
    kind: str, scale: float, margin: float
) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    torch.manual_seed(1)
    head = CosineHead(8, 7, scale, margin, kind)
    if kind == "cosine":
        oracle = losses.CosFaceLoss(7, 8, margin=margin, scale=scale)
    else:
        oracle = losses.ArcFaceLoss(7, 8, margin=math.degrees(margin), scale=scale)
    oracle.W.data = head.weight.detach().T.clone()
    # Among the rows one almost opposite to its class, where the angle passes 180 degrees.
    rows, labels = embeddings(40, 8), torch.arange(40) % 7
    rows[0] = -head.rows()[0].detach()
    ours = rows.clone().requires_grad_()
    theirs = rows.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(head(ours, labels), labels)
    expected = oracle(theirs, labels)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.backward()
    expected.backward()
    # Their gradient also runs through their own normalising of the rows: compare what is tangent.
    assert ours.grad is not None
    assert theirs.grad is not None
    tangent = ours.grad - (ours.grad * rows).sum(1, keepdim=True) * rows
    torch.testing.assert_close(tangent[1:], theirs.grad[1:], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_where_a_row_meets_or_opposes_its_class(kind: str) -> None:
    head = CosineHead(3, 2, 16.0, 0.3, kind)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
    rows = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], requires_grad=True)
    torch.nn.functional.cross_entropy(
        head(rows, torch.tensor([0, 0])), torch.tensor([0, 0])
    ).backward()
    assert rows.grad is not None
    assert torch.isfinite(rows.grad).all()
    assert torch.isfinite(head.weight.grad).all()


@settings(deadline=None, max_examples=50)
@given(
    kind=st.sampled_from(KINDS),
    margin=st.floats(0.01, 1.5),
    angle=st.floats(0.01, math.pi - 0.01),
    further=st.floats(0.01, 0.5),
)
def test_a_margin_makes_the_right_class_harder_and_nearer_is_still_better(
    kind: str, margin: float, angle: float, further: float
) -> None:
    head = CosineHead(2, 2, 10.0, margin, kind)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    angles = torch.tensor([angle, min(angle + further, math.pi)])
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    right = torch.tensor([0, 0])
    with_margin, without = head(rows, right), head(rows)
    assert (with_margin[:, 0] < without[:, 0] + 1e-5).all()
    assert torch.equal(with_margin[:, 1], without[:, 1])
    assert with_margin[0, 0] >= with_margin[1, 0] - 1e-4


def test_a_plain_classifier_has_neither_scale_nor_margin_and_keeps_its_lengths() -> None:
    head = CosineHead(2, 3, scale=20.0, margin=0.4, kind="plain")
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, -2.0], [1.0, 0.0]]))
    rows = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    by_hand = torch.tensor([[5.0, -1.6, 0.6], [3.0, 0.0, 1.0]])
    torch.testing.assert_close(head(rows), by_hand)
    torch.testing.assert_close(head(rows, torch.tensor([0, 2])), by_hand)
    torch.testing.assert_close(head.rows().norm(dim=1), torch.tensor([5.0, 2.0, 1.0]))


def test_rows_are_unit_vectors_whatever_the_weights() -> None:
    head = CosineHead(6, 3)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.01], [1.0], [100.0]]))
    torch.testing.assert_close(head.rows().norm(dim=1), torch.ones(3))
    torch.testing.assert_close(head(head.rows()).diagonal(), torch.full((3,), 16.0))


@pytest.mark.parametrize(
    "wrong", [{"classes": 1}, {"scale": 0.0}, {"margin": -0.1}, {"kind": "softmax"}]
)
def test_a_head_that_cannot_classify_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ConfigError, TypeError), match=r"classifier needs|kind"):
        CosineHead(**{"dim": 4, "classes": 3, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_a_simplex_has_unit_rows_at_equal_angles_around_the_origin(dim: int) -> None:
    vertices = torch.from_numpy(simplex(dim)).double()
    assert vertices.shape == (dim + 1, dim)
    expected = torch.full((dim + 1, dim + 1), -1 / dim, dtype=torch.float64)
    expected.fill_diagonal_(1.0)
    torch.testing.assert_close(vertices @ vertices.T, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(vertices.sum(0), torch.zeros(dim).double(), rtol=0, atol=1e-5)


def test_a_simplex_head_is_a_cosine_head_that_learns_nothing() -> None:
    head = CosineHead(5, 4, 20.0, 0.1, "simplex")
    assert not list(head.parameters())
    rows, labels = embeddings(), torch.tensor([0, 1, 2, 3, 1, 0])
    expected = slow_logits(rows, head.weight, labels, 20.0, 0.1, "cosine")
    torch.testing.assert_close(head(rows, labels).double(), expected, rtol=1e-5, atol=1e-4)


def test_a_simplex_with_too_few_vertices_names_the_dim_that_is_needed() -> None:
    CosineHead(5, 6, kind="simplex")
    with pytest.raises(ConfigError, match="a dim of at least 6 is needed"):
        CosineHead(5, 7, kind="simplex")
