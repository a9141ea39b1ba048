"""Search and ranks against slow loops, other people's libraries, and what must not matter."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from geometry import embeddings, on_circle, space, truth
from hypothesis import assume, example, given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from hetero import _ahead, retrieval
from hetero._ahead import count
from hetero.errors import DataError, SpaceMismatchError
from hetero.retrieval import (
    TIE,
    Ranks,
    Truth,
    pairwise_cosine,
    rank,
    search,
)
from hetero.space import Embeddings


def slow_rank(queries: Embeddings, gallery: Embeddings, answers: Truth) -> dict[int, list[int]]:
    """Query row -> ranks of its right answers, by definition and one pair at a time."""
    found = {}
    for q in range(len(queries)):
        visible = [
            g for g in range(len(gallery)) if answers.gallery_groups[g] != answers.query_groups[q]
        ]
        score = {
            g: float(np.dot(queries.vectors[q].astype(float), gallery.vectors[g].astype(float)))
            for g in visible
        }
        right = [g for g in visible if answers.gallery_labels[g] == answers.query_labels[q]]
        wrong = [g for g in visible if g not in right]
        right.sort(key=lambda g: -score[g])
        ranks = [
            place + sum(score[w] >= score[g] - TIE for w in wrong) for place, g in enumerate(right)
        ]
        if ranks:
            found[q] = ranks
    return found


def as_dict(ranks: Ranks) -> dict[int, list[int]]:
    return {int(q): ranks.of(at).tolist() for at, q in enumerate(ranks.queries)}


def task(
    seed: int, n_queries: int = 12, n_gallery: int = 40, classes: int = 5, groups: int = 6
) -> tuple[Embeddings, Embeddings, Truth]:
    """Rows around class centres; some queries without an answer, some answers hidden."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, 8))
    labels = [rng.integers(0, classes, n) for n in (n_queries, n_gallery)]
    q, g = (
        embeddings(centres[x] + 1.5 * rng.normal(size=(len(x), 8)), prefix)
        for x, prefix in zip(labels, "qg", strict=True)
    )
    names = [tuple(f"class {i}" for i in x) for x in labels]
    teams = [
        tuple(f"group {i}" for i in rng.integers(0, groups, n)) for n in (n_queries, n_gallery)
    ]
    return q, g, Truth(names[0], teams[0], names[1], teams[1])


# -- ranks --------------------------------------------------------------------------------------


def test_ranks_on_a_circle_are_those_one_can_see():
    # From 0 degrees the gallery is seen in the order 10 (b), 20 (a), 40 (b), 50 (a).
    found = rank(on_circle(0), on_circle(20, 10, 50, 40), truth(["a"], ["a", "b", "a", "b"]))
    assert as_dict(found) == {0: [1, 3]}
    assert found.best.tolist() == [1]
    assert found.visible.tolist() == [4]
    assert found.labels == ("a",)
    assert found.unanswerable == 0


@given(st.integers(0, 10**6))
def test_ranks_are_those_of_a_slow_loop(seed):
    q, g, answers = task(seed)
    # Two similarities whose difference is that of a tie to the last bits of a float32 product may
    # be seen as either.
    exact = q.vectors.astype(float) @ g.vectors.astype(float).T
    gaps = np.abs(exact[:, :, None] - exact[:, None, :])
    assume(not ((gaps > 0.5 * TIE) & (gaps < 1.5 * TIE)).any())
    expected = slow_rank(q, g, answers)
    found = rank(q, g, answers)
    assert as_dict(found) == expected
    assert found.unanswerable == len(q) - len(expected)
    for at, row in enumerate(found.queries):
        hidden = answers.gallery_groups.count(answers.query_groups[row])
        assert found.visible[at] == len(g) - hidden
        assert found.labels[at] == answers.query_labels[row]


def test_many_right_answers_are_ranked_as_a_slow_loop_does():
    q, g, answers = task(3, n_queries=3, n_gallery=600, classes=2)
    assert as_dict(rank(q, g, answers)) == slow_rank(q, g, answers)


def test_queries_looked_at_side_by_side_are_those_of_a_slow_loop(monkeypatch):
    monkeypatch.setattr(_ahead, "LARGE", 100)
    monkeypatch.setattr(_ahead, "cores", lambda: 3)
    q, g, answers = task(5, n_queries=40, n_gallery=300, classes=4, groups=9)
    # Four blocks, the last of them not full.
    monkeypatch.setattr(_ahead, "HIGH", 12)
    seen: list[int] = []
    found = rank(q, g, answers, on_rows=seen.append)
    assert seen == [12, 12, 12, 4]
    assert as_dict(found) == slow_rank(q, g, answers)


