from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from geometry import on_circle
from scipy.stats import binomtest

from hetero.check import Place, Reference
from hetero.errors import BundleError, DataError, DeviceError
from hetero.evaluate import Task
from hetero.report import Limit
from hetero.retrieval import Truth
from hetero.sequential import (
    FRACTIONS,
    SHARES,
    State,
    confidence_sequence,
    decide,
    log_capital,
    log_factors,
)
from hetero.stages import stopping
from hetero.verdict import Evidence


def played(rows: list[tuple[float, int, int]], margin: float = 0.1, largest: int = 5) -> State:
    state = State(margin, largest)
    for number, (lost, asked, size) in enumerate(rows):
        outcomes = [0.0] * asked
        for at in range(round(abs(lost))):
            outcomes[at] = math.copysign(1.0, lost)
        state = state.observe(f"class{number}", outcomes, size)
    return state


# -- the bets -------------------------------------------------------------------------------------


def test_the_shares_are_one_capital_and_no_bet_can_ruin():
    assert sum(SHARES) == pytest.approx(1)
    for margin in (-0.3, 0.0, 0.02, 0.6):
        for side in ("below", "above"):
            worst = log_factors(np.asarray([-1.0, 1.0]), np.ones(2), margin, side)
            assert np.isfinite(worst).all()
            assert np.exp(worst).min() == pytest.approx(1 - max(FRACTIONS))


def test_a_state_holds_the_products_that_a_slow_gambler_computes():
    rows = [(1.0, 2, 5), (0.0, 1, 3), (-1.0, 3, 4), (0.0, 1, 5)]
    margin, largest = 0.1, 5
    below = above = 0.0
    for share, fraction in zip(SHARES, FRACTIONS, strict=True):
        down = up = share
        for lost, asked, size in rows:
            z = size / largest * (lost / asked - margin)
            down *= 1 - fraction / (1 - margin) * z
            up *= 1 + fraction / (1 + margin) * z
        below, above = below + down, above + up
    state = played(rows)
    assert state.e_value("below") == pytest.approx(below, rel=1e-12)
    assert state.e_value("above") == pytest.approx(above, rel=1e-12)
    assert (state.queries, len(state.classes)) == (7, 4)


@pytest.mark.parametrize("margin", [0.02, 0.25])
@pytest.mark.parametrize("side", ["below", "above"])
def test_at_the_margin_the_bet_on_a_class_is_fair(margin, side):
    # All outcomes of two sizes with the exact probabilities of a mean over queries at the margin.
    size, chance = np.asarray([2.0, 5.0]), np.asarray([0.4, 0.6])
    rate = np.asarray([0.0, margin * (0.4 * 2 + 0.6 * 5) / (0.6 * 5)])
    expected = np.zeros(len(FRACTIONS))
    for n, p, lost in zip(size, chance, rate, strict=True):
        for loss, q in ((1.0, lost), (0.0, 1 - lost)):
            one = log_factors(np.asarray([loss]), np.asarray([n / 5]), margin, side)[0]
            expected += p * q * np.exp(one)
    np.testing.assert_allclose(expected, 1, atol=1e-12)


def test_evidence_multiplies_in_any_order_and_across_a_disconnect():
    rows = [(1.0, 2, 5), (0.0, 1, 3), (-1.0, 3, 4), (0.0, 1, 5)]
    whole = played(rows)
    first = State(0.1, 5).observe("class0", [1.0, 0.0], 5).observe("class1", [0.0], 3)
    saved = State.from_json(json.loads(json.dumps(first.to_json())))
    assert saved == first
    rest = State(0.1, 5).observe("class3", [0.0], 5).observe("class2", [-1.0, 0.0, 0.0], 4)
    for both in (saved.merge(rest), rest.merge(saved)):
        assert both.e_value("below") == pytest.approx(whole.e_value("below"), rel=1e-12)
        assert both.queries == whole.queries
        assert set(both.classes) == set(whole.classes)


