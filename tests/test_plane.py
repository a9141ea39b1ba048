"""Vectors on a plane: principal components, who is shown, the file, the picture."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sample_report import diagnosis, passing, plane
from test_check import CLEAR, MIXED, TASK, a_reference, vectors

from hetero.check import Place
from hetero.errors import BundleError, DataError
from hetero.plane import Plane, components, lay

HERE = Place("local", "onnx", "int8")


def test_components_are_the_eigenvectors_of_the_covariance():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50, 7)) @ rng.normal(size=(7, 7)) + 3
    centre, axes, shares = components(rows)
    values, vectors_ = np.linalg.eigh(np.cov(rows.T))
    assert np.allclose(centre, rows.mean(0))
    assert np.allclose(shares, values[::-1][:2] / values.sum())
    for axis, expected in zip(axes, vectors_.T[::-1], strict=False):
        assert abs(float(axis @ expected)) == pytest.approx(1)
        assert axis[np.abs(axis).argmax()] > 0


def test_rows_that_are_all_alike_show_nothing_and_break_nothing():
    _, axes, shares = components(np.ones((4, 3)))
    assert shares == (0.0, 0.0)
    assert np.isfinite(axes).all()


def test_in_two_dimensions_the_plane_is_the_space_itself():
    made = lay(a_reference(), HERE, vectors(MIXED, turned=5))
    assert made is not None
    assert sum(made.shares) == pytest.approx(1)
    spots = {s.id: (s.x, s.y) for s in made.gallery}
    true = dict(zip(CLEAR, vectors(CLEAR).vectors, strict=True))
    for a in TASK.gallery_ids:
        for b in TASK.gallery_ids:
            drawn = np.hypot(*np.subtract(spots[a], spots[b]))
            assert drawn == pytest.approx(np.linalg.norm(true[a] - true[b]), abs=1e-4)


def test_a_query_that_lost_its_answer_is_marked_and_its_class_comes_first():
    # By PyTorch, qb1 at 85 finds its class; turned by 50 degrees to the left it finds a's.
    before = dict(zip(CLEAR, (1, 2, 91, 85, 0, 4, 90, 94), strict=True))
    after = {**before, "qb1": 10}
    made = lay(a_reference(before), HERE, vectors(after))
    assert made is not None
    assert made.classes == ("b", "a")
    found = {q.before.id: (q.was_right, q.is_right) for q in made.queries}
    assert found["qb1"] == (True, False)
    assert found["qa0"] == (True, True)
    assert set(found) == set(TASK.query_ids)


def test_a_plane_comes_back_from_its_file_and_a_torn_one_is_refused(tmp_path):
    made, path = plane(), tmp_path / "plane.json"
    made.save(path)
    assert Plane.load(path) == made
    whole = json.loads(path.read_text())
    for wrong in (
        {"schema": "hetero.plane/9"},
        {"shares": [0.9, 0.9]},
        {"shares": None},
        {"classes": whole["classes"][:3]},
        {"gallery": [["x", -1, 0.0, 0.0]]},
        {"gallery": [["x", 0, float("nan"), 0.0]]},
        {"queries": [["x", 0, 0.0]]},
    ):
        path.write_text(json.dumps(whole | wrong))
        with pytest.raises(BundleError, match=r"plane\.json"):
            Plane.load(path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(BundleError):
        Plane.load(path)
    with pytest.raises(DataError):
        replace(made, classes=("one",))


def test_numbers_on_the_picture_are_pushed_apart():
    pytest.importorskip("matplotlib")
    from hetero.render._plane import apart

    places = np.array([[0.0, 0.0], [0.0, 0.0], [3.0, 0.0], [100.0, 0.0]])
    out = apart(places, 20.0)
    distances = [np.hypot(*(a - b)) for i, a in enumerate(out) for b in out[:i]]
    assert min(distances) >= 20 - 1e-3
    assert np.allclose(out[3], places[3])


def test_the_page_takes_what_lies_beside_the_report_if_it_is_of_the_same_model(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    pytest.importorskip("junitparser")
    from hetero.render import write_all

    model = "mobilenet, weights 777777777777"
    made = replace(passing(), facts={**passing().facts, "query model": model})
    check = tmp_path / "check"
    write_all(made, check)
    bare = (check / "report.html").read_text()
    assert "Map of the vectors" not in bare
    # Without a diagnosis the page says how to get one, for the file that moved most.
    assert "hetero diagnose QUERY --gallery GALLERY --file onnx:int8" in bare
    plane().save(check / "plane.json")
    (tmp_path / "diagnose").mkdir()
    beside = tmp_path / "diagnose" / "diagnosis.json"
    beside.write_text(json.dumps(diagnosis("another, weights 000000000000")))
    write_all(made, check)
    page = (check / "report.html").read_text()
    assert "keeps 48\u00a0% of the variance" in page
    assert "▼ 3 of 4" in page
    assert "blue and red are exchanged" not in page
    beside.write_text(json.dumps(diagnosis(model)))
    write_all(made, check)
    assert "blue and red are exchanged" in (check / "report.html").read_text()
    (check / "diagnosis.json").write_text("{")
    with pytest.raises(BundleError, match=r"diagnosis\.json"):
        write_all(made, check)
