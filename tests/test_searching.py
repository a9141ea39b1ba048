from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_train import SHORT, gallery_model
from toys import PREPROCESS, Listener, Tripwire, quiet, toy_images, weights
from typer.testing import CliRunner

from hetero import models, nas
from hetero.bundle import Bundle
from hetero.errors import BundleError, ConfigError, TrainingError
from hetero.fit import Settings
from hetero.nas.costs import latency
from hetero.stages import measuring, searching
from hetero.stages.measuring import MeasureOptions
from hetero.stages.searching import SearchOptions
from hetero.train import SupernetRecipe, load_supernet, train_supernet
from hetero.train.supernet import BATCHES

SPACE = "elastic:widths=0.25/0.5,kernels=3/5,expands=2/3,last=32"
RECIPE = SupernetRecipe(SPACE, method="regression", views=2)
TRAINING = Settings(epochs=4, batch=16, lr=1e-2, keep_going=True)
BUDGET = nas.Budget("macs", 8e4)
OPTIONS = SearchOptions(trials=6, probes=2, probe_epochs=2, epochs=2)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return gallery_model(tmp_path_factory.mktemp("gallery"), replace(SHORT, epochs=8))


def run(gallery: Bundle, root: Path, **changed: Any) -> searching.Outcome:
    asked: dict[str, Any] = {
        "recipe": RECIPE,
        "settings": TRAINING,
        "budget": BUDGET,
        "options": OPTIONS,
        "reporter": quiet(),
        **changed,
    }
    return searching.search(
        gallery,
        toy_images(),
        asked.pop("recipe"),
        asked.pop("settings"),
        asked.pop("budget"),
        asked.pop("options"),
        root,
        **asked,
    )


@pytest.fixture(scope="module")
def outcome(gallery: Bundle, tmp_path_factory: pytest.TempPathFactory) -> searching.Outcome:
    return run(gallery, tmp_path_factory.mktemp("search"))


# -- a whole search -------------------------------------------------------------------------------


def test_the_winner_is_an_ordinary_bundle_of_the_gallerys_space_within_the_budget(
    gallery: Bundle, outcome: searching.Outcome
) -> None:
    found = Bundle.load(outcome.bundle.root)
    assert found.space == gallery.space
    assert found.role == "query"
    assert found.manifest.model.backbone == outcome.found.best.backbone
    assert found.manifest.model.macs == outcome.found.best.cost <= BUDGET.most


def test_a_search_leaves_its_front_its_candidates_and_its_health_behind(
    outcome: searching.Outcome,
) -> None:
    root = outcome.bundle.root.parent
    assert (root / "front.svg").read_text().startswith("<?xml")
    kept = json.loads((root / "search" / "found.json").read_text())
    assert len(kept["candidates"]) == len(outcome.found.candidates)
    assert sum(c["fits"] for c in kept["candidates"]) == OPTIONS.trials
    told = json.loads((root / "search.json").read_text())
    assert told["best"]["backbone"] == outcome.found.best.backbone
    assert outcome.health is not None
    assert told["health"]["inherited"] == list(outcome.health.inherited)


def test_a_finished_search_is_read_and_nothing_is_trained(
    gallery: Bundle, outcome: searching.Outcome
) -> None:
    listener = Listener()
    again = run(gallery, outcome.bundle.root.parent, resume=True, reporter=listener)
    assert again == outcome
    assert not [job for job in listener.jobs if job.startswith("train")]


