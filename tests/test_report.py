from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_report import failing, passing, unjudged

import hetero.report
from hetero.errors import BundleError, ConfigError
from hetero.report import EXIT_CODES, Limit, Measurement, NotRun, Report, load_limits
from hetero.verdict import Evidence, decide

SCHEMA = json.loads(
    Path(hetero.report.__file__).with_name("report.schema.json").read_text(encoding="utf-8")
)


VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def check(value: object) -> None:
    VALIDATOR.validate(value)


def report(*measurements: Measurement) -> Report:
    return Report("test", measurements)


def judged(m: Measurement, **limit: object) -> str:
    return Limit(m.name, **limit).judge(m)  # type: ignore[arg-type]


# --- limits


@pytest.mark.parametrize(
    ("value", "limit", "outcome"),
    [
        (0.7, {"at_least": 0.7}, "pass"),
        (0.6999, {"at_least": 0.7}, "fail"),
        (5.0, {"at_most": 5}, "pass"),
        (5.1, {"at_most": 5}, "fail"),
        (3.0, {"at_least": 2, "at_most": 4}, "pass"),
        (1.0, {"at_least": 2, "at_most": 4}, "fail"),
        (5.0, {"at_least": 2, "at_most": 4}, "fail"),
    ],
)
def test_a_value_is_judged_by_its_bounds_which_belong_to_the_good_side(value, limit, outcome):
    assert judged(Measurement("x", value), **limit) == outcome


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_finite_number_fails_whatever_the_limit(value):
    m = Measurement("x", value, ci=(0.8, 0.9), n=1)
    assert judged(m, at_least=-1e9) == "fail"
    assert judged(m, at_most=1e9, by="interval", min_n=100) == "fail"


@pytest.mark.parametrize(
    ("ci", "outcome"),
    [((0.7, 0.8), "pass"), ((0.5, 0.69), "fail"), ((0.69, 0.8), "inconclusive")],
)
def test_by_interval_a_limit_inside_the_interval_is_inconclusive(ci, outcome):
    assert judged(Measurement("x", 0.75, ci=ci), at_least=0.7, by="interval") == outcome


@given(
    ends=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    bounds=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_by_interval_is_what_every_point_of_the_interval_says(ends, bounds):
    (low, high), (least, most) = sorted(ends), sorted(bounds)
    inside = [least <= x <= most for x in np.linspace(low, high, 41)]
    if least <= low and high <= most:
        expected = "pass"
    elif high < least or low > most:
        expected = "fail"
        assert not any(inside[1:-1])
    else:
        expected = "inconclusive"
    m = Measurement("x", (low + high) / 2, ci=(low, high))
    assert judged(m, at_least=least, at_most=most, by="interval") == expected
    if expected == "pass":
        assert all(inside[1:-1])


def test_too_few_observations_are_inconclusive_even_if_the_value_is_good():
    assert judged(Measurement("x", 1.0, n=99), at_least=0, min_n=100) == "inconclusive"
    assert judged(Measurement("x", 1.0, n=100), at_least=0, min_n=100) == "pass"


def test_a_limit_that_needs_an_interval_or_a_count_refuses_a_number_without_one():
    with pytest.raises(ConfigError, match="without one"):
        judged(Measurement("x", 1.0), at_least=0, by="interval")
    with pytest.raises(ConfigError, match="without a count"):
        judged(Measurement("x", 1.0), at_least=0, min_n=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"at_least": math.nan},
        {"at_most": math.inf},
        {"at_least": "0.9"},
        {"at_least": True},
        {"at_least": 2, "at_most": 1},
        {"at_least": 0, "by": "median"},
        {"at_least": 0, "min_n": -1},
        {"at_least": 0, "min_n": 1.5},
        {"at_least": 0, "device": 7},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="limit on 'x'"):
        Limit("x", **wrong)