def test_no_class_counts_twice_and_different_games_are_not_mixed():
    state = State(0.1, 5).observe("a", [0.0], 5)
    with pytest.raises(DataError, match="counts once"):
        state.observe("a", [0.0], 5)
    with pytest.raises(DataError, match="counts once"):
        state.merge(state)
    with pytest.raises(DataError, match="different margins"):
        state.merge(State(0.2, 5))
    with pytest.raises(DataError):
        state.observe("b", [0.0], 6)
    with pytest.raises(DataError, match="another version"):
        State.from_json({**state.to_json(), "fractions": [0.5]})


def test_a_margin_that_no_loss_can_reach_is_refused():
    with pytest.raises(DataError, match="between -1 and 1"):
        log_factors(np.zeros(1), np.ones(1), 1.0, "below")


def test_the_capital_of_many_classes_does_not_overflow():
    assert float(log_capital(np.full(len(FRACTIONS), 5000.0))) == pytest.approx(5000)
    assert replace(State(0.1, 5), below=(5000.0,) * len(FRACTIONS)).e_value("below") > 1e300


# -- decisions ------------------------------------------------------------------------------------


def test_a_clean_file_passes_a_bad_one_fails_and_no_data_says_nothing():
    assert State(0.02, 1).outcome(0.05, 0.05) == "inconclusive"
    clean = Evidence("sequence", ((0.0, 1, 1),) * 300, 1)
    bad = Evidence("sequence", ((0.0, 1, 1), (1.0, 1, 1)) * 30, 1)
    assert decide(clean, 0.02, 0.05, 0.05).outcome == "pass"
    assert decide(bad, 0.02, 0.05, 0.05).outcome == "fail"
    assert decide(replace(clean, rows=clean.rows[:50]), 0.02, 0.05, 0.05).outcome == "inconclusive"


def test_the_bounds_say_the_same_as_the_outcome_for_every_margin():
    rng = np.random.default_rng(0)
    rows = tuple((float(x), 1, 1) for x in (rng.random(200) < 0.1) * 1.0)
    evidence = Evidence("sequence", rows, 1)
    low, high = confidence_sequence(evidence, 0.025, 0.025)
    assert low < evidence.estimate < high
    for margin in np.linspace(0.01, 0.4, 14):
        outcome = decide(evidence, float(margin), 0.05, 0.05).outcome
        assert outcome == ("pass" if margin > high else "fail" if margin < low else "inconclusive")


@pytest.mark.parametrize("alike", [0.05, 1.0])
def test_looking_after_every_class_errs_as_rarely_as_declared(alike):
    margin, trials, classes = 0.1, 400, 200
    rng = np.random.default_rng(5)
    size = rng.integers(2, 7, (trials, classes))
    if alike == 1.0:
        chance = (rng.random(size.shape) < margin) * 1.0
    else:
        total = 1 / alike - 1
        chance = rng.beta(margin * total, (1 - margin) * total, size.shape)
    loss = rng.binomial(2, chance) / 2  # two queries of each class
    for side in ("below", "above"):
        wrong = 0
        for trial in range(trials):
            logs = log_factors(loss[trial], size[trial] / 6, margin, side).cumsum(0)
            wrong += log_capital(logs).max() >= math.log(20)
        assert binomtest(wrong, trials, 0.05, alternative="greater").pvalue > 1e-3
        assert side == "above" or wrong < trials


# -- a device that is asked until it is certain ---------------------------------------------------

CLASSES, EACH = 240, 5
NAMES = [f"c{c:03}/{i}" for c in range(CLASSES) for i in range(EACH)]


def world(wrong: float = 0.0) -> tuple[Reference, object]:
    """A reference that is always right, and what a device gives: `wrong` of the classes are off."""
    labels = [n.split("/")[0] for n in NAMES]
    gallery = [f"g/{c:03}" for c in range(CLASSES)]
    task = Task(
        rows=tuple(range(len(NAMES) + CLASSES)),
        ids=(*NAMES, *gallery),
        query_ids=tuple(NAMES),
        gallery_ids=tuple(gallery),
        truth=Truth(
            tuple(labels), tuple(NAMES), tuple(f"c{c:03}" for c in range(CLASSES)), tuple(gallery)
        ),
    )
    step = 360 / CLASSES
    at = [int(x[1:]) * step for x in labels] + [c * step for c in range(CLASSES)]
    everything = on_circle(*at, ids=[*NAMES, *gallery])
    bad = set(np.random.default_rng(7).permutation(CLASSES)[: round(wrong * CLASSES)].tolist())
    moved = [
        a + (90 if i < len(NAMES) and int(labels[i][1:]) in bad else 0) for i, a in enumerate(at)
    ]
    return Reference.make(task, everything, everything), on_circle(*moved, ids=[*NAMES, *gallery])


