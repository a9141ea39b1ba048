from __future__ import annotations

import io
import itertools
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console
from sample_report import (
    DEVICE,
    LIMITS,
    compared,
    example,
    failing,
    fleet,
    found,
    passing,
    unjudged,
)

from hetero.cells import Pair
from hetero.errors import ConfigError
from hetero.render import (
    _agreement,
    _drawing,
    _verdict,
    _view,
    _words,
    html,
    junit,
    markdown,
    terminal,
    write_all,
)
from hetero.report import Limit, Measurement, NotRun, Report

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
junitparser = pytest.importorskip("junitparser")

EVIL = '<script>alert(1)</script><img src="https://example.org/x" onerror=x>|`**@team\x1b[31m\x00'


def one(value: float = 0.7, **limit: object) -> Report:
    m = Measurement("heterogeneous_recall_at_1", value, "", "local", "onnx", "fp32")
    made = Report("one number", (m,))
    return made.judged_by([Limit(m.name, **limit)]) if limit else made  # type: ignore[arg-type]


def evil() -> Report:
    rows = unjudged(device=EVIL).measurements
    limit = Limit("cosine_worst", at_least=0.9999, why=EVIL)
    shown = example(EVIL) | {"device": EVIL, "after": [found(EVIL, False)]}
    made = unjudged(
        device=EVIL,
        measurements=(*rows, Measurement("odd_ratio", 0.5, EVIL, EVIL, EVIL, EVIL)),
        subject=EVIL,
        facts={EVIL: EVIL, "protocol": EVIL},
        not_run=(NotRun(EVIL, EVIL, EVIL, EVIL),),
        examples=(shown,),
    )
    return made.judged_by([limit, Limit("odd_ratio", at_most=0, why=EVIL)])


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text."""

    VOID = frozenset({"meta", "link", "img", "br", "use", "wbr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


REPORTS = {
    "passing": passing,
    "failing": failing,
    "unjudged": unjudged,
    "evil": evil,
    "one": one,
    "empty": lambda: Report("nothing", ()),
    "nan": lambda: one(math.nan, at_least=0.5),
    "not run": lambda: Report("x", (), not_run=(NotRun("coreml", "fp32", "", "no Mac here"),)),
}


@pytest.fixture(scope="module", params=REPORTS)
def rendered(request: pytest.FixtureRequest) -> tuple[Report, str]:
    made = REPORTS[request.param]()
    return made, html.render(made)


# --- the sentence


def test_a_pass_says_what_is_found_how_far_from_pytorch_and_what_was_not_run():
    assert _verdict.verdict_line(passing()) == (
        "PASS: the exported query model finds the right image first for 70.8 to 71.2 % of queries "
        "on unseen classes, at worst 0.4 points less than PyTorch; 4 files executed, all 14 checks "
        "passed; 1 file not executed (Core ML)."
    )


def test_files_that_lose_nothing_are_zero_points_from_pytorch():
    fp32 = tuple(m for m in unjudged().measurements if m.precision in ("", "fp32"))
    made = unjudged(measurements=fp32, not_run=()).judged_by(LIMITS)
    assert _verdict.sentence(made) == (
        "The exported query model finds the right image first for 71.2 % of queries on unseen "
        "classes, 0.0 points from PyTorch; all 2 files executed, all 8 checks passed."
    )


def test_a_fail_counts_the_checks_and_names_the_files():
    text = _verdict.verdict_line(failing())
    assert text.startswith("FAIL: ")
    assert "at worst 20.0 points less than PyTorch" in text
    assert "6 of 14 checks failed (ONNX int8 and TFLite int8)" in text


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (Report("x", ()), "INCONCLUSIVE: nothing was held to a limit."),
        (
            one(),
            "INCONCLUSIVE: the exported query model finds the right image first for 70.0 % of "
            "queries; nothing was held to a limit.",
        ),
        (
            one(at_least=0.5),
            "PASS: the exported query model finds the right image first for 70.0 % of queries; "
            "1 file executed, the one check passed.",
        ),
        (one(math.nan, at_least=0.5), "FAIL: 1 of 1 check failed (ONNX fp32)."),
        (
            Report("x", (Measurement("y", 1.0, n=1),)).judged_by([Limit("y", at_least=0, min_n=9)]),
            "INCONCLUSIVE: 1 of 1 check could not be decided (the models).",
        ),
    ],
)
def test_the_sentence_does_without_what_was_not_measured(made, text):
    assert _verdict.verdict_line(made) == text


def test_a_gain_is_not_sold_as_a_loss():
    rows = tuple(
        replace(m, value=-0.002) if m.name == "recall_at_1_lost" else m
        for m in unjudged().measurements
    )
    assert "nowhere less than PyTorch" in _verdict.sentence(unjudged(measurements=rows))


# --- numbers


@pytest.mark.parametrize(
    ("name", "value", "unit", "text"),
    [
        ("heterogeneous_recall_at_1", 0.7123, "", "71.2 %"),
        ("recall_at_1_lost", -0.0001, "", "0.0 points"),
        ("recall_at_1_lost", 0.0041, "", "0.4 points"),
        ("cosine_worst", 0.96123, "", "0.9612"),
        ("cosine_worst", 0.9999987, "", "0.999999"),
        ("cosine_worst", 1.0, "", "1.0000"),
        ("latency_p50", 3.2149, "ms", "3.21 ms"),
        ("latency_p50", 1234.5, "ms", "1234 ms"),
        ("latency_p50", 0.0, "ms", "0 ms"),
        ("throughput", 312.4, "1/s", "312 per second"),
        ("compute_ratio", 12.34, "", "12.3\N{MULTIPLICATION SIGN}"),
        ("images", 1532.0, "count", "1532"),
        ("theirs_recall_at_10", 0.5, "", "50.0 %"),
        ("theirs", 0.123456, "", "0.123"),
        ("size", math.nan, "MiB", "not a number"),
    ],
)
def test_numbers_are_written_for_people(name, value, unit, text):
    assert _words.number(Measurement(name, value, unit)) == text


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [(0.69996, 0.7, "69.996 %"), (0.70001, 0.7, "70.001 %"), (0.7, 0.7, "70.0 %")],
)
def test_a_number_is_never_rounded_across_its_limit(value, limit, text):
    m = Measurement("heterogeneous_recall_at_1", value, limit=Limit("x", at_least=limit))
    assert _words.number(m) == text


# --- every file, every report


def test_all_four_files_are_written_and_equal_input_gives_equal_bytes(tmp_path):
    for folder in ("a", "b"):
        write_all(passing(), tmp_path / folder)
    names = {"report.json", "report.md", "report.html", "junit.xml"}
    assert {x.name for x in (tmp_path / "a").iterdir()} == names
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_numbers_are_on_disk_even_if_a_renderer_refuses(tmp_path):
    bad = example() | {"query": {"id": "q", "label": "q", "image": "https://example.org/q.png"}}
    with pytest.raises(ConfigError, match="not embedded"):
        write_all(unjudged(examples=(bad,)), tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["report.json"]


def test_an_example_without_a_part_is_named(tmp_path):
    bad = example()
    del bad["after"]
    with pytest.raises(ConfigError, match=r"example 2 .*after"):
        html.render(unjudged(examples=(example(), bad)))


# --- HTML


def test_the_page_is_well_formed_and_says_the_verdict_first(rendered):
    made, text = rendered
    page = Page(text)
    assert page.open == []
    verdict = f"{made.verdict.upper()} {_verdict.sentence(made)}"
    at = page.words.index(" ".join(verdict.split()))
    assert page.words.count("Not executed") == 1
    assert at < page.words.index("Not executed")


def test_the_page_loads_nothing_and_runs_nothing(rendered):
    _, text = rendered
    page = Page(text)
    for tag in ("script", "iframe", "object", "embed", "base", "form", "video", "audio"):
        assert not page.all(tag)
    for tag, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (tag, key)
            if key in ("src", "href", "xlink:href", "srcset", "data", "poster"):
                assert str(value).startswith(("data:", "#")), (tag, key, value)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])


def test_ids_are_unique_and_references_point_somewhere(rendered):
    page = Page(rendered[1])
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    wanted = {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a}
    wanted |= {str(a["href"])[1:] for a in page.all("use")}
    wanted |= set(re.findall(r"url\(#([^)]+)\)", rendered[1]))
    assert wanted <= set(ids)


def test_every_picture_has_words_and_every_table_has_headings(rendered):
    page = Page(rendered[1])
    assert all(a.get("alt") for a in page.all("img"))
    assert all(a.get("aria-label") for a in page.all("svg"))
    assert all(a.get("scope") for a in page.all("th"))


def test_plots_use_the_colours_and_the_font_of_the_page():
    text = html.render(passing())
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        assert "var(--" in drawing
        assert "font-family" not in drawing
        found = re.findall(r"#[0-9a-f]{6}\b", re.sub(r'href="#[^"]*"', "", drawing))
        # The colours of lines are made for both themes: see the test of what stands out.
        assert set(found) <= {"#000000", *_drawing.COLOURS}
    assert "71.2 %" in drawings[0]
    assert sum(len(x) for x in drawings) < 120_000


def test_hostile_text_is_shown_and_inert():
    page = Page(html.render(evil()))
    assert not page.all("script")
    assert "<script>alert(1)</script>" in page.words
    assert {a["src"].split(",")[0] for a in page.all("img") if a["src"]} == {
        "data:image/png;base64"
    }


def test_the_page_shows_the_worst_queries_what_failed_and_what_was_not_run():
    words = Page(html.render(failing())).words
    assert "right before, wrong now" in words
    assert "TFLite int8 finds" in words
    assert "Further than this is another picture." in words
    assert "0.4100" in words
    assert "Core ML files run on Apple systems only" in words
    assert "sha256:" + "7" * 64 in words
    assert "The independent query model in the gallery model's index" in words


def test_a_device_is_named_in_each_row_once_there_are_two():
    single = Page(html.render(passing())).words
    rows = [
        *unjudged().measurements,
        *(m for m in unjudged(device="pi:garage").measurements if m.device),
    ]
    double = Page(html.render(unjudged(measurements=tuple(rows)))).words
    assert f"ONNX int8 on {DEVICE}" not in single
    assert f"ONNX int8 on {DEVICE}" in double
    assert "ONNX int8 on pi:garage" in double


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


STYLE = Path(html.__file__).with_name("style.css.jinja")


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_stands_out_from_what_it_stands_on(theme):
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    colours = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[theme]))
    pairs = [(x, "card") for x in ("ink", "muted", "accent", "pass", "fail", "inconclusive")]
    pairs += [("ink", "page"), ("muted", "page")]
    for tone in ("pass", "fail", "inconclusive"):
        pairs += [("on", tone), ("ink", f"{tone}-tint"), ("muted", f"{tone}-tint")]
    for text, ground in pairs:
        light, dark = sorted((luminance(colours[text]), luminance(colours[ground])), reverse=True)
        # WCAG 2.1, level AA for normal text.
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
    for line in _drawing.COLOURS:
        light, dark = sorted((luminance(line), luminance(colours["card"])), reverse=True)
        # Of what is drawn, 3:1 is asked.
        assert (light + 0.05) / (dark + 0.05) >= 3, line


# --- JUnit


def cases(made: Report) -> dict[tuple[str, str], object]:
    xml = junitparser.JUnitXml.fromstring(junit.render(made).encode())
    return {(c.classname, c.name): c for suite in xml for c in suite}


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_junit_parses_back_with_one_case_per_judged_number(make):
    made = make()
    judged = [m for m in made.measurements if m.outcome != "unjudged"]
    xml = junitparser.JUnitXml.fromstring(junit.render(made).encode())
    assert xml.tests == (len(judged) or 1) + len(made.not_run)
    assert xml.failures == sum(m.outcome == "fail" for m in judged)
    assert xml.errors == sum(m.outcome == "inconclusive" for m in judged) + (not judged)
    assert xml.skipped == len(made.not_run)


def test_a_failed_case_says_value_limit_and_why():
    case = cases(failing())[f"{DEVICE}.tflite.int8", "cosine_worst"]
    (result,) = case.result
    assert isinstance(result, junitparser.Failure)
    assert result.message == "0.4100, limit ≥ 0.9. Further than this is another picture."


def test_inconclusive_is_an_error_and_not_run_is_skipped():
    limits = [Limit("heterogeneous_recall_at_1", at_least=0.7, by="interval", format="onnx")]
    found_cases = cases(unjudged().judged_by(limits))
    (undecided,) = found_cases[f"{DEVICE}.onnx.fp32", "heterogeneous_recall_at_1"].result
    assert isinstance(undecided, junitparser.Error)
    assert "the limit lies inside the 95 % interval" in undecided.message
    (absent,) = found_cases[f"{DEVICE}.coreml.fp16", "executed"].result
    assert isinstance(absent, junitparser.Skipped)
    assert absent.message == "Core ML files run on Apple systems only"


def held(classes: int, lost: float = 0.0) -> Report:
    """The loss of a file in so many classes of eight queries, held to a margin of two points."""
    from hetero.verdict import Evidence

    rows = ((8.0, 8, round(lost * classes)), (0.0, 8, classes - round(lost * classes)))
    evidence = Evidence("classes", tuple(r for r in rows if r[2]), 8)
    m = Measurement(
        "recall_at_1_lost", lost, "", "local", "onnx", "int8", ci=(lost, lost), n=8 * classes,
        evidence=evidence,
    )  # fmt: skip
    limit = Limit(m.name, at_most=0.02, by="noninferiority", alpha=0.05, beta=0.1, why="Because.")
    return Report("a test", (m,)).judged_by([limit])


@pytest.mark.parametrize(
    ("classes", "lost", "said"),
    [
        (400, 0.0, "0.0 points (95 % interval 0.0 to 0.0), tested"),
        (400, 0.25, "25.0 points (95 % interval 25.0 to 25.0), tested"),
        (60, 0.0, "0.0 points (95 % interval 0.0 to 0.0), tested"),
    ],
)
def test_every_renderer_shows_estimate_bounds_margin_and_error_rates(classes, lost, said):
    made = held(classes, lost)
    (m,) = made.measurements
    bounds = f"{100 * m.decision.low:.2f} to {100 * m.decision.high:.2f} points"
    asked = "margin 2 points (alpha 5 %, beta 10 %)"
    (case,) = cases(made).values()
    in_junit = case.system_out or case.result[0].message
    for text in (terminal.plain(made), markdown.render(made), in_junit):
        assert said in text
        assert bounds in text
        assert asked in text
    page = " ".join(" ".join(Page(html.render(made)).text).replace("\u00a0", " ").split())
    assert bounds in page
    assert asked in page


def test_a_test_without_a_decision_says_how_much_more_would_bring_one():
    made = held(60)
    (m,) = made.measurements
    assert made.verdict == "inconclusive"
    for text in (terminal.plain(made), markdown.render(made), junit.render(made)):
        assert "more queries would decide, of about" in text
        assert "more classes" in text
    shown = re.search(
        r"about (\d+) more queries would decide, of about (\d+)", terminal.plain(made)
    )
    assert shown is not None
    queries, classes = map(int, shown.groups())
    assert m.decision.more_queries <= queries <= 1.1 * m.decision.more_queries
    assert m.decision.more_classes <= classes <= 1.1 * m.decision.more_classes


def test_a_loss_at_the_margin_is_not_promised_a_decision():
    made = held(400, 0.02)
    assert made.verdict == "inconclusive"
    assert "too close to the margin" in terminal.plain(made)


def test_a_bound_is_never_rounded_across_the_margin():
    from dataclasses import replace

    from hetero.render import _words

    (m,) = held(400).measurements
    near = replace(m, decision=replace(m.decision, low=-0.01, high=0.0199996))
    assert _words.bounds(near) == "-1.00 to 1.99996 points"


def test_a_sequence_judged_by_another_margin_says_that_it_had_stopped():
    from hetero.verdict import Evidence

    evidence = Evidence("sequence", ((0.0, 1, 8),) * 250, 8)
    m = Measurement("recall_at_1_lost", 0.0, "", "local", "onnx", "int8", evidence=evidence)
    limit = Limit(m.name, at_most=0.001, by="noninferiority")
    text = terminal.plain(Report("a sequence", (m,)).judged_by([limit]))
    assert "asking stopped when an earlier limit was decided" in text


def test_two_limits_on_one_number_are_two_cases_with_two_names():
    made = one(0.7)
    limits = [Limit("heterogeneous_recall_at_1", at_least=x) for x in (0.5, 0.9)]
    names = {name for _, name in cases(made.judged_by(limits))}
    assert names == {"heterogeneous_recall_at_1", "heterogeneous_recall_at_1 ≥ 90 %"}


def test_unjudged_numbers_and_facts_are_properties():
    xml = junitparser.JUnitXml.fromstring(junit.render(passing()).encode())
    properties = {(s.name, p.name): p.value for s in xml for p in s.properties()}
    assert properties["the models", "fact.seed"] == "0"
    assert properties[f"TFLite int8 on {DEVICE}", "latency_p50"] == "3.21 ms"


# --- the table of files


@pytest.mark.parametrize("bounds", [(0.5, 0.9), (0.9, 0.5)])
def test_the_graver_of_two_outcomes_is_the_one_in_the_table(bounds):
    made = one(0.7).judged_by([Limit("heterogeneous_recall_at_1", at_least=x) for x in bounds])
    (row,) = _view.table(made).rows
    assert row.outcome == "fail"
    assert [cell and cell.outcome for cell in row.cells] == ["fail"]


def test_pytorch_comes_first_files_follow_and_what_was_not_run_is_last():
    table = _view.table(passing())
    assert [row.name for row in table.rows] == [
        "PyTorch fp32",
        "ONNX fp32",
        "ONNX int8",
        "TFLite fp32",
        "TFLite int8",
        "Core ML fp16",
    ]
    assert [row.note for row in table.rows] == ["reference", "", "", "", "", "not run"]


def test_a_file_that_was_only_weighed_is_shown_as_not_run():
    weighed = Measurement("size", 4.0, "MiB", "", "coreml", "fp16")
    made = unjudged(measurements=(*unjudged().measurements, weighed))
    rows = [row for row in _view.table(made).rows if row.name == "Core ML fp16"]
    assert [(row.note, row.outcome) for row in rows] == [("not run", None)]
    assert "4 files executed" in _verdict.sentence(made.judged_by(LIMITS))


# --- Markdown


def tables(text: str) -> list[list[int]]:
    """Cells per row of every table, as a CommonMark parser with GitHub's tables sees them."""
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table")
    out: list[list[int]] = []
    for token in parser.parse(text):
        if token.type == "table_open":
            out.append([])
        elif token.type == "tr_open":
            out[-1].append(0)
        elif token.type in ("td_open", "th_open"):
            out[-1][-1] += 1
    return out


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_markdown_tables_are_well_formed(make):
    made = make()
    # A short row is padded by the parser and a long one cut, so the pipes are counted as well.
    text = markdown.render(made)
    for line in text.splitlines():
        if line.startswith("| ---"):
            width = line.count("|")
    rows = [x for x in text.splitlines() if x.startswith("| ") and not x.startswith("| ---")]
    widths = {len(re.findall(r"(?<!\\)\|", x)) for x in rows}
    assert len(widths) <= 2
    for table in tables(text):
        assert len(set(table)) == 1
    if made.measurements:
        assert width - 1 in {n for table in tables(text) for n in table}