def test_a_limit_is_laid_on_the_rows_its_patterns_choose():
    rows = [
        Measurement("x", 1.0, "", d, f, p)
        for d, f, p in (
            ("pi:a", "onnx", "fp32"),
            ("pi:b", "onnx", "int8"),
            ("local", "tflite", "int8"),
        )
    ]
    out = report(*rows).judged_by([Limit("x", at_least=0, device="pi:*", precision="int8")])
    assert [m.outcome for m in out.measurements] == ["unjudged", "pass", "unjudged"]


def test_a_limit_on_something_unmeasured_is_an_error():
    with pytest.raises(ConfigError, match="names nothing that was measured"):
        report(Measurement("x", 1.0)).judged_by([Limit("y", at_least=0)])
    with pytest.raises(ConfigError, match="device pi"):
        report(Measurement("x", 1.0)).judged_by([Limit("x", at_least=0, device="pi")])


def test_two_limits_on_one_number_give_two_rows_and_neither_hides_the_other():
    limits = [Limit("x", at_least=0.5, why="loose"), Limit("x", at_least=0.9, why="tight")]
    out = report(Measurement("x", 0.7), Measurement("y", 1.0)).judged_by(limits)
    assert [(m.name, m.outcome) for m in out.measurements] == [
        ("x", "pass"),
        ("x", "fail"),
        ("y", "unjudged"),
    ]
    assert out.verdict == "fail"


@pytest.mark.parametrize(
    ("outcomes", "verdict", "code"),
    [
        (["pass", "unjudged"], "pass", 0),
        (["pass", "inconclusive", "fail"], "fail", 1),
        (["pass", "inconclusive"], "inconclusive", 3),
        (["unjudged"], "inconclusive", 3),
        ([], "inconclusive", 3),
    ],
)
def test_the_verdict_is_the_gravest_outcome_and_nothing_judged_is_no_pass(outcomes, verdict, code):
    out = report(*(Measurement("x", 1.0, outcome=o) for o in outcomes))
    assert out.verdict == verdict
    assert EXIT_CODES[out.verdict] == code


def test_get_finds_the_first_match_or_says_what_is_missing():
    rows = [
        Measurement("x", float(i), "", "d", f, "int8") for i, f in enumerate(("onnx", "tflite"))
    ]
    assert report(*rows).get("x", format="tf*").value == 1
    with pytest.raises(KeyError, match="no measurement y"):
        report(*rows).get("y")


# --- limits.toml


def test_limits_are_read_from_toml(tmp_path):
    path = tmp_path / "limits.toml"
    path.write_text('[[limit]]\nmeasurement = "x"\nat_least = 1\nprecision = "fp*"\nmin_n = 3\n')
    assert load_limits(path) == (Limit("x", at_least=1, precision="fp*", min_n=3),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing would be judged"),
        ("limit = 3", "nothing would be judged"),
        ("[[limit]", "not TOML"),
        ('[[limit]]\nmeasurement = "x"\nat_leest = 1', "limit 1"),
        ('[[limit]]\nmeasurement = "x"', "give at_least"),
        ('[[limit]]\nmeasurement = "x"\nat_least = "1"', "not a finite number"),
    ],
)
def test_limits_that_cannot_be_read_say_where_and_why(tmp_path, text, message):
    path = tmp_path / "limits.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_limits(path)


def test_missing_limits_are_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_limits(tmp_path / "none.toml")


# --- report.json


@pytest.mark.parametrize("make", [passing, failing, unjudged])
def test_a_saved_report_keeps_to_the_schema_and_comes_back_equal(make, tmp_path):
    before = make()
    before.save(tmp_path / "report.json")
    raw = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    check(raw)
    after = Report.load(tmp_path / "report.json")
    assert after.to_json() == before.to_json()
    assert after.verdict == before.verdict == raw["verdict"]
    assert [m.limit and m.limit.at_least for m in after.measurements] == [
        m.limit and m.limit.at_least for m in before.measurements
    ]


def test_an_empty_report_keeps_to_the_schema():
    check(report().to_json())


