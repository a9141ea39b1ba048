from __future__ import annotations

import numpy as np
import pytest
from geometry import CIRCLE, embeddings, on_circle, truth
from hypothesis import given
from hypothesis import strategies as st

from hetero import Embeddings, Space, Truth
from hetero.compare import agreement, flips, hubness, rank_biased_overlap, score_scale
from hetero.errors import DataError, SpaceMismatchError
from hetero.retrieval import rank

GALLERY = on_circle(0, 30, 60, 90, 120, 150, 180)
NOBODY = ["nobody"] * len(GALLERY)


def test_a_turn_of_60_degrees_halves_the_cosine_and_its_row_is_named():
    ours = on_circle(0, 90, 180, ids=["a", "b", "c"])
    theirs = on_circle(0, 90, 240, ids=["a", "b", "c"])
    found = agreement(ours, theirs, GALLERY, truth(["x"] * 3, NOBODY), k=1)
    assert found.cosine == pytest.approx([1, 1, 0.5])
    assert found.worst_id == "c"


def test_neighbours_kept_are_counted_one_query_at_a_time():
    # From 40 degrees the next three are 30, 60, 0; from 70 they are 60, 90, 30 (50 ahead of 120).
    found = agreement(
        on_circle(40, 40, ids=["a", "b"]),
        on_circle(40, 70, ids=["a", "b"]),
        GALLERY,
        truth(["x"] * 2, NOBODY),
        k=3,
    )
    assert found.overlap == pytest.approx([1, 2 / 3])


def test_hidden_neighbours_do_not_count():
    # 30 is hidden: from 40 degrees the next two are 60 and 0, from 10 they are 0 and 60.
    groups = ["mine" if i == 1 else f"g{i}" for i in range(len(GALLERY))]
    answers = truth(["x"], NOBODY, ["mine"], groups)
    found = agreement(on_circle(40), on_circle(10), GALLERY, answers, k=2)
    assert found.overlap == pytest.approx([1.0])
    seen = agreement(on_circle(40), on_circle(10), GALLERY, truth(["x"], NOBODY), k=1)
    assert seen.overlap == pytest.approx([0.0])


def test_asking_for_more_neighbours_than_there_are_counts_those_there_are():
    found = agreement(on_circle(0), on_circle(179), GALLERY, truth(["x"], NOBODY), k=100)
    assert found.overlap == pytest.approx([1.0])


@given(st.permutations(range(5)))
def test_rows_are_matched_by_id_so_their_order_does_not_matter(order):
    rng = np.random.default_rng(0)
    ours = embeddings(rng.normal(size=(5, 4)))
    theirs = embeddings(ours.vectors + 0.3 * rng.normal(size=(5, 4)))
    gallery = embeddings(rng.normal(size=(20, 4)))
    answers = truth(["x"] * 5, ["y"] * 20)
    straight = agreement(ours, theirs, gallery, answers, k=3)
    shuffled = agreement(ours, theirs.take([str(i) for i in order]), gallery, answers, k=3)
    assert np.array_equal(straight.cosine, shuffled.cosine)
    assert np.array_equal(straight.overlap, shuffled.overlap)
    assert straight.worst_id == shuffled.worst_id


def test_a_missing_row_and_another_space_are_refused():
    with pytest.raises(DataError, match="first 'b'"):
        agreement(
            on_circle(0, 1, ids=["a", "b"]),
            on_circle(0, ids=["a"]),
            GALLERY,
            truth(["x"] * 2, NOBODY),
        )
    elsewhere = on_circle(0).pretend_in(type(CIRCLE)("other", "d" * 64, 2))
    with pytest.raises(SpaceMismatchError, match="other"):
        agreement(on_circle(0), elsewhere, GALLERY, truth(["x"], NOBODY))


def test_a_flip_is_a_first_answer_that_changed_sides():
    gallery = on_circle(0, 90)
    answers = truth(["a", "a", "a", "a"], ["a", "b"])
    before = rank(on_circle(10, 80, 10, 80), gallery, answers)  # right, wrong, right, wrong
    after = rank(on_circle(10, 10, 80, 80), gallery, answers)  # right, right, wrong, wrong
    found = flips(before, after)
    assert found.negative.tolist() == [False, False, True, False]
    assert found.positive.tolist() == [False, True, False, False]
    back = flips(after, before)
    assert np.array_equal(back.negative, found.positive)
    assert not flips(before, before).negative.any()


def test_flips_between_rankings_of_different_queries_are_refused():
    gallery = on_circle(0, 90)
    one = rank(on_circle(10, 80), gallery, truth(["a", "zebra"], ["a", "b"]))
    other = rank(on_circle(10, 80), gallery, truth(["zebra", "a"], ["a", "b"]))
    with pytest.raises(DataError, match="not about the same queries"):
        flips(one, other)


# -- rankings, hubs, scales -----------------------------------------------------------------------