class Phone:
    """Embeds, counts, and dies before the chunk it is told to."""

    def __init__(self, vectors: object, dies_at: int = -1) -> None:
        self.vectors, self.left, self.asked = vectors, dies_at, []

    def __call__(self, ids, timing):
        if self.left == 0:
            raise DeviceError("phone", "gone")
        self.left -= 1
        self.asked.append((tuple(ids), timing))
        return self.vectors.take(ids)


LIMIT = Limit("recall_at_1_lost", at_most=0.05, by="noninferiority")
PLACE = Place("phone", "onnx", "int8")


def until(reference, phone, folder: Path, **more) -> stopping.Asked:
    given = {"identity": {"file": "f"}, "resume": False, **more}
    return stopping.until_certain(reference, (LIMIT,), phone, folder, **given)


@pytest.mark.parametrize(("wrong", "outcome"), [(0.0, "pass"), (0.5, "fail")])
def test_a_clear_verdict_asks_a_fraction_of_the_queries(wrong, outcome, tmp_path):
    reference, vectors = world(wrong)
    phone = Phone(vectors)
    asked = until(reference, phone, tmp_path)
    assert not asked.whole
    assert asked.queries == len(asked.vectors) == sum(len(ids) for ids, _ in phone.asked)
    assert 3 * asked.queries < len(NAMES)
    evidence = asked.evidence["recall_at_1_lost"]
    assert decide(evidence, 0.05, 0.05, 0.05).outcome == outcome
    assert [timing for _, timing in phone.asked] == [True] + [False] * (len(phone.asked) - 1)


def test_an_unclear_one_asks_everything_and_leaves_the_rest_of_alpha_to_the_fixed_test(tmp_path):
    reference, vectors = world(0.05)
    phone = Phone(vectors)
    asked = until(reference, phone, tmp_path)
    assert asked.whole
    assert asked.vectors.ids == reference.task.ids
    names = [i for ids, _ in phone.asked for i in ids]
    assert sorted(names) == sorted(reference.task.ids), "each picture once"
    from hetero import check

    rows = stopping.with_evidence(
        check.file(reference, PLACE, asked.vectors), asked, PLACE, len(NAMES)
    )
    by_name = {m.name: m for m in rows}
    assert by_name["recall_at_1_lost"].evidence.design == "after_sequence"
    assert by_name["device_inferences_saved"].value == 0


def test_a_device_that_dies_goes_on_with_the_evidence_it_left(tmp_path):
    reference, vectors = world()
    whole = until(reference, straight := Phone(vectors), tmp_path / "straight")
    with pytest.raises(DeviceError):
        until(reference, Phone(vectors, dies_at=1), tmp_path / "cut")
    again = Phone(vectors)
    resumed = until(reference, again, tmp_path / "cut", resume=True)
    assert resumed.evidence == whole.evidence
    np.testing.assert_array_equal(resumed.vectors.vectors, whole.vectors.vectors)
    # The first chunk is asked for its latencies, which a device has on disk, the others once only.
    assert [ids for ids, _ in again.asked] == [ids for ids, _ in straight.asked]
    finished = Phone(vectors)
    assert until(reference, finished, tmp_path / "cut", resume=True).evidence == whole.evidence
    assert len(finished.asked) == 1


def test_evidence_on_another_file_or_test_set_is_not_continued(tmp_path):
    reference, vectors = world()
    until(reference, Phone(vectors), tmp_path)
    other = Phone(vectors)
    until(reference, other, tmp_path, resume=True, identity={"file": "another"})
    assert len(other.asked) > 1
    smaller = Phone(vectors)
    until(
        reference.only(NAMES[:1000]), smaller, tmp_path, resume=True, identity={"file": "another"}
    )
    assert len(smaller.asked) > 1