def test_numpy_numbers_and_numbers_that_are_not_finite_can_be_saved(tmp_path):
    rows = (
        Measurement("a", np.float64(0.5), ci=(np.float64(0.25), 0.75), n=3),
        Measurement("b", math.nan, ci=(math.nan, 1.0)),
    )
    made = Report("x", rows, series={"cosine|d|onnx|int8": [np.float64(0.5), math.nan]})
    made.save(tmp_path / "report.json")
    raw = json.loads((tmp_path / "report.json").read_text())
    check(raw)
    a, b = raw["measurements"]
    assert (a["value"], a["ci"], a["n"]) == (0.5, [0.25, 0.75], 3)
    assert (b["value"], b["ci"]) == (None, None)
    back = Report.load(tmp_path / "report.json")
    assert math.isnan(back.measurements[1].value)
    assert back.series["cosine|d|onnx|int8"][0] == 0.5
    assert math.isnan(back.series["cosine|d|onnx|int8"][1])


def test_a_file_name_that_is_not_utf8_survives_the_round_trip(tmp_path):
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    Report(name, ()).save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").subject == name


@settings(max_examples=40)
@given(
    st.text(max_size=20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.integers(0, 10**9),
)
def test_any_text_and_any_number_round_trip(text, value, n):
    m = Measurement("x", value, text, text, text, text, n=n)
    made = Report(text, (m,), {text: text}, (NotRun(text, text, text, text + "."),))
    raw = json.loads(json.dumps(made.to_json(), allow_nan=False))
    check(raw)
    assert Measurement.from_json(raw["measurements"][0]) == m


def broken(change: object) -> dict[str, object]:
    raw = json.loads(json.dumps(passing().to_json()))
    change(raw)  # type: ignore[operator]
    return raw


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.update(extra=1),
        lambda r: r.pop("facts"),
        lambda r: r.update(verdict="ok"),
        lambda r: r["measurements"][0].update(extra=1),
        lambda r: r["measurements"][0].pop("n"),
        lambda r: r["measurements"][0].update(name="recallAt1"),
        lambda r: r["measurements"][0].update(name="recall at 1"),
        lambda r: r["measurements"][0].update(name="recall_"),
        lambda r: r["measurements"][0].update(outcome="pass", limit=None),
        lambda r: r["measurements"][0].update(ci=[1]),
        lambda r: r["measurements"][0].update(ci=[1, 2, 3]),
        lambda r: r["measurements"][0].update(value="1"),
        lambda r: r["facts"].update(seed=0),
        lambda r: r["not_run"][0].update(reason=""),
        lambda r: r["examples"][0]["query"].update(image="https://example.org/x.png"),
        lambda r: r["examples"][0]["after"][0].update(right="yes"),
        lambda r: r["series"].update({"latency": [1]}),
        lambda r: r["series"].update({"latency_ms|a|b|c": ["1"]}),
    ],
)
def test_the_schema_is_strict(change):
    with pytest.raises(jsonschema.ValidationError):
        check(broken(change))


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": "hetero.report/99"}',
        json.dumps(passing().to_json())[:-20],
        json.dumps(passing().to_json() | {"measurements": [{}]}),
        json.dumps(passing().to_json() | {"series": []}),
        json.dumps(passing().to_json() | {"not_run": [{"surprise": 1}]}),
    ],
)
def test_a_torn_or_foreign_report_is_named_and_refused(text, tmp_path):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(BundleError, match=r"report\.json"):
        Report.load(path)


# --- noninferiority

CLEAN = Evidence("classes", ((0.0, 8, 400),), 8)


def lost(evidence: Evidence | None = CLEAN, **more: object) -> Measurement:
    parts = {"value": 0.0, "precision": "int8", "n": 3200, "evidence": evidence, **more}
    return Measurement("recall_at_1_lost", **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "outcome"),
    [
        (((0.0, 8, 400),), "pass"),
        (((8.0, 8, 60), (0.0, 8, 340)), "fail"),
        (((0.0, 8, 50),), "inconclusive"),
    ],
)
def test_by_noninferiority_the_paired_outcomes_decide(rows, outcome):
    m = lost(Evidence("classes", rows, 8))
    limit = {"at_most": 0.02, "by": "noninferiority"}
    assert judged(m, **limit) == outcome
    (after,) = report(m).judged_by([Limit(m.name, **limit)]).measurements
    assert after.outcome == outcome == after.decision.outcome
    assert after.decision == decide(m.evidence, 0.02, 0.05, 0.05)
    assert (after.decision.more_queries is not None) == (outcome == "inconclusive")