def test_what_is_not_begun_is_left_when_a_search_for_ranks_is_interrupted(monkeypatch):
    monkeypatch.setattr(_ahead, "LARGE", 100)
    monkeypatch.setattr(_ahead, "HIGH", 1)
    begun: list[int] = []
    ahead = retrieval.ahead

    def counted(*of):
        begun.append(1)
        time.sleep(0.05)
        return ahead(*of)

    monkeypatch.setattr(retrieval, "ahead", counted)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rank(*task(5, n_queries=200, n_gallery=300), on_rows=stop)
    assert len(begun) < 190


@pytest.mark.parametrize("wide", [1, 7, 100, 299, 300])
@pytest.mark.parametrize("few", [0, 1000])
def test_a_gallery_looked_at_part_by_part_is_that_of_a_slow_loop(monkeypatch, wide, few):
    monkeypatch.setattr(_ahead, "WIDE", wide)
    monkeypatch.setattr(_ahead, "WAITING", 50)
    monkeypatch.setattr(_ahead, "FEW", few)
    q, g, answers = task(6, n_queries=20, n_gallery=300, classes=4, groups=9)
    assert as_dict(rank(q, g, answers)) == slow_rank(q, g, answers)
    assert as_dict(rank(q, g, answers, block_mib=3 * 6 * wide * 4 / 2**20)) == slow_rank(
        q, g, answers
    )


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("answers", [0, 1, 2, 33])
@pytest.mark.parametrize("scores", [0, 1, 2000])
def test_what_is_ahead_is_counted_as_by_a_slow_loop(monkeypatch, answers, scores, few):
    monkeypatch.setattr(_ahead, "FEW", few)
    rng = np.random.default_rng(answers)
    # Few different values, so that there are ties.
    reach, seen = (rng.choice(np.float32([-0.5, 0, 0.25, 0.5, 0.75]), n) for n in (answers, scores))
    reach.sort()
    expected = [sum(bool(score >= low) for score in seen) for low in reach]
    assert count(seen, reach).tolist() == expected