@pytest.mark.parametrize(("what", "steps"), [("train", 5), ("search", 3)])
def test_a_search_stopped_anywhere_ends_in_the_same_bits(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path, what: str, steps: int
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(gallery, tmp_path, reporter=Tripwire(what, steps, stop))
    again = run(gallery, tmp_path, resume=True)
    scored = [c for c in again.found.candidates if c.fits]
    assert len(scored) == OPTIONS.trials
    assert len({c.backbone for c in scored}) == len(scored)
    if what == "train":
        # Evolution's own random numbers go another way after a stop, so only this one is the same.
        assert weights(again.bundle.root) == weights(outcome.bundle.root)


def test_a_search_of_other_settings_into_the_same_folder_begins_anew(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path
) -> None:
    used = tmp_path / "used"
    shutil.copytree(outcome.bundle.root.parent, used)
    options = replace(OPTIONS, probe_epochs=1, tries=2, try_epochs=1, epochs=1)
    made = run(gallery, used, options=options)
    assert weights(made.bundle.root) != weights(outcome.bundle.root)
    assert made.health is not None
    assert outcome.health is not None
    assert made.health.alone != outcome.health.alone
    first = weights(used / "tries" / "0")
    run(gallery, used, options=replace(options, probes=0, try_epochs=2))
    assert weights(used / "tries" / "0") != first


def test_inherited_weights_can_be_the_winners(gallery: Bundle, outcome: searching.Outcome) -> None:
    trained = load(gallery, outcome)
    best = outcome.found.best
    bundle = trained.bundle(best.architecture, outcome.bundle.root.parent / "inherited")
    assert trained.score_net(models.load(bundle)) == nas.Rewards(best.r1, best.r2)


def test_a_winner_can_be_trained_from_scratch(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path
) -> None:
    made = run(gallery, tmp_path, options=replace(OPTIONS, start="scratch", probes=0))
    assert made.health is None
    assert made.bundle.manifest.model.macs <= BUDGET.most


def test_of_several_finalists_the_best_on_validation_classes_wins(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, finalists=2, probes=0)
    fixed, real, given = outcome.found.first(2), searching.Trained.score_net, iter([0.3, 0.4])
    # Candidates are scored as always, and finalists, which are nets of their own, as given.
    monkeypatch.setattr(
        searching.Trained, "score", lambda self, a: real(self, self.net.extract(a, BATCHES))
    )
    monkeypatch.setattr(
        searching.Trained, "score_net", lambda self, net: nas.Rewards(0.0, next(given))
    )
    made = run(gallery, tmp_path, options=options)
    assert [c.backbone for c in made.found.first(2)] == [c.backbone for c in fixed]
    assert made.bundle.manifest.model.backbone == fixed[1].backbone
    assert (tmp_path / "finalists" / "0" / "manifest.json").exists()
    assert json.loads((tmp_path / "search.json").read_text())["best"]["backbone"] == (
        fixed[1].backbone
    )


def test_first_candidates_are_the_most_rewarding_within_the_budget() -> None:
    made = [
        nas.Candidate(name, (0.0,), cost, r, r, cost <= 5)
        for name, cost, r in (("a", 1, 0.2), ("b", 4, 0.5), ("c", 3, 0.5), ("d", 9, 0.9))
    ]
    found = nas.Found(tuple(made), "r2", nas.Budget("macs", 5))
    assert [c.backbone for c in found.first(2)] == ["c", "b"]
    assert [c.backbone for c in found.first(9)] == ["c", "b", "a"]
    assert found.first(1) == (found.best,)


def test_first_candidates_can_be_kept_apart() -> None:
    made = [
        nas.Candidate(name, architecture, 1, r, r, True)
        for name, architecture, r in (
            ("a", (1.0, 1.0, 1.0, 1.0), 0.9),
            ("twin", (1.0, 1.0, 1.0, 2.0), 0.8),
            ("b", (1.0, 1.0, 2.0, 2.0), 0.7),
            ("twin of b", (1.0, 2.0, 2.0, 2.0), 0.6),
        )
    ]
    found = nas.Found(tuple(made), "r2", nas.Budget("macs", 5))
    assert [c.backbone for c in found.first(4, apart=0.5)] == ["a", "b"]
    assert [c.backbone for c in found.first(4, apart=0.25)] == ["a", "twin", "b", "twin of b"]


def test_half_of_the_contenders_are_the_searchs_best_and_half_are_drawn_within_the_budget() -> None:
    space = nas.load_space("elastic")
    price = nas.priced(space, nas.load_cost("parameters"), 8, 16)
    rng = np.random.default_rng(5)
    drawn = [space.draw(rng) for _ in range(12)]
    most = max(price(a) for a in drawn)
    budget = nas.Budget("parameters", most, 0.3 * most)
    seen = tuple(
        nas.Candidate(space.backbone(a), a, price(a), at / 12, at / 12, True)
        for at, a in enumerate(drawn)
    )
    found = nas.Found(seen, "r2", budget)
    given = nas.Rewards(0.25, 0.5)
    made = nas.contenders(space, price, lambda _: given, found, 9, seed=1)
    assert made[:5] == found.first(5, apart=0.25)
    assert len(made) == len({c.backbone for c in made}) == 9
    assert all(budget.least <= c.cost <= most for c in made[5:])
    assert all(c.cost == price(c.architecture) and (c.r1, c.r2) == (0.25, 0.5) for c in made[5:])
    assert made == nas.contenders(space, price, lambda _: given, found, 9, seed=1)


def test_of_the_tries_the_best_on_validation_classes_become_finalists(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, tries=3, try_epochs=1, probes=0)
    real, given = searching.Trained.score_net, iter([0.3, 0.1, 0.4])
    monkeypatch.setattr(
        searching.Trained, "score", lambda self, a: real(self, self.net.extract(a, BATCHES))
    )
    monkeypatch.setattr(
        searching.Trained, "score_net", lambda self, net: nas.Rewards(0.0, next(given))
    )
    made = run(gallery, tmp_path, options=options)
    tries = json.loads((tmp_path / "tries.json").read_text())["tries"]
    assert [t["validation_map"] for t in tries] == [0.4, 0.3, 0.1]
    assert made.bundle.manifest.model.backbone == tries[0]["backbone"]
    third = json.loads((tmp_path / "tries" / "2" / "manifest.json").read_text())
    assert third["model"]["backbone"] == tries[0]["backbone"]


def test_fewer_tries_than_finalists_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 finalists of 3 tries"):
        SearchOptions(finalists=4, tries=3)


def test_a_budget_below_the_smallest_architecture_is_refused_before_training(
    gallery: Bundle, tmp_path: Path
) -> None:
    listener = Listener()
    with pytest.raises(
        ConfigError, match=r"the smallest architecture of elastic.* the budget is 9"
    ):
        run(gallery, tmp_path, budget=nas.Budget("macs", 9), reporter=listener)
    assert listener.jobs == {}


def test_a_supernet_that_learnt_nothing_is_not_searched(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = iter([0.9, 0.8])
    monkeypatch.setattr(
        searching.Trained, "score_net", lambda self, net: nas.Rewards(0.9, next(alone))
    )
    monkeypatch.setattr(searching.Trained, "score", lambda *_: nas.Rewards(0.1, 0.1))
    with pytest.raises(TrainingError, match=r"inherited weights give 11%, 12% .* would be noise"):
        run(gallery, tmp_path)
    assert not (tmp_path / "search").exists()
    assert json.loads((tmp_path / "health.json").read_text())["inherited"] == [0.1, 0.1]


# -- the supernet on disk -------------------------------------------------------------------------


def load(gallery: Bundle, outcome: searching.Outcome) -> Any:
    folder = outcome.bundle.root.parent / "supernet"
    return load_supernet(folder, gallery, toy_images(), RECIPE, TRAINING, reporter=quiet())


def test_a_supernet_read_back_scores_the_same(gallery: Bundle, outcome: searching.Outcome) -> None:
    best = outcome.found.best
    assert load(gallery, outcome).score(best.architecture) == nas.Rewards(best.r1, best.r2)


def test_a_supernet_whose_weights_changed_is_refused(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(outcome.bundle.root.parent / "supernet", tmp_path / "supernet")
    path = tmp_path / "supernet" / "supernet.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match="missing or changed"):
        load_supernet(path.parent, gallery, toy_images(), RECIPE, TRAINING, reporter=quiet())
    with pytest.raises(BundleError, match="no supernet there"):
        load_supernet(tmp_path, gallery, toy_images(), RECIPE, TRAINING, reporter=quiet())


def test_a_supernet_of_another_recipe_is_trained_anew(
    gallery: Bundle, outcome: searching.Outcome, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(outcome.bundle.root.parent / "supernet", tmp_path / "supernet")
    listener = Listener()
    train_supernet(
        gallery,
        toy_images(),
        replace(RECIPE, sampling="single"),
        TRAINING,
        tmp_path / "supernet",
        resume=True,
        reporter=listener,
    )
    assert any(job.startswith("train") for job in listener.jobs)


# -- latency tables -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_space_is_measured_on_this_machine_and_searched_by_its_latency(
    gallery: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    options = MeasureOptions("local", "onnx", "fp32", fitted=3, held_out=1)
    table = measuring.measure(
        gallery, toy_images(), SPACE, options, tmp_path / "measure", reporter=quiet()
    )
    path = tmp_path / "measure" / "table.csv"
    assert latency.Table.load(path) == table
    assert table.about["device"] == "local"
    assert "of 1 architectures" in table.about["held-out error"]
    kept = json.loads((tmp_path / "measure" / "table.json").read_text())
    assert len(kept["held_out_errors"]) == 1
    files = sorted((tmp_path / "measure" / "architectures").glob("*.json"))
    assert len(files) == 4
    before = [f.stat().st_mtime_ns for f in files]
    again = measuring.measure(
        gallery, toy_images(), SPACE, options, tmp_path / "measure", reporter=quiet()
    )
    assert again == table
    assert [f.stat().st_mtime_ns for f in files] == before

    cost = nas.load_cost(f"latency:{path}")
    space = nas.load_space(SPACE)
    side, dim = PREPROCESS.size_px, gallery.space.dim
    costs = [
        cost.of(models.build(space.backbone(a), dim, side), side)
        for a in (space.smallest(), space.largest())
    ]
    assert 0 < costs[0] <= costs[1]
    most = float(np.mean(costs)) + 1e-6
    made = run(
        gallery,
        tmp_path / "search",
        budget=nas.Budget(f"latency:{path}", most),
        options=replace(OPTIONS, probes=0, epochs=0, trials=3),
    )
    assert made.found.best.cost <= most


def test_a_device_that_only_emulates_is_not_measured(
    gallery: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from hetero import devices

    monkeypatch.setattr(devices, "open_device", lambda spec: SimpleNamespace(execution="emulated"))
    with pytest.raises(ConfigError, match="an emulated device has no times of its own"):
        measuring.measure(
            gallery, toy_images(), SPACE, MeasureOptions("qemu:pi4"), tmp_path, reporter=quiet()
        )


def test_a_table_that_nothing_would_speak_for_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 architectures to fit and 1 held out"):
        MeasureOptions(held_out=0)


# -- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one budget"),
        (["--max-macs", "5M", "--max-size", "60k"], "give one budget"),
        (["--max-latency-ms", "4"], "--table"),
        (["--max-macs", "many"], "'many' is not a number such as 800k"),
        (["--max-macs", "1M", "--reward", "r4"], "there are r1, r2, r3"),
        (["--max-macs", "1M", "--start", "over"], "there are inherited, scratch"),
        (["--max-macs", "1M", "--sampling", "both"], "there are sandwich, single"),
        (["--max-macs", "1M", "--trials", "0"], "trials"),
    ],
)
def test_a_search_that_cannot_be_is_one_line_and_exit_code_2(
    gallery: Bundle, tmp_path: Path, arguments: list[str], said: str
) -> None:
    from hetero.cli import app

    done = CliRunner().invoke(
        app, ["search", str(gallery.root), "-o", str(tmp_path / "out"), *arguments]
    )
    assert done.exit_code == 2 or isinstance(done.exception, ConfigError)
    assert said in done.output + str(done.exception)


@pytest.mark.parametrize(
    ("text", "value"), [("800k", 8e5), ("5M", 5e6), ("0.25", 0.25), ("1.5g", 1.5e9)]
)
def test_budgets_are_written_as_people_write_them(text: str, value: float) -> None:
    from hetero.cli.search import number

    assert number(text) == value
