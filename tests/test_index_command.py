"""`hetero index`: build, search, recall; in the numbers of an index that is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry import CIRCLE, on_circle, space

from hetero import cli, index
from hetero.errors import DataError
from hetero.index import Found
from hetero.progress import Reporter
from hetero.space import Embeddings
from hetero.stages import indexing

pytest.importorskip("faiss", reason="needs the extra 'index'")

SPACE = space(16)
QUIET = Reporter(quiet=True)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Calls the command line in the test's folder: code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hetero", "index", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out = capsys.readouterr()
        return int(left.value.code or 0), out.out, out.err

    return call


def rows(count: int, seed: int, prefix: str = "", made_by: str = "by hand") -> Embeddings:
    random = np.random.default_rng(seed)
    ids = [f"{prefix}{i}" for i in range(count)]
    return Embeddings.normalised(SPACE, ids, random.standard_normal((count, 16)), made_by)


def test_what_is_built_is_searched(run, tmp_path):
    on_circle(0, 30, 90, ids=["a", "b", "c"]).save(tmp_path / "one")
    on_circle(31, 180, ids=["d", "e"]).save(tmp_path / "two")
    on_circle(29, 179, ids=["q", "r"]).save(tmp_path / "asked")
    code, out, _ = run("build", "exact:ix", "one", "two", "--json")
    assert (code, json.loads(out)["rows"], json.loads(out)["made"]) == (0, 5, True)
    code, out, _ = run("search", "exact:ix", "asked", "-k", "2", "-o", "found.json")
    assert (code, out) == (
        0,
        "q\n   1  1.000  b\n   2  0.999  d\nr\n   1  1.000  e\n   2  0.017  c\n",
    )
    found = json.loads((tmp_path / "found.json").read_text())["found"]
    assert found["q"][1] == {"id": "d", "cosine": round(float(np.cos(np.radians(2))), 6)}


def test_more_rows_come_into_an_index_and_replace_only_if_they_are_told_to(run, tmp_path):
    on_circle(0, 30, ids=["a", "b"]).save(tmp_path / "one")
    on_circle(90, 60, ids=["b", "c"]).save(tmp_path / "two")
    on_circle(90, ids=["q"]).save(tmp_path / "asked")
    assert run("build", "exact:ix", "one")[0] == 0
    code, _, said = run("build", "exact:ix", "two")
    assert code == 2
    assert "exact index ix: 1 of 2 ids are in the index already, first 'b'" in said
    assert "--replace" in said
    assert run("search", "exact:ix", "asked")[1] == "q\n   1  0.500  b\n   2  0.000  a\n"
    assert "3 rows" in run("build", "exact:ix", "two", "--replace", "-q")[1]
    assert (
        run("search", "exact:ix", "asked")[1]
        == "q\n   1  1.000  b\n   2  0.866  c\n   3  0.000  a\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "exact:ix", "asked", "--set", "x=1"], "there already, with its settings"),
        (["build", "hnsw:new", "asked", "--set", "x=1"], "no setting 'x'"),
        (["build", "hnsw:new", "asked", "--set", "x"], "write KEY=VALUE"),
        (["build", "exact:ix", "strange"], "cannot be compared"),
        (["build", "exact:ix", "nothing"], "cannot be read as embeddings"),
        (["search", "exact:ix", "strange"], "cannot be compared"),
        (["search", "exact:none", "asked"], "no index here"),
        (["search", "exact:ix", "asked", "--effort", "5"], "no effort to set"),
        (["search", "exact:ix", "asked", "--newer", "exact:none"], "no index here"),
        (["recall", "exact:ix", "asked", "--exact", "exact:ix", "--efforts", "0"], "from 1 on"),
        (["recall", "exact:ix", "asked", "--exact", "exact:ix", "--efforts", "a"], "numbers"),
        (["recall", "exact:ix", "asked", "--exact", "hnsw:graph"], "approximate itself"),
        (["recall", "exact:ix", "asked", "--exact", "exact:less"], "same gallery"),
        (["recall", "exact:ix", "strange", "--exact", "exact:ix"], "cannot be compared"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(run, tmp_path, words, says):
    on_circle(0, 30, ids=["a", "b"]).save(tmp_path / "one")
    on_circle(0, ids=["c"]).save(tmp_path / "asked")
    on_circle(0, ids=["d"]).pretend_in(space(2, "d")).save(tmp_path / "strange")
    for made, of in (("exact:ix", "one"), ("hnsw:graph", "one"), ("exact:less", "asked")):
        assert run("build", made, of, "-q")[0] == 0
    code, _, said = run(*words)
    assert code == 2
    assert says in said.splitlines()[-1]
    assert "Traceback" not in said


def test_two_generations_are_searched_as_one(run, tmp_path):
    on_circle(0, 20, 40, ids=["a", "b", "c"]).save(tmp_path / "old")
    on_circle(90, ids=["a"]).save(tmp_path / "new")
    on_circle(0, 90, ids=["q", "r"]).save(tmp_path / "asked")
    run("build", "exact:before", "old", "-q")
    run("build", "exact:after", "new", "-q")
    found = run("search", "exact:before", "asked", "--newer", "exact:after", "-k", "2")[1]
    assert found == "q\n   1  0.940  b\n   2  0.766  c\nr\n   1  1.000  a\n   2  0.643  c\n"


# -- recall ---------------------------------------------------------------------------------------


def found(*lines: dict[str, float]) -> Found:
    """A result by hand."""
    width = max(map(len, lines))
    scores = np.full((len(lines), width), -np.inf, np.float32)
    for row, line in enumerate(lines):
        scores[row, : len(line)] = list(line.values())
    return Found(tuple(tuple(line) for line in lines), scores)


def test_recall_is_the_share_of_the_nearest_rows_that_was_found():
    exact = found(
        {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6},
        {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6},
        {"a": 0.9, "b": 0.8, "c": 0.8, "d": 0.6},
    )
    ours = found({"a": 0.9, "c": 0.7}, {"d": 0.6}, {"a": 0.9, "c": 0.8})
    # In the third, "c" is as near as the second nearest.
    assert indexing.shares(ours, exact, 2).tolist() == [0.5, 0.0, 1.0]
    assert indexing.shares(ours, exact, 9).tolist() == [0.5, 0.25, 0.5]
    with pytest.raises(DataError, match="empty"):
        indexing.shares(Found(((),), np.empty((1, 0), np.float32)), found({}), 1)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str, Embeddings]:
    """A sparse graph and an exact index of 800 rows, and those rows."""
    gallery = rows(800, 0)
    specs = f"hnsw:{tmp_path / 'graph'}", f"exact:{tmp_path / 'whole'}"
    for spec, settings in zip(specs, ({"m": 3, "ef_construction": 8}, {}), strict=True):
        with index.create(spec, SPACE, settings) as made:
            made.add(gallery)
            made.save()
    return *specs, gallery


def test_recall_is_measured_for_each_query_model_and_effort(pair, tmp_path):
    spec, exact, gallery = pair
    # One model asks with the very rows of the index, the other from outside of what is in it.
    near = Embeddings(SPACE, tuple(f"q{i}" for i in range(80)), gallery.vectors[:80], "near")
    far = rows(80, 7, "q", "far")
    done = indexing.recall(
        spec, exact, [near, far], tmp_path / "out", QUIET, k=5, efforts=[5, 500, 1], repeats=2
    )
    assert [(c.made_by, [p.effort for p in c.points]) for c in done.curves] == [
        ("near", [5, 500]),  # a graph is searched no narrower than k
        ("far", [5, 500]),
    ]
    for curve, asked in zip(done.curves, (near, far), strict=True):
        similar = asked.vectors @ gallery.vectors.T
        right = np.argsort(-similar, axis=1)[:, :5]
        for point in curve.points:
            with index.load(spec) as made:
                made.effort = point.effort
                ids = made.search(asked, 5).ids
            share = np.mean(
                [len({*map(int, a)} & {*b}) / 5 for a, b in zip(ids, right.tolist(), strict=True)]
            )
            assert point.recall.value == pytest.approx(share, abs=1e-9)
            assert len(point.seconds) == len(curve.exact_seconds) == 2
            low, high = point.recall.ci
            assert low <= share <= high
    one, other = done.curves
    assert one.points[0].recall.value < one.points[1].recall.value
    for a, b in zip(one.points, other.points, strict=True):
        assert a.difference is None
        assert b.difference.value == pytest.approx(b.recall.value - a.recall.value)
    stored = json.loads((tmp_path / "out" / "recall.json").read_text())
    assert stored == json.loads(json.dumps(done.to_json()))
    assert stored["resampled_by"] == "query"


def test_intervals_are_resampled_by_class_where_classes_are_known(pair, tmp_path):
    spec, exact, _ = pair
    # Ten queries of each of 20 classes are the same: they tell no more than one.
    asked = rows(20, 7)
    asked = Embeddings(
        SPACE, tuple(f"q{i}" for i in range(200)), np.repeat(asked.vectors, 10, axis=0), "asked"
    )

    def width(labels: dict[str, str] | None) -> float:
        done = indexing.recall(
            spec, exact, [asked], tmp_path / "out", QUIET, k=5, efforts=[5], repeats=1,
            labels=labels,
        )  # fmt: skip
        low, high = done.curves[0].points[0].recall.ci
        return high - low

    classes = {name: str(i // 10) for i, name in enumerate(asked.ids)}
    assert width(classes) > 2 * width(None)
    with pytest.raises(DataError, match="1 of 200 queries are not pictures of --data, first 'q0'"):
        width({name: c for name, c in classes.items() if name != "q0"})


def test_the_command_says_the_recall_and_draws_it(run, tmp_path, pair):
    spec, exact, _ = pair
    rows(50, 7, "q", "one & only <model>").save(tmp_path / "asked")
    code, out, _ = run(
        "recall", spec, "asked", "--exact", exact, "--efforts", "10,400", "-o", "r", "-q"
    )
    assert code == 0
    lines = out.splitlines()
    assert "resampled by query" in lines[0]
    assert lines[2].split()[:2] == ["ef", "10"]
    stored: dict[str, Any] = json.loads((tmp_path / "r" / "recall.json").read_text())
    shown = float(lines[2].split()[2])
    assert shown == pytest.approx(100 * stored["models"][0]["points"][0]["recall"], abs=0.051)
    pytest.importorskip("matplotlib", reason="needs the extra 'report'")
    from xml.etree import ElementTree

    drawn = "".join(ElementTree.parse(tmp_path / "r" / "recall.svg").getroot().itertext())
    assert "one & only <model>" in drawn
    assert "ef 10" in drawn


def test_an_exact_index_against_itself_finds_everything(run, tmp_path):
    on_circle(0, 30, 90, ids=["a", "b", "c"]).save(tmp_path / "one")
    run("build", "exact:ix", "one", "-q")
    code, out, _ = run("recall", "exact:ix", "one", "--exact", "exact:ix", "--json", "-q")
    (model,) = json.loads(out)["models"]
    assert code == 0
    assert [(p["effort"], p["recall"]) for p in model["points"]] == [(0, 1.0)]
    assert CIRCLE.id == json.loads(out)["space"]