def cloud(seed: int, count: int, name: str, spread: float = 1.0) -> Embeddings:
    rng = np.random.default_rng(seed)
    raw = np.repeat(np.random.default_rng(99).normal(size=(10, 6)), count // 10, axis=0)
    raw = raw + spread * rng.normal(size=(count, 6))
    return Embeddings.normalised(
        Space("toy", "0" * 64, 6), [f"{name}{i}" for i in range(count)], raw, name
    )


def classes(count: int, hidden: bool = False) -> Truth:
    labels = tuple(f"c{i // (count // 10)}" for i in range(count))
    mine = tuple(f"g{i % 4}" if hidden else f"q{i}" for i in range(count))
    theirs = tuple(f"g{i % 4}" if hidden else f"g{i}" for i in range(count))
    return Truth(labels, mine, labels, theirs)


def overlap_by_definition(a: list[int], b: list[int], p: float) -> float:
    """Equation 32 of the paper, with lists of equal depth k."""
    k = len(a)
    agreed = [len(set(a[:d]) & set(b[:d])) for d in range(1, k + 1)]
    series = sum(x / d * p**d for d, x in enumerate(agreed, 1))
    return agreed[-1] / k * p**k + (1 - p) / p * series


@pytest.mark.parametrize("p", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("hidden", [False, True])
def test_rank_biased_overlap_is_the_papers_extrapolated_form(p, hidden):
    before, gallery = cloud(0, 40, "q"), cloud(1, 40, "g")
    after = Embeddings.normalised(
        before.space,
        before.ids,
        before.vectors + 0.2 * np.random.default_rng(3).normal(size=(40, 6)),
        "moved",
    )
    found = rank_biased_overlap(before, after, gallery, classes(40, hidden), k=15, p=p)
    groups = classes(40, hidden)
    for row in range(40):
        lists = []
        for side in (before, after):
            cosine = gallery.vectors @ side.vectors[row]
            order = np.argsort(-cosine, kind="stable")
            seen = [i for i in order if groups.gallery_groups[i] != groups.query_groups[row]]
            lists.append(seen[:15])
        assert found[row] == pytest.approx(overlap_by_definition(*lists, p), abs=1e-9)
    assert 0 < found.min() < found.max() <= 1


def test_the_same_ranking_overlaps_wholly_and_a_disjoint_one_not_at_all():
    gallery = on_circle(0, 10, 180, 190)
    same = rank_biased_overlap(on_circle(5), on_circle(5), gallery, truth(["x"], ["n"] * 4), k=2)
    assert same == pytest.approx([1.0])
    apart = rank_biased_overlap(
        on_circle(5, ids=["a"]), on_circle(185, ids=["a"]), gallery, truth(["x"], ["n"] * 4), k=2
    )
    assert apart == pytest.approx([0.0])


def test_a_persistence_of_one_is_refused():
    with pytest.raises(DataError, match="p lies between 0 and 1, got 1"):
        rank_biased_overlap(on_circle(5), on_circle(5), GALLERY, truth(["x"], NOBODY), p=1.0)


def test_hubness_is_the_skewness_of_how_often_rows_are_found():
    queries, gallery = cloud(0, 60, "q", 2.0), cloud(1, 60, "g", 2.0)
    found = hubness(queries, gallery, classes(60), k=5)
    times = np.zeros(60)
    for row in queries.vectors:
        times[np.argsort(-(gallery.vectors @ row), kind="stable")[:5]] += 1
    moment = ((times - times.mean()) ** 3).mean() / times.std() ** 3
    assert found.skewness == pytest.approx(moment)
    assert found.never == (times == 0).mean()
    assert found.busiest == times.max() / 60
    assert times[gallery.ids.index(found.busiest_id)] == times.max()


def test_where_every_row_is_found_equally_often_there_is_no_hub():
    same = on_circle(0, 90, 180, 270)
    found = hubness(same, same, truth(["x"] * 4, ["y"] * 4), k=1)
    assert (found.skewness, found.never, found.busiest) == (0.0, 0.0, 0.25)


def test_score_scale_compares_the_two_systems_pair_by_pair():
    anchor, gallery = cloud(0, 40, "q", 0.5), cloud(1, 40, "g", 0.5)
    query = cloud(2, 40, "q", 1.5)
    groups = classes(40, hidden=True)
    found = score_scale(query, anchor, gallery, groups, fpr=0.1)
    sides = {"query": ([], []), "anchor": ([], [])}
    for i in range(40):
        for j in range(40):
            if groups.query_groups[i] != groups.gallery_groups[j]:
                right = groups.query_labels[i] == groups.gallery_labels[j]
                for name, side in (("query", query), ("anchor", anchor)):
                    sides[name][not right].append(side.vectors[i] @ gallery.vectors[j])
    same, other = (np.asarray(x) for x in sides["query"])
    own, others = (np.asarray(x) for x in sides["anchor"])
    assert found.same == pytest.approx(same.mean(), abs=1e-6)
    assert found.other == pytest.approx(other.mean(), abs=1e-6)
    assert found.gallery_same == pytest.approx(own.mean(), abs=1e-6)
    assert found.gallery_other == pytest.approx(others.mean(), abs=1e-6)
    assert (others >= found.threshold).mean() <= 0.1
    assert found.gallery_tpr == pytest.approx((own >= found.threshold).mean())
    assert found.tpr == pytest.approx((same >= found.threshold).mean())
    assert found.fpr == pytest.approx((other >= found.threshold).mean())
    # The query model's same-class cosines are lower, so the gallery's threshold is too strict.
    assert found.same < found.gallery_same
    assert found.tpr < found.gallery_tpr
