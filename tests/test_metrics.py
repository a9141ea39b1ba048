"""Every metric against an independent opinion, and what all of them promise."""

from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import hypergeom
from sklearn.metrics import average_precision_score

from hetero import _plugins, metrics
from hetero.errors import ConfigError, DataError
from hetero.metrics import mean, per_query
from hetero.retrieval import Ranks

#: Per query: number of visible rows, and the ranks of the right ones.
Lists = list[tuple[int, list[int]]]


def as_ranks(lists: Lists) -> Ranks:
    lengths = [len(ranks) for _, ranks in lists]
    return Ranks(
        queries=np.arange(len(lists)),
        labels=tuple(f"class {i % 3}" for i in range(len(lists))),
        ranks=np.concatenate([np.array(ranks, np.int64) for _, ranks in lists]),
        starts=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        visible=np.array([visible for visible, _ in lists], np.int64),
        unanswerable=0,
    )


@st.composite
def lists(draw: st.DrawFn) -> Lists:
    found = []
    for _ in range(draw(st.integers(1, 5))):
        visible = draw(st.integers(1, 30))
        ranks = draw(st.sets(st.integers(0, visible - 1), min_size=1, max_size=visible).map(sorted))
        found.append((visible, ranks))
    return found


METRICS = _plugins.names("hetero.metrics")
#: What a metric gives to a query that ranks all right answers first; chance does not look, and
#: precision@k cannot reach 1 with fewer than k right answers.
PERFECT = {name: 1.0 for name in METRICS if name not in ("chance", "precision")}


# -- what every metric promises -----------------------------------------------------------------


@pytest.mark.parametrize("name", PERFECT)
def test_a_metric_says_where_its_definition_stands(name):
    module = _plugins.load("hetero.metrics", name)
    assert re.search(r"\b(Definition|Paper): \w", inspect.getdoc(module) or "")
    assert list(inspect.signature(module.per_query).parameters) == ["ranks", "k"]