def test_a_test_of_noninferiority_needs_paired_outcomes():
    with pytest.raises(ConfigError, match="without paired outcomes"):
        judged(lost(None), at_most=0.02, by="noninferiority")


def test_a_minimum_of_observations_and_a_number_that_is_none_come_before_the_test():
    limit = {"at_most": 0.02, "by": "noninferiority"}
    assert judged(lost(), **limit, min_n=3201) == "inconclusive"
    assert judged(lost(value=math.nan), **limit) == "fail"


@pytest.mark.parametrize(
    "wrong",
    [
        {"at_least": 0.0},
        {"at_least": 0.0, "at_most": 0.02},
        {"at_most": 1.0},
        {"at_most": 0.02, "alpha": 0},
        {"at_most": 0.02, "alpha": 0.5},
        {"at_most": 0.02, "beta": True},
        {"at_most": 0.02, "beta": "0.05"},
    ],
)
def test_a_test_without_a_margin_or_with_impossible_error_rates_is_refused(wrong):
    with pytest.raises(ConfigError, match="limit on 'x'"):
        Limit("x", by="noninferiority", **wrong)


@pytest.mark.parametrize("rows", [((0.0, 8, 400),), ((0.0, 8, 50),)])
def test_a_tested_report_keeps_to_the_schema_and_can_be_judged_again_from_its_file(rows, tmp_path):
    limit = Limit("recall_at_1_lost", at_most=0.02, by="noninferiority", alpha=0.01, beta=0.1)
    before = report(lost(Evidence("classes", rows, 8))).judged_by([limit])
    before.save(tmp_path / "report.json")
    check(json.loads((tmp_path / "report.json").read_text()))
    after = Report.load(tmp_path / "report.json")
    assert after.to_json() == before.to_json()
    bare = dataclasses.replace(after.measurements[0], limit=None, decision=None, outcome="unjudged")
    assert (
        report(bare).judged_by([limit]).to_json()["measurements"]
        == (before.to_json()["measurements"])
    )
    (other,) = report(bare).judged_by([dataclasses.replace(limit, at_most=0.9)]).measurements
    assert other.outcome == "pass"


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["evidence"].update(rows=[]),
        lambda m: m["evidence"].update(rows=[[0.0, 8]]),
        lambda m: m["evidence"].update(design="ear"),
        lambda m: m["decision"].pop("low"),
        lambda m: m["limit"].pop("alpha"),
        lambda m: m["limit"].update(by="value"),
        lambda m: m["limit"].update(at_least=0.0),
    ],
)
def test_the_schema_is_strict_about_tests(change):
    raw = (
        report(lost())
        .judged_by([Limit("recall_at_1_lost", at_most=0.02, by="noninferiority")])
        .to_json()
    )
    check(raw)
    change(raw["measurements"][0])
    with pytest.raises(jsonschema.ValidationError):
        check(raw)


def test_a_report_with_torn_evidence_is_refused(tmp_path):
    raw = report(lost()).to_json()
    raw["measurements"][0]["evidence"]["rows"] = [[9.0, 8, 400]]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"report\.json"):
        Report.load(tmp_path / "report.json")


def test_a_report_from_before_there_was_evidence_is_still_read(tmp_path):
    raw = passing().to_json()
    for m in raw["measurements"]:
        del m["evidence"], m["decision"]
    (tmp_path / "report.json").write_text(json.dumps(raw))
    assert Report.load(tmp_path / "report.json").to_json() == passing().to_json()


def test_the_built_in_limits_test_what_quantisation_costs_with_declared_error_rates():
    tests = [x for x in load_limits() if x.by == "noninferiority"]
    assert {(x.measurement, x.precision) for x in tests} >= {("recall_at_1_lost", "int8")}
    assert all(0 < x.alpha <= 0.05 and 0 < x.beta <= 0.05 for x in tests)