def test_markdown_has_verdict_table_failures_and_what_was_not_run():
    text = markdown.render(failing())
    assert text.startswith("## ❌ FAIL: mobilenet in the space of resnet")
    assert "| TFLite int8 |" in text
    assert "**0.4100** ❌" in text
    assert "- ❌ **Cosine to PyTorch, worst**, TFLite int8: 0.4100, limit ≥ 0.9." in text
    assert "- Core ML fp16: Core ML files run on Apple systems only" in text


def test_hostile_text_is_inert_in_markdown():
    text = markdown.render(evil())
    parser = pytest.importorskip("markdown_it").MarkdownIt("commonmark", {"html": True})
    page = Page(parser.enable("table").render(text))
    assert not page.all("script")
    assert not page.all("img")
    assert not re.search(r"(?<!\w)@team", text)
    assert "\x1b" not in text
    assert "\x00" not in text


# --- terminal


def shown(made: Report, width: int = 160, **options: object) -> str:
    file = io.StringIO()
    terminal.show(made, Console(file=file, width=width, **options))  # type: ignore[arg-type]
    return file.getvalue()


def test_a_pipe_gets_plain_lines_that_end_in_the_verdict():
    lines = shown(failing(), width=40).splitlines()
    assert lines[-1] == _verdict.verdict_line(failing())
    (line,) = (x for x in lines if x.startswith(f"TFLite int8 on {DEVICE}: "))
    assert "cosine_worst=0.4100 [fail]" in line
    assert "latency_p50=3.21 ms" in line
    assert any(x.startswith("not run: Core ML fp16") for x in lines)


