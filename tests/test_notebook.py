"""What a notebook shows of the public types: a line or a small table, whatever they hold."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import sample_report
from geometry import embeddings

from hetero.data import Images
from hetero.render import notebook


class Cells(HTMLParser):
    """The cells of a table's rows, as a browser would read them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def pictures(count: int) -> Images:
    ids = tuple(f"picture {i}" for i in range(count))
    labels = tuple(f"class {i % 10}" for i in range(count))
    splits = tuple(("train", "test")[i % 10 == 0] for i in range(count))
    return Images("toys", ids, labels, ids, splits, ("both",) * count, read=lambda row: None)  # type: ignore[arg-type, return-value]


def test_rows_and_pictures_are_told_in_a_line_whatever_their_number():
    many = embeddings(np.random.default_rng(0).normal(size=(5000, 8)))
    assert repr(many).startswith("Embeddings(5,000 x 8 in ")
    assert repr(pictures(5000)) == "Images(toys: 4,500 train, 500 test; 10 classes)"
    assert max(len(repr(many)), len(repr(pictures(5000)))) < 200


def test_a_report_is_a_sentence_and_a_table_of_its_files():
    report = sample_report.failing()
    text = report._repr_html_()
    assert "FAIL" in text
    cells = Cells(text)
    head, *rows = cells.rows
    assert (head[0], head[-1]) == ("file", "outcome")
    assert {len(row) for row in rows} == {len(head)}
    assert any("fail" in row for row in rows)
    assert len(repr(report)) < 300
    assert not cells.tags & {"script", "style", "img", "link"}


def test_what_a_report_says_cannot_become_markup():
    report = replace(sample_report.failing(), subject="<script>alert(1)</script>")
    assert "<script>" not in report._repr_html_()


def test_a_bundle_is_a_table_of_what_it_is(tmp_path):
    from test_bundle import make

    made = make(tmp_path / "<b>gallery</b>")
    rows = dict(Cells(made._repr_html_()).rows)
    assert rows["role"] == "query"
    assert rows["folder"] == str(made.root)
    assert rows["parameters"] == f"{made.manifest.model.parameters:,}"
    assert made._repr_html_() == notebook.bundle(made)
    assert "\n" not in repr(made)
