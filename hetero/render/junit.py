"""A report as JUnit XML, for CI servers.

One suite per file, one test case per judged measurement, named after it; the class name is
``device.format.precision``. What CI servers make of the outcomes:

- fail is a ``failure``.
- inconclusive is an ``error`` of type "inconclusive". Servers show a skipped test as harmless, and
  a gate that could not decide must not look green; JUnit's error means just that: the test did
  not come to a result.
- What cannot be executed here is a test case "executed" that was ``skipped``, with the reason.
- What a device left out, or its runtime refused, is an ``error`` of type "device" or "refused".
- Unjudged numbers and facts are properties.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hetero.errors import require
from hetero.render import _verdict, _view, _words
from hetero.report import Measurement, Report

if TYPE_CHECKING:
    from junitparser import TestCase, TestSuite


def render(report: Report) -> str:
    """The report as JUnit XML, UTF-8.

    Raises:
        MissingExtraError: junitparser is not installed.
    """
    lib = require("junitparser", "report")
    xml = lib.JUnitXml(name=_words.one_line(report.subject))
    suites: dict[str, TestSuite] = {}

    def suite(*at: str) -> TestSuite:
        name = _words.one_line(_words.place(*at))
        if name not in suites:
            suites[name] = lib.TestSuite(name)
        return suites[name]

    for subject in _view.subjects(report):
        suite(*subject.place)
    seen: set[tuple[str, str]] = set()
    for m in report.measurements:
        at = (m.device, m.format, m.precision)
        if m.outcome == "unjudged":
            suite(*at).add_property(*_property(m))
            continue
        case = _case(lib, m)
        if (case.classname, case.name) in seen:
            # Two limits on one number: the limit tells them apart.
            case.name = f"{case.name} {_words.bound(m)}"
        seen.add((case.classname, case.name))
        suite(*at).add_testcase(case)
    for x in report.not_run:
        case = lib.TestCase("executed", _class_name(x.device, x.format, x.precision))
        why = _words.one_line(x.reason)
        skipped = x.obstacle == "unavailable"
        case.result = [lib.Skipped(why, "not run") if skipped else lib.Error(why, x.obstacle)]
        suite(x.device, x.format, x.precision).add_testcase(case)
    if not seen:
        case = lib.TestCase("verdict", "models")
        case.result = [lib.Error("nothing was held to a limit", "inconclusive")]
        suite("", "", "").add_testcase(case)
    first = suite("", "", "") if "the models" in suites else next(iter(suites.values()))
    first.add_property("verdict", _verdict.verdict_line(report))
    for name, value in report.facts.items():
        first.add_property(f"fact.{_words.one_line(name)}", _words.one_line(value))
    for one in suites.values():
        xml.add_testsuite(one)
    xml.update_statistics()
    text: bytes = xml.tostring()
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text.decode()}\n'


def _class_name(device: str, format: str, precision: str) -> str:
    return _words.one_line(".".join(x for x in (device, format, precision) if x) or "models")


def _case(lib: Any, m: Measurement) -> TestCase:
    case: TestCase = lib.TestCase(
        _words.one_line(m.name), _class_name(m.device, m.format, m.precision)
    )
    if m.outcome == "fail":
        case.result = [lib.Failure(_view.explain(m), "limit")]
    elif m.outcome == "inconclusive":
        case.result = [lib.Error(f"inconclusive: {_view.explain(m)}", "inconclusive")]
    else:
        case.system_out = _view.explain(m)
    return case


def _property(m: Measurement) -> tuple[str, str]:
    return _words.one_line(m.name), _words.number(m)