def test_a_terminal_gets_a_table_and_colours_only_if_they_are_wanted(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(failing(), force_terminal=True, color_system="standard")
    assert "\x1b[1;31m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in shown(failing(), force_terminal=True, color_system="standard")
    assert "Worst" not in coloured
    assert "worst cos." in coloured


@pytest.mark.parametrize("width", [50, 60, 80, 100, 120])
def test_a_narrow_terminal_loses_columns_and_never_digits(width):
    text = shown(failing(), width=width, force_terminal=True)
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    table = text[: text.index("fail: ")]
    assert re.search(r"TFLite fp32 +71\.2 ", table)
    assert re.search(r"TFLite int8 +51\.2 ✗", table)
    assert "…" not in table
    assert ("No room here for memory" in table) == (width <= 100)


@pytest.mark.parametrize("make", REPORTS.values(), ids=REPORTS)
def test_nothing_from_outside_can_steer_the_terminal(make):
    plain = terminal.plain(make())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", plain)
    text = shown(make(), force_terminal=True, no_color=True, color_system=None)
    assert "\x1b[31m" not in text
    assert make().verdict.upper() in text


def test_no_words_of_a_plots_axis_overlap_or_leave_the_plot():
    labels = [f"ONNX {p} on ssh:pi@raspberrypi.local,threads=4" for p in ("fp32", "int8")]
    with matplotlib.rc_context(_drawing.STYLE):
        figure, axes = _drawing.canvas(labels)
        axes.plot([1e-9, 0.5], [0, 1])
        _drawing.log_axis(axes, lambda x, _: f"{1 - x:.9f}", (1,))
        axes.set_xlabel("a sentence on what the axis shows that is far too long for one line of it")
        _drawing._fit(figure)
        figure.draw_without_rendering()
        ticks = [x for x in axes.get_xticklabels() if x.get_text() and x.get_visible()]
        boxes = sorted((x.get_window_extent() for x in ticks), key=lambda x: x.x0)
        sentence = axes.xaxis.label.get_window_extent()
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))
    assert sentence.x0 >= 0
    assert sentence.x1 <= figure.bbox.x1
    assert [x.get_text().count("\n") for x in axes.get_yticklabels()] == [1, 1]


