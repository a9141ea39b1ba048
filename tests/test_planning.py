"""Plans measured on bundles: what is forecast is what a loop over rows finds."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="bundles are made with the extra 'train'")

from toys import GALLERY, PREPROCESS, QUERY, Listener, quiet, toy_images  # noqa: E402

from hetero import cli, models  # noqa: E402
from hetero.backfill import WEEK_S, Plan  # noqa: E402
from hetero.bundle import Bundle  # noqa: E402
from hetero.errors import ConfigError, DataError, SpaceMismatchError  # noqa: E402
from hetero.evaluate import task  # noqa: E402
from hetero.fit import Settings  # noqa: E402
from hetero.refresh import at_random  # noqa: E402
from hetero.retrieval import TIE  # noqa: E402
from hetero.space import Embeddings  # noqa: E402
from hetero.stages import planning  # noqa: E402
from hetero.stages.planning import Effort  # noqa: E402
from hetero.train import (  # noqa: E402
    GalleryRecipe,
    QueryRecipe,
    UpgradeRecipe,
    train_gallery,
    train_query,
    train_upgrade,
)

PICTURES = toy_images(train=8, val=3, test=5, per_class=6)
SETTINGS = Settings(2, batch=16, lr=1e-2, keep_going=True)
DIM = 8
#: No learning is needed here; models that hardly agree make every index different.
EFFORT = Effort(progress=(0.0, 0.5, 1.0), repeats=1)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """v1/, v2/ in its space, v3/ with longer vectors, app/ of v1, and other/ of another space."""
    root = tmp_path_factory.mktemp("plan")
    first = train_gallery(
        PICTURES, GalleryRecipe(GALLERY, DIM), PREPROCESS, SETTINGS, root / "v1", reporter=quiet()
    )
    for name, dim in (("v2", 0), ("v3", DIM + 4)):
        held = UpgradeRecipe(GALLERY, settings={"regression.weight": 20.0}, dim=dim, views=1)
        seeded = replace(SETTINGS, seed=len(name) + dim)
        train_upgrade(first, PICTURES, held, seeded, root / name, reporter=quiet())
    train_query(first, PICTURES, QueryRecipe(QUERY), SETTINGS, root / "app", reporter=quiet())
    alone = replace(SETTINGS, seed=9)
    train_gallery(
        PICTURES, GalleryRecipe(GALLERY, DIM), PREPROCESS, alone, root / "other", reporter=quiet()
    )
    return root


def a_plan(
    generations: dict[str, float], *cohorts: str, root: Path | None = None, **changed: Any
) -> Plan:
    """A plan of two weeks in which all cohorts have the same traffic."""
    where = f"{root}/" if root else ""
    return Plan.model_validate(
        {
            "metric": "map",
            "weeks": 2,
            "index": {"images": 1000, "images_per_s": 1000 / (2 * WEEK_S)},
            "generation": [{"bundle": where + g, "share": s} for g, s in generations.items()],
            "cohort": [{"bundle": where + c, "traffic": 1 / len(cohorts)} for c in cohorts],
            **changed,
        }
    )


def made(
    home: Path, output: Path, plan: Plan, effort: Effort = EFFORT, reporter: Any = None
) -> dict[str, Any]:
    planning.plan(
        plan,
        [Bundle.load(home / g) for g in plan.generations],
        [Bundle.load(home / c) for c in plan.cohorts],
        PICTURES,
        effort,
        output,
        reporter or quiet(),
    )
    found: dict[str, Any] = json.loads((output / "plan.json").read_text())
    return found


def seen(bundle: Bundle) -> Embeddings:
    job = task(PICTURES, "test")
    return models.TorchEmbedder(bundle).embed(job.ids, PICTURES.pixels(job.rows, PREPROCESS))


def by_loop(home: Path, query: str, by: dict[str, str], dim: int = DIM) -> float:
    """mAP of a model in an index of which each row is by the generation named, in plain Python."""
    job = task(PICTURES, "test")
    vectors = {}
    for name in {query, *by.values()}:
        rows = seen(Bundle.load(home / name))
        short = rows.vectors[:, :dim].astype(np.float64)
        short /= np.linalg.norm(short, axis=1, keepdims=True)
        vectors[name] = dict(zip(rows.ids, short, strict=True))
    precisions = []
    for asked, label in zip(job.query_ids, job.truth.query_labels, strict=True):
        scores = [
            (float(vectors[query][asked] @ vectors[by[i]][i]), right == label)
            for i, right in zip(job.gallery_ids, job.truth.gallery_labels, strict=True)
            if i != asked
        ]
        right = sorted((s for s, found in scores if found), reverse=True)
        # Ties count against the query.
        ahead = [sum(s >= mine - TIE for s, found in scores if not found) for mine in right]
        precisions.append(np.mean([n / (n + wrong) for n, wrong in enumerate(ahead, 1)]))
    return float(np.mean(precisions))


def points(found: dict[str, Any], order: str, cohort: str) -> dict[float, dict[str, Any]]:
    """By progress."""
    chosen = next(o for o in found["orders"] if o["name"] == order)
    return {p["progress"]: p for c in chosen["cohorts"] if c["name"] == cohort for p in c["points"]}


def test_a_plan_starts_and_ends_in_the_indexes_of_one_generation(
    home: Path, tmp_path: Path
) -> None:
    found = made(home, tmp_path, a_plan({"v1": 1.0, "v2": 0.0}, "app", "v2"))
    ids = task(PICTURES, "test").gallery_ids
    cells = {(c["cohort"], c["generation"]): c["value"] for c in found["matrix"]}
    for cohort in ("app", "v2"):
        for progress, generation in ((0.0, "v1"), (1.0, "v2")):
            expected = by_loop(home, cohort, dict.fromkeys(ids, generation))
            assert cells[cohort, generation] == pytest.approx(expected, abs=1e-6)
            for order in ("random", "uncertain first"):
                way = points(found, order, cohort)
                assert way[progress]["value"] == pytest.approx(expected, abs=1e-6)
    assert [o["name"] for o in found["orders"]] == ["random", "uncertain first"]
    assert found["duration_weeks"] == pytest.approx(2)
    areas = {o["name"]: o["area"]["value"] for o in found["orders"]}
    assert areas[found["order"]] == max(areas.values())
    assert (tmp_path / "plan.svg").read_text().count("all traffic") == 1


def test_between_them_rows_are_taken_in_order_from_a_mixed_index(
    home: Path, tmp_path: Path
) -> None:
    found = made(home, tmp_path, a_plan({"v1": 0.4, "v2": 0.6, "v3": 0.0}, "app"))
    ids = task(PICTURES, "test").gallery_ids
    first, second, none = planning.dealt(ids, (0.4, 0.6, 0.0), 0)
    assert (len(first), len(second), none) == (12, 18, ())
    assert sorted([*first, *second]) == sorted(ids)
    by = dict.fromkeys(first, "v1") | dict.fromkeys(second, "v2")
    way = points(found, "oldest first", "app")
    # v3 has longer vectors, which begin with v1's space: all of them meet there.
    assert way[0.0]["value"] == pytest.approx(by_loop(home, "app", by), abs=1e-6)
    # Half of 30 rows: all 12 by v1 and 3 of those by v2, the first in their random order.
    done = [*first, *at_random(second, 0)[:3]]
    expected = by_loop(home, "app", by | dict.fromkeys(done, "v3"))
    assert way[0.5]["value"] == pytest.approx(expected, abs=1e-6)


def test_a_sample_asks_fewer_queries_and_keeps_both_ends(home: Path, tmp_path: Path) -> None:
    asked = a_plan({"v1": 1.0, "v2": 0.0}, "app")
    every = made(home, tmp_path / "all", asked)
    some = made(home, tmp_path / "some", asked, replace(EFFORT, sample=0.3))
    one, other = points(every, "random", "app"), points(some, "random", "app")
    for progress in (0.0, 1.0):
        assert other[progress]["value"] == pytest.approx(one[progress]["value"])
    assert some["sample"] == 0.3
    assert other[0.5]["value"] != one[0.5]["value"]


def test_an_app_that_shares_no_space_breaks_with_the_first_row(home: Path, tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatchError, match="share no space"):
        made(home, tmp_path, a_plan({"v1": 1.0, "other": 0.0}, "app"))
    lost = made(home, tmp_path, a_plan({"v1": 1.0, "v2": 0.0}, "app", "other"))
    cohort = next(c for c in lost["orders"][0]["cohorts"] if c["name"] == "other")
    assert cohort["outcome"] == "fail"
    assert cohort["reason"] == "other shares no space with v1 and v2"
    assert {p["value"] for p in cohort["points"]} == {0.0}
    assert lost["outcome"] == "fail"
    assert {c["generation"] for c in lost["matrix"] if "value" not in c} == {"v1", "v2"}


def test_every_search_is_counted_and_the_end_is_reached(home: Path, tmp_path: Path) -> None:
    told = Listener()
    made(home, tmp_path, a_plan({"v1": 0.5, "v2": 0.5, "v3": 0.0}, "app", "v2"), EFFORT, told)
    total, done = told.jobs["search mixed indexes"]
    # Two cohorts: one start, and three orders at one share between the ends.
    assert (total, done) == (8, 8)
    total, done = told.jobs["forecast"]
    assert total == done > 0


def test_a_plan_that_says_nothing_of_speed_measures_it(home: Path, tmp_path: Path) -> None:
    asked = a_plan({"v1": 1.0, "v2": 0.0}, "app", index={"images": 1000})
    found = made(home, tmp_path, asked)
    assert found["images_per_s"] > 0
    assert found["images_per_s_is"] == "measured here"


def test_without_training_pictures_no_row_is_the_more_uncertain(home: Path, tmp_path: Path) -> None:
    rows = [r for r, split in enumerate(PICTURES.splits) if split != "train"]
    some = {
        name: tuple(getattr(PICTURES, name)[r] for r in rows)
        for name in ("ids", "labels", "groups", "splits", "roles")
    }
    bare = replace(PICTURES, **some, read=lambda row: PICTURES.read(rows[row]))
    asked = a_plan({"v1": 1.0, "v2": 0.0}, "app")
    v1, v2, app = (Bundle.load(home / n) for n in ("v1", "v2", "app"))
    told = Listener()
    found = planning.plan(asked, [v1, v2], [app], bare, EFFORT, tmp_path, told)
    assert [o.name for o in found.orders] == ["random"]
    assert "no training pictures" in "".join(told.lines)


def test_a_plan_of_years_is_refused_before_anything_is_searched(home: Path, tmp_path: Path) -> None:
    slow = a_plan({"v1": 1.0, "v2": 0.0}, "app", index={"images": 10**9, "images_per_s": 1.0})
    told = Listener()
    with pytest.raises(ConfigError, match="more workers"):
        made(home, tmp_path, slow, EFFORT, told)
    assert "search mixed indexes" not in told.jobs
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_is_not_measured_on_classes_that_were_trained_on(home: Path, tmp_path: Path) -> None:
    swap = {"train": "test", "test": "train"}
    leaky = replace(PICTURES, splits=tuple(swap.get(s, s) for s in PICTURES.splits))
    asked = a_plan({"v1": 1.0, "v2": 0.0}, "app")
    bundles = {n: Bundle.load(home / n) for n in ("v1", "v2", "app")}
    with pytest.raises(DataError, match="were trained on"):
        planning.plan(
            asked,
            [bundles["v1"], bundles["v2"]],
            [bundles["app"]],
            leaky,
            EFFORT,
            tmp_path,
            quiet(),
        )


@pytest.mark.parametrize(
    "wrong", [{"progress": (0.0, 0.5)}, {"progress": (0.5, 1.0)}, {"repeats": 0}, {"sample": 0.0}]
)
def test_an_effort_that_measures_no_way_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="plan: "):
        Effort(**wrong)


def test_rows_are_dealt_by_share_and_none_is_lost() -> None:
    ids = tuple(f"r{i}" for i in range(10))
    parts = planning.dealt(ids, (0.25, 0.7, 0.05), 3)
    assert [len(p) for p in parts] == [2, 8, 0]
    assert sorted(i for part in parts for i in part) == sorted(ids)
    assert planning.dealt(ids, (0.25, 0.7, 0.05), 4) != parts


# -- the command ----------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, capfd: Any, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["hetero", *map(str, words)])
    monkeypatch.setattr("hetero.stages.embedding.load_images", lambda spec, bundle=None: PICTURES)
    capfd.readouterr()
    with pytest.raises(SystemExit) as done:
        cli.main()
    code = done.value.code
    return (code if isinstance(code, int) else 0, *capfd.readouterr())


def test_the_command_reads_a_plan_and_leaves_with_its_verdict(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(
        "[index]\nimages = 1000\nimages_per_s = 5\nprice_per_1000 = 2.5\n"
        f'[[generation]]\nbundle = "{home / "v1"}"\nshare = 1.0\n'
        f'[[generation]]\nbundle = "{home / "v2"}"\n'
        f'[[cohort]]\nbundle = "{home / "app"}"\ntraffic = 1.0\n'
    )
    quick = ("--shares", "0,1", "--repeats", 1, "-q", "-o", tmp_path / "out")
    code, out, _ = run(monkeypatch, capfd, "upgrade", "plan", path, *quick)
    found = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert code == {"pass": 0, "fail": 1, "inconclusive": 3}[found["outcome"]]
    assert "re-embed 1,000 of 1,000 images: 2.50 USD, 3.3 minutes" in out
    assert f"verdict: {found['outcome']}" in out
    again, out, _ = run(monkeypatch, capfd, "upgrade", "plan", path, *quick, "--json")
    assert (again, json.loads(out)) == (code, found)
    path.write_text(path.read_text().replace("traffic = 1.0", "traffic = 0.4"))
    code, out, err = run(monkeypatch, capfd, "upgrade", "plan", path, *quick)
    assert code == 2
    assert err.strip().endswith("traffic of all cohorts: adds up to 0.4, not to 1")
    path.write_text(path.read_text().replace("traffic = 0.4", "traffic = 1.0"))
    path.write_text(path.read_text().replace(str(home / "v2"), str(home / "app"), 1))
    code, _, err = run(monkeypatch, capfd, "upgrade", "plan", path, *quick)
    assert code == 2
    assert "a query bundle, where a gallery bundle is needed" in err
