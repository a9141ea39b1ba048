from __future__ import annotations

import numpy as np
import pytest

from hetero.errors import DataError
from hetero.metrics import mean
from hetero.slices import by_brightness, by_size, by_slice, terciles


def outcomes(seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Three slices of 200, 100 and 8 queries that are right 9, 5 and 1 times in 10."""
    rng = np.random.default_rng(seed)
    names = ["day"] * 200 + ["night"] * 100 + ["fog"] * 8
    chance = {"day": 0.9, "night": 0.5, "fog": 0.1}
    values = np.asarray([float(rng.random() < chance[n]) for n in names])
    return values, [f"c{i % 25}" for i in range(len(names))], names


def test_each_slice_has_the_mean_of_its_queries_and_few_queries_are_left_out() -> None:
    values, classes, names = outcomes()
    found = by_slice(values, classes, names)
    assert found.left_out == ("fog",)
    assert list(found.scores) == ["day", "night"]
    assert found.scores["night"].value == pytest.approx(values[200:300].mean())
    assert found.scores["night"].n == 100
    assert found.worst == "night"
    assert by_slice(values, classes, names, min_n=8).worst == "fog"


def test_intervals_of_several_slices_are_wider_than_that_of_one() -> None:
    values, classes, names = outcomes()
    alone = mean(values[200:300], classes[200:300]).ci
    among = by_slice(values, classes, names).scores["night"].ci
    assert alone is not None
    assert among is not None
    assert among[0] < alone[0] < alone[1] < among[1]
    again = mean(values[200:300], classes[200:300], confidence=0.975).ci
    assert among == pytest.approx(again, abs=0.01)


def test_the_worst_slice_is_the_one_known_to_be_bad_not_the_unlucky_one() -> None:
    # 12 queries, 4 right: could be anything up to a half or more. 400 queries, 40 %: surely bad.
    values = np.asarray([1.0] * 4 + [0.0] * 8 + [1.0, 0.0, 0.0, 1.0, 0.0] * 80)
    classes = [f"a{i}" for i in range(12)] + [f"b{i % 40}" for i in range(400)]
    names = ["few"] * 12 + ["many"] * 400
    found = by_slice(values, classes, names, min_n=10)
    assert found.scores["few"].value < found.scores["many"].value
    assert found.worst == "many"


def test_lengths_and_empty_slices_are_refused() -> None:
    with pytest.raises(DataError, match="2 values, 2 classes, 1 slice names"):
        by_slice(np.ones(2), ["a", "b"], ["x"])
    with pytest.raises(DataError, match="none of 1 slices has 30 queries"):
        by_slice(np.ones(2), ["a", "b"], ["x", "x"])


def test_brightness_and_size_fall_into_thirds() -> None:
    grey = np.stack([np.full((4, 4, 3), v, np.uint8) for v in (10, 240, 120, 20, 130, 250)])
    assert by_brightness(grey) == ("dark", "bright", "medium", "dark", "medium", "bright")
    # Green looks brighter than blue.
    colours = np.zeros((3, 2, 2, 3), np.uint8)
    colours[0, ..., 2], colours[1, ..., 0], colours[2, ..., 1] = 255, 255, 255
    assert by_brightness(colours) == ("dark", "medium", "bright")
    assert by_size([(10, 10), (100, 100), (30, 40)]) == ("small", "large", "medium")


def test_equal_values_are_in_one_third() -> None:
    assert set(terciles(np.ones(9), ("a", "b", "c"))) == {"a"}


def test_a_slice_of_one_class_has_an_interval_over_its_queries() -> None:
    values = np.asarray([1.0, 0.0] * 50 + [1.0, 1.0, 1.0, 0.0] * 25)
    classes = ["x"] * 100 + ["y"] * 100
    found = by_slice(values, classes, classes)
    assert found.worst == "x"
    for name, chance in (("x", 0.5), ("y", 0.75)):
        low, high = found.scores[name].ci or (0.0, 0.0)
        # Two slices at once: about 2.24 standard errors to either side.
        half = 2.24 * np.sqrt(chance * (1 - chance) / 100)
        assert low == pytest.approx(chance - half, abs=0.02)
        assert high == pytest.approx(chance + half, abs=0.02)


def test_a_slice_that_is_always_right_is_not_known_to_be_perfect() -> None:
    values = np.asarray([1.0] * 40 + [0.0] * 40)
    classes = [f"c{i % 10}" for i in range(40)] + [f"d{i}" for i in range(40)]
    found = by_slice(values, classes, ["all"] * 40 + ["none"] * 40)
    # Ten classes, none wrong: the lower end solves p ** 10 = 0.0125; forty: (1 - p) ** 40 = 0.0125.
    assert found.scores["all"].ci == pytest.approx((0.0125**0.1, 1.0))
    assert found.scores["none"].ci == pytest.approx((0.0, 1 - 0.0125 ** (1 / 40)))
    assert found.worst == "none"