@pytest.mark.parametrize("name", METRICS)
@given(lists(), st.integers(1, 40))
def test_a_metric_gives_every_query_a_number_from_0_to_1(name, given_lists, k):
    values = per_query(name, as_ranks(given_lists), k)
    assert values.shape == (len(given_lists),)
    assert values.dtype == np.float64
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("name", METRICS)
@given(lists(), st.integers(1, 40))
def test_a_query_s_value_does_not_depend_on_the_other_queries(name, given_lists, k):
    together = per_query(name, as_ranks(given_lists), k)
    alone = [per_query(name, as_ranks([one]), k)[0] for one in given_lists]
    np.testing.assert_allclose(together, alone, atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
@given(lists(), st.integers(1, 40))
def test_a_metric_does_not_change_what_it_is_given(name, given_lists, k):
    ranks = as_ranks(given_lists)
    for array in (ranks.queries, ranks.ranks, ranks.starts, ranks.visible):
        array.setflags(write=False)
    per_query(name, ranks, k)


@pytest.mark.parametrize("name", PERFECT)
@given(lists(), st.integers(1, 40))
def test_all_right_answers_in_front_is_perfect(name, given_lists, k):
    best = [(visible, list(range(len(ranks)))) for visible, ranks in given_lists]
    np.testing.assert_allclose(per_query(name, as_ranks(best), k), PERFECT[name], atol=1e-12)


@pytest.mark.parametrize("name", METRICS)
@given(lists(), st.integers(1, 40), st.data())
def test_moving_a_right_answer_up_never_hurts(name, given_lists, k, data):
    before = per_query(name, as_ranks(given_lists), k)
    at = data.draw(st.integers(0, len(given_lists) - 1))
    visible, ranks = given_lists[at]
    free = sorted(set(range(max(ranks))) - set(ranks))
    if not free:
        return
    better = sorted([*ranks[:-1], data.draw(st.sampled_from(free))])
    after = per_query(
        name, as_ranks([*given_lists[:at], (visible, better), *given_lists[at + 1 :]]), k
    )
    assert after[at] >= before[at] - 1e-12


def test_an_unknown_metric_lists_those_there_are():
    with pytest.raises(ConfigError, match="recall"):
        per_query("f_score", as_ranks([(3, [0])]))


# -- each by another way ------------------------------------------------------------------------


@given(lists(), st.integers(1, 40))
def test_recall_at_k_asks_for_one_right_answer_among_the_first_k(given_lists, k):
    expected = [float(any(rank in range(k) for rank in ranks)) for _, ranks in given_lists]
    assert per_query("recall", as_ranks(given_lists), k).tolist() == expected


@given(lists())
def test_average_precision_is_scikit_learn_s(given_lists):
    expected = [
        average_precision_score(
            [place in ranks for place in range(visible)], -np.arange(visible, dtype=float)
        )
        for visible, ranks in given_lists
    ]
    np.testing.assert_allclose(
        per_query("average_precision", as_ranks(given_lists)), expected, atol=1e-12
    )


def test_average_precision_by_hand():
    # Right answers in places 1, 3 and 6: (1/1 + 2/3 + 3/6) / 3.
    value = per_query("average_precision", as_ranks([(10, [0, 2, 5])]))
    assert value == pytest.approx([(1 + 2 / 3 + 1 / 2) / 3])


@given(lists(), st.integers(1, 40))
def test_chance_is_the_hypergeometric_distribution_s(given_lists, k):
    expected = [
        hypergeom.sf(0, visible, len(ranks), min(k, visible)) for visible, ranks in given_lists
    ]
    np.testing.assert_allclose(per_query("chance", as_ranks(given_lists), k), expected, atol=1e-9)


def test_chance_is_what_random_rankings_score():
    rng = np.random.default_rng(0)
    shuffled = [(20, sorted(rng.permutation(20)[:3].tolist())) for _ in range(20_000)]
    ranks = as_ranks(shuffled)
    for k in (1, 5):
        scored = per_query("recall", ranks, k).mean()
        assert scored == pytest.approx(per_query("chance", ranks, k).mean(), abs=0.015)


# -- means and their intervals ------------------------------------------------------------------


def test_the_mean_is_over_queries_and_the_interval_around_it():
    values = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    score = mean(values, ["a", "a", "a", "a", "b", "b"])
    assert score.value == pytest.approx(4 / 6)
    assert score.n == 6
    assert score.ci is not None
    assert score.ci[0] <= score.value <= score.ci[1]


def test_the_interval_is_that_of_a_slow_bootstrap_over_classes():
    rng = np.random.default_rng(0)
    labels = [f"c{i}" for i in rng.integers(0, 30, 300)]
    chances = {name: rng.uniform() for name in set(labels)}
    values = np.array([float(rng.uniform() < chances[name]) for name in labels])
    names = sorted(set(labels))
    members = {name: values[[x == name for x in labels]] for name in names}
    means = [
        np.concatenate([members[names[i]] for i in rng.integers(0, len(names), len(names))]).mean()
        for _ in range(4000)
    ]
    score = mean(values, labels)
    np.testing.assert_allclose(score.ci, np.percentile(means, [2.5, 97.5]), atol=0.015)


def test_an_interval_over_classes_is_wider_than_one_that_takes_queries_for_independent():
    labels = [f"c{i // 50}" for i in range(1000)]
    values = np.array([float(int(name[1:]) % 2) for name in labels])
    low, high = mean(values, labels).ci
    independent = 2 * 1.96 * np.sqrt(0.25 / 1000)
    assert high - low > 4 * independent


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        chances = rng.uniform(size=60)
        labels = [str(c) for c in range(60) for _ in range(5)]
        values = (rng.uniform(size=300) < np.repeat(chances, 5)).astype(float)
        low, high = mean(values, labels, resamples=400).ci
        hits += low <= 0.5 <= high
    # 95 % of 200 is 190; fewer than 180 or all 200 come about once in a thousand times.
    assert 180 <= hits < 200


def test_equal_input_gives_equal_intervals_and_another_seed_another():
    rng = np.random.default_rng(0)
    values, labels = rng.uniform(size=100), [str(i % 20) for i in range(100)]
    assert mean(values, labels) == mean(values, labels)
    assert mean(values, labels, seed=1) != mean(values, labels)


@given(st.permutations(range(12)))
def test_the_order_of_queries_does_not_matter_to_the_mean(order):
    values, labels = np.arange(12) / 12, [f"c{i % 4}" for i in range(12)]
    one = mean(values, labels)
    other = mean(values[list(order)], [labels[i] for i in order])
    assert other.value == pytest.approx(one.value)
    assert other.ci == pytest.approx(one.ci)


def test_one_class_has_a_mean_but_no_interval():
    assert mean(np.array([0.0, 1.0]), ["a", "a"]) == metrics.Score(0.5, None, 2)


def test_values_that_are_all_equal_have_an_interval_of_no_width():
    assert mean(np.ones(4), ["a", "a", "b", "b"]) == metrics.Score(1.0, (1.0, 1.0), 4)


@pytest.mark.parametrize("labels", [[], ["a"]])
def test_a_mean_of_nothing_or_of_strangers_is_refused(labels):
    values = np.ones(0 if not labels else 2)
    with pytest.raises(DataError, match="undefined"):
        mean(values, labels)


# -- precision and its kin ------------------------------------------------------------------------

#: Right answers on places 1, 3 and 6 of 10; and on places 2 and 3 of 5.
BY_HAND: Lists = [(10, [0, 2, 5]), (5, [1, 2])]


@pytest.mark.parametrize(
    ("name", "k", "expected"),
    [
        ("precision", 1, [1, 0]),
        ("precision", 3, [2 / 3, 2 / 3]),
        ("precision", 6, [3 / 6, 2 / 6]),
        ("r_precision", 0, [2 / 3, 1 / 2]),
        ("map_at_r", 0, [(1 + 2 / 3) / 3, (1 / 2) / 2]),
        ("cmc", 1, [1, 0]),
        ("cmc", 2, [1, 1]),
    ],
)
def test_precision_and_its_kin_by_hand(name, k, expected):
    np.testing.assert_allclose(per_query(name, as_ranks(BY_HAND), k), expected)


def test_precision_at_nothing_is_refused():
    with pytest.raises(ConfigError, match="k of at least 1, got 0"):
        per_query("precision", as_ranks(BY_HAND), 0)


def test_a_match_curve_is_the_cmc_at_every_k():
    from hetero.metrics.cmc import curve

    ranks = as_ranks([*BY_HAND, (40, [37])])
    expected = [per_query("cmc", ranks, k).mean() for k in range(1, 41)]
    np.testing.assert_allclose(curve(ranks, 40), expected)
    assert (np.diff(curve(ranks, 40)) >= 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_r_precision_and_map_at_r_are_pytorch_metric_learnings(seed):
    torch = pytest.importorskip("torch")
    tools = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    inference = pytest.importorskip("pytorch_metric_learning.utils.inference")
    from hetero import Embeddings, Space, Truth, rank

    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 50)
    made = Embeddings.normalised(
        Space("toy", "0" * 64, 5), [f"i{i}" for i in range(50)], rng.normal(size=(50, 5)), "toy"
    )
    names = tuple(f"c{x}" for x in labels)
    ranks = rank(made, made, Truth(names, made.ids, names, made.ids))
    calculator = tools.AccuracyCalculator(
        include=("r_precision", "mean_average_precision_at_r", "precision_at_1"),
        k="max_bin_count",
        knn_func=inference.CustomKNN(
            __import__("pytorch_metric_learning.distances", fromlist=["x"]).CosineSimilarity()
        ),
    )
    theirs = calculator.get_accuracy(
        torch.from_numpy(made.vectors.copy()), torch.from_numpy(labels)
    )
    for ours, name in (
        ("r_precision", "r_precision"),
        ("map_at_r", "mean_average_precision_at_r"),
        ("precision", "precision_at_1"),
    ):
        assert per_query(ours, ranks, 1).mean() == pytest.approx(theirs[name], abs=1e-6)