@pytest.mark.parametrize("jitter", [0, 1e-8, 1e-7])
def test_a_model_that_maps_everything_to_one_point_finds_nothing(jitter):
    rng = np.random.default_rng(0)
    same = embeddings(rng.normal(size=64) + jitter * rng.normal(size=(300, 64)))
    labels = tuple(str(i // 3) for i in range(300))
    found = rank(same, same, Truth(labels, same.ids, labels, same.ids))
    # 299 are visible, 2 are right, and the 297 others are all ahead.
    assert found.best.tolist() == [297] * 300
    assert as_dict(found)[0] == [297, 298]


@given(st.integers(0, 10**6), st.integers(1, 5))
@example(34, 1)  # two right rows nearer to each other than the tolerance
def test_a_wrong_row_that_equals_the_right_one_is_ahead_of_it(seed, copies):
    q, g, answers = task(seed, groups=10**6)
    # Every gallery row again, as something that nobody looks for.
    doubled = embeddings(np.concatenate([g.vectors] * (1 + copies)))
    more = len(g) * copies
    asked = Truth(
        answers.query_labels,
        answers.query_groups,
        (*answers.gallery_labels, *["nothing"] * more),
        (*answers.gallery_groups, *[f"copy {i}" for i in range(more)]),
    )
    after = as_dict(rank(q, doubled, asked))
    assert after == slow_rank(q, doubled, asked)
    for row, ranks in as_dict(rank(q, g, answers)).items():
        # Ahead of the right answer of rank r stood r rows; they and it now come 1 + copies times,
        # or more where a right row behind it is as near as makes no difference.
        for r, now in zip(ranks, after[row], strict=True):
            assert now >= r + copies * (r + 1)


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_gallery_rows_does_not_matter(seed, random):
    q, g, answers = task(seed)
    order = list(range(len(g)))
    random.shuffle(order)
    shuffled = g.take([g.ids[i] for i in order])
    again = Truth(
        answers.query_labels,
        answers.query_groups,
        tuple(answers.gallery_labels[i] for i in order),
        tuple(answers.gallery_groups[i] for i in order),
    )
    assert as_dict(rank(q, shuffled, again)) == as_dict(rank(q, g, answers))


@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_the_order_of_queries_does_not_matter(seed, random):
    q, g, answers = task(seed)
    order = list(range(len(q)))
    random.shuffle(order)
    shuffled = q.take([q.ids[i] for i in order])
    again = Truth(
        tuple(answers.query_labels[i] for i in order),
        tuple(answers.query_groups[i] for i in order),
        answers.gallery_labels,
        answers.gallery_groups,
    )
    before = as_dict(rank(q, g, answers))
    after = as_dict(rank(shuffled, g, again))
    assert {order[row]: ranks for row, ranks in after.items()} == before


@given(st.integers(0, 10**6))
def test_turning_the_whole_space_does_not_matter(seed):
    q, g, answers = task(seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(8, 8)))
    turned = rank(embeddings(q.vectors @ turn), embeddings(g.vectors @ turn), answers)
    assert as_dict(turned) == as_dict(rank(q, g, answers))


@pytest.mark.parametrize("block_mib", [1e-9, 0.0004, 0.003, 1, 1000])
def test_the_size_of_a_memory_block_does_not_matter(block_mib):
    q, g, answers = task(0, n_queries=50, n_gallery=100)
    assert as_dict(rank(q, g, answers, block_mib=block_mib)) == slow_rank(q, g, answers)
    rows, values = search(q, g, 10, truth=answers, block_mib=block_mib)
    whole_rows, whole_values = search(q, g, 10, truth=answers)
    assert np.array_equal(rows, whole_rows)
    np.testing.assert_allclose(values, whole_values, atol=1e-6)


@pytest.mark.parametrize("what", [rank, search])
def test_the_memory_for_similarities_is_bounded_by_the_setting(what):
    q, g, answers = task(0, n_queries=1000, n_gallery=20_000, classes=4000)
    whole = 1000 * 20_000 * 4
    bound = whole // 40
    arguments = (answers,) if what is rank else (5,)
    tracemalloc.start()
    what(q, g, *arguments, block_mib=bound / 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bound / 2 < peak < 2 * bound  # row numbers of labels and groups come on top


def test_progress_counts_every_query_once():
    q, g, answers = task(0, n_queries=50, n_gallery=100)
    done = []
    rank(q, g, answers, block_mib=0.003, on_rows=done.append)
    assert len(done) > 1
    assert sum(done) == 50


def test_an_answer_of_the_query_s_own_group_is_hidden_and_takes_no_place():
    q, g = on_circle(0), on_circle(1, 2, 3)
    answers = truth(["a"], ["a", "b", "a"], ["mine"], ["mine", "mine", "other"])
    found = rank(q, g, answers)
    assert as_dict(found) == {0: [0]}
    assert found.visible.tolist() == [1]


def test_queries_without_an_answer_are_left_out_and_counted():
    q, g = on_circle(0, 10, 20), on_circle(0, 10)
    answers = truth(["a", "zebra", "b"], ["a", "b"], ["1", "2", "mine"], ["x", "mine"])
    found = rank(q, g, answers)
    assert found.queries.tolist() == [0]
    assert found.unanswerable == 2


def test_no_query_with_an_answer_is_an_error_that_says_what_is_needed():
    with pytest.raises(DataError, match="no query has a right answer"):
        rank(on_circle(0), on_circle(0), truth(["a"], ["b"]))


def test_vectors_of_two_spaces_cannot_be_searched():
    strange = on_circle(0).pretend_in(space(2, "d", "theirs"))
    with pytest.raises(SpaceMismatchError, match="theirs"):
        rank(strange, on_circle(0), truth(["a"], ["a"]))
    with pytest.raises(SpaceMismatchError, match="theirs"):
        search(strange, on_circle(0), 1)
    with pytest.raises(SpaceMismatchError, match="theirs"):
        pairwise_cosine(on_circle(0), strange)


def test_a_truth_of_another_size_is_refused():
    for what in (
        lambda t: rank(on_circle(0), on_circle(0, 1), t),
        lambda t: search(on_circle(0), on_circle(0, 1), 1, truth=t),
    ):
        with pytest.raises(DataError, match="truth is for 1 queries and 1 gallery rows"):
            what(truth(["a"], ["a"]))
    with pytest.raises(DataError, match="1 query labels and 2 groups"):
        truth(["a"], ["a"], ["1", "2"])
    with pytest.raises(DataError, match="at least one row"):
        truth(["a"], [])


# -- search -------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_search_is_a_stable_sort_of_all_similarities(seed, k, with_truth):
    q, g, answers = task(seed)
    rows, values = search(q, g, k, truth=answers if with_truth else None)
    similar = q.vectors @ g.vectors.T
    if with_truth:
        hidden = np.equal.outer(np.array(answers.query_groups), np.array(answers.gallery_groups))
        similar[hidden] = -np.inf
    k = min(k, len(g))
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(similar, order, axis=1)
    order[np.isneginf(best)] = -1
    assert np.array_equal(rows, order)
    np.testing.assert_allclose(values, best, atol=1e-6)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(1, 20))
def test_of_equal_rows_the_first_come_first(angles, k):
    # Cosines with the query at 0 degrees are exact here: only a few values, many times each.
    g = on_circle(*[90 * a for a in angles])
    rows, _ = search(on_circle(0), g, k)
    similar = g.vectors @ on_circle(0).vectors[0]
    expected = sorted(range(len(angles)), key=lambda r: (-similar[r], r))[:k]
    assert rows[0].tolist() == expected


def test_search_finds_what_faiss_finds():
    faiss = pytest.importorskip("faiss", reason="needs the extra 'faiss'")
    rng = np.random.default_rng(0)
    q, g = embeddings(rng.normal(size=(50, 32))), embeddings(rng.normal(size=(5000, 32)))
    index = faiss.IndexFlatIP(32)
    index.add(np.array(g.vectors))
    values, rows = index.search(np.array(q.vectors), 10)
    ours, similar = search(q, g, 10)
    np.testing.assert_allclose(similar, values, atol=1e-6)
    assert np.array_equal(ours, rows)


def test_a_search_for_nothing_or_among_nothing_is_refused():
    with pytest.raises(DataError, match="at least 1"):
        search(on_circle(0), on_circle(0), 0)
    with pytest.raises(DataError, match="at least 1"):
        search(on_circle(0), embeddings(np.empty((0, 2))).pretend_in(on_circle(0).space), 3)


# -- ranks are enough: other people's metrics from them -----------------------------------------


def test_average_precision_from_ranks_is_scikit_learn_s():
    q, g, answers = task(5, n_queries=30, n_gallery=200)
    found = rank(q, g, answers)
    for at, row in enumerate(found.queries):
        visible = np.array(answers.gallery_groups) != answers.query_groups[row]
        right = np.array(answers.gallery_labels)[visible] == answers.query_labels[row]
        scores = (g.vectors @ q.vectors[row])[visible]
        ranks = found.of(at)
        ours = np.mean((np.arange(len(ranks)) + 1) / (ranks + 1))
        assert ours == pytest.approx(average_precision_score(right, scores), abs=1e-12)


def test_precision_at_1_and_mean_average_precision_are_pytorch_metric_learning_s():
    torch = pytest.importorskip("torch", reason="needs the extra 'train'")
    calculator = pytest.importorskip(
        "pytorch_metric_learning.utils.accuracy_calculator", reason="needs the extra 'dev'"
    )
    knn = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    q, g, answers = task(7, n_queries=60, n_gallery=150, groups=10**6)
    found = rank(q, g, answers)
    numbers = {name: i for i, name in enumerate(sorted(set(answers.gallery_labels)))}
    theirs = calculator.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision"),
        k=len(g),
        knn_func=knn.CustomKNN(distances.CosineSimilarity()),
        device=torch.device("cpu"),
    ).get_accuracy(
        torch.tensor(q.vectors),
        torch.tensor([numbers[x] for x in answers.query_labels]),
        torch.tensor(g.vectors),
        torch.tensor([numbers[x] for x in answers.gallery_labels]),
    )
    assert found.unanswerable == 0
    assert np.mean(found.best == 0) == pytest.approx(theirs["precision_at_1"])
    precision = [
        np.mean((np.arange(len(r)) + 1) / (np.array(r) + 1)) for r in as_dict(found).values()
    ]
    assert np.mean(precision) == pytest.approx(theirs["mean_average_precision"], abs=1e-6)


# -- cosine -------------------------------------------------------------------------------------


def test_cosines_go_by_id_and_not_by_position():
    ours = on_circle(0, 90, 180, ids=["a", "b", "c"])
    theirs = on_circle(180, 0, 150, ids=["c", "a", "b"])
    assert pairwise_cosine(ours, theirs) == pytest.approx([1, 0.5, 1])
    with pytest.raises(DataError, match="first 'b'"):
        pairwise_cosine(ours, on_circle(0, ids=["a"]))


def test_a_cosine_is_never_above_one():
    rng = np.random.default_rng(0)
    made = embeddings(rng.normal(size=(500, 7)))
    cosine = pairwise_cosine(made, made)
    assert cosine.max() <= 1.0
    np.testing.assert_allclose(cosine, 1, atol=1e-6)