def test_a_page_without_a_search_does_not_speak_of_one():
    rows = tuple(x for x in unjudged().measurements if x.unit == "ms")
    text = " ".join(html.render(Report("latency", rows)).split())
    assert "Each file ran on the device <code>" in text
    assert "the index was embedded" not in text
    assert "the index was embedded" in " ".join(html.render(unjudged()).split())


def test_a_cosine_below_1_never_reads_as_1_and_1_as_no_less():
    def said(cosine):
        pairs = (Pair("onnx", "fp32", "", b, cosine, "q", 1.0, 9) for b in ("one", "two"))
        (matrix,) = _agreement.matrices(Report("x", (), agreement=tuple(pairs)))
        return matrix.rows[0][1][0].cosine

    assert [said(x) for x in (1.0, 1 + 1e-12)] == ["1", "1"]
    assert said(1 - 9.6e-13) == "1 \N{MINUS SIGN} 1e-12"
    assert said(0.9781333) == "0.9781"


def test_a_number_that_is_not_to_be_believed_says_so_below_itself():
    cells = [c for row in _view.table(fleet()).rows for c in row.cells if c and c.mark]
    assert {c.mark for c in cells} == {"noisy"}
    assert {(c.bare, c.text) for c in cells} >= {("3.21", "3.21 (noisy)")}
    assert (
        '3.21<span class="u"> ms</span></span><span class="interval">noisy</span>'
        in html.render(fleet())
    )