def test_torn_evidence_is_named_and_refused(tmp_path):
    reference, vectors = world()
    until(reference, Phone(vectors), tmp_path)
    (tmp_path / "evidence.json").write_text("{")
    with pytest.raises(BundleError, match=r"evidence\.json.*without --resume"):
        until(reference, Phone(vectors), tmp_path, resume=True)


def test_the_queries_of_a_chunk_are_few_of_each_class_until_an_answer_changes(tmp_path):
    reference, vectors = world(0.05)
    phone = Phone(vectors)
    until(reference, phone, tmp_path)
    for ids, _ in phone.asked[:-1]:
        each = {len([i for i in ids if i.split("/")[0] == c]) for c in {i[:4] for i in ids}}
        assert each in ({1}, {4})
    first = [i.split("/")[0] for i in phone.asked[0][0]]
    assert first != sorted(first), "drawn by lot"


def test_a_stopped_number_brings_an_interval_that_allows_for_the_stopping(tmp_path):
    from hetero import check

    reference, vectors = world()
    asked = until(reference, Phone(vectors), tmp_path)
    held = reference.only(asked.vectors.ids)
    rows = stopping.with_evidence(check.file(held, PLACE, asked.vectors), asked, PLACE, len(NAMES))
    by_name = {m.name: m for m in rows}
    lost = by_name["recall_at_1_lost"]
    assert lost.value == 0
    assert lost.ci[0] < 0 < lost.ci[1]
    assert LIMIT.judge(lost) == "pass"
    saved = by_name["device_inferences_saved"].value
    assert by_name["device_inferences"].value + saved == len(NAMES)


def test_only_tests_of_noninferiority_are_judged_while_queries_come_in():
    plain = Limit("recall_at_1_lost", at_most=0.1)
    elsewhere = replace(LIMIT, precision="fp16")
    counted = replace(LIMIT, min_n=50)
    assert stopping.judged_limits((plain, LIMIT, elsewhere), PLACE) == (LIMIT,)
    assert stopping.judged_limits((LIMIT, counted), PLACE) == ()
    assert stopping.judged_limits((plain,), PLACE) == ()


# -- the stage ------------------------------------------------------------------------------------


def test_a_sequential_check_times_the_first_chunk_only_and_skips_the_gallery(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from hetero import devices
    from hetero.bundle import Artifact, Bundle
    from hetero.stages import running

    reference, vectors = world()
    plans = []

    class Embedder:
        def __init__(self, device, bundle, item, *, folder, plan, resume, on_event):
            self.plan = plan
            self.result = SimpleNamespace(latency_ns=np.arange(3), facts={})

        def embed(self, ids, pixels):
            plans.append((self.plan.min_runs, len(ids)))
            assert len(pixels) == len(ids)
            return vectors.take(ids)

    monkeypatch.setattr(devices, "DeviceEmbedder", Embedder)
    monkeypatch.setattr(running, "performance", lambda *_: [])
    limits = tmp_path / "limits.toml"
    limits.write_text(
        '[[limit]]\nmeasurement = "recall_at_1_lost"\nprecision = "int8"\n'
        'by = "noninferiority"\nat_most = 0.05\n'
    )
    pictures = {i: np.zeros((2, 2, 3), np.uint8) for i in reference.task.ids}

    class Query(Bundle):
        space, digest = vectors.space, "d"

        def __init__(self) -> None:
            pass

    device = SimpleNamespace(name="phone", execution="native")

    def run(precision: str, sequential: bool) -> running.Ran:
        plans.clear()
        item = Artifact(
            path="m.onnx", kind="onnx", sha256="0" * 64, size_bytes=1, precision=precision
        )
        options = running.CheckOptions(limits=limits, thorough="quick", sequential=sequential)
        return running.on_device(Query(), item, device, reference, pictures, tmp_path, options)

    ran = run("int8", sequential=True)
    assert ran.asked is not None
    assert not ran.whole
    assert [runs for runs, _ in plans] == [20] + [0] * (len(plans) - 1)
    assert ran.asked.queries == sum(n for _, n in plans) < len(NAMES) / 3
    for other in (run("int8", sequential=False), run("fp32", sequential=True)):
        assert (other.asked, other.whole) == (None, True)
        assert plans == [(20, len(reference.task.ids))]