def test_a_pipe_without_unicode_gets_question_marks_and_no_crash():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    terminal.show(failing(), Console(file=file, width=80))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "limit ? 0.9" in text


def test_a_file_that_only_a_reference_interpreter_executed_is_not_counted_as_executed():
    rows = tuple(
        Measurement("heterogeneous_recall_at_1", 0.5, "", device, format, "fp32", n=100)
        for device, format in (("local", "onnx"), ("reference", "coreml"))
    )
    report = Report("x", rows, not_run=(NotRun("coreml", "fp32", "its own runtime", "no Mac"),))
    said = _verdict.sentence(report.judged_by([Limit("heterogeneous_recall_at_1", at_least=0.1)]))
    assert "1 file executed, 1 file executed by a reference interpreter only" in said
    assert "1 file not executed by their own runtime (Core ML)" in said


def test_headings_go_down_by_one_and_every_section_is_in_the_list(rendered):
    page = Page(rendered[1])
    levels = [int(name[1]) for name, _ in page.elements if name in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = {a["id"] for _, a in page.elements if a.get("id")}
    links = [str(a["href"]) for a in page.all("a")]
    assert {x.removeprefix("#") for x in links} <= ids
    titled = {a["id"] for name, a in page.elements if name == "h2"}
    assert {x.removeprefix("#") for x in links} == titled | {"content"}


def test_a_run_that_is_held_to_an_earlier_one_says_what_became_worse():
    report = compared()
    worse = [m for m in report.measurements if m.name == "recall_at_1_lost_to_baseline"]
    assert "fail" in {m.outcome for m in worse}
    for text in (html.render(report), markdown.render(report)):
        assert "Against the" in text
        assert "runs/last-week" in text
        assert "Recall@1 lost to the baseline" in text
    assert "Against the" not in html.render(failing())
