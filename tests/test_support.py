from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import support_page

RAW = {
    "command": "python -m benchmarks.support",
    "size_px": 96,
    "dim": 128,
    "probes": 32,
    "rounds": 20,
    "processors": 2,
    "python": "3.11",
    "system": "Linux x86_64",
    "versions": {"torch": "2"},
    "architectures": {"net": {"parameters": 2_500_000, "macs": 30_000_000, "load_average": 0.4}},
    "cells": [
        {
            "architecture": "net",
            "format": "onnx",
            "precision": "fp16",
            "works": True,
            "cosine_worst": 0.9991,
            "size_bytes": 2048,
            "conversion_s": 1.25,
            "latency": {"ms": 1.5, "ratio": 0.5},
        },
        {
            "architecture": "net",
            "format": "tflite",
            "precision": "fp32",
            "works": False,
            "reason": "no such op",
            "latency": None,
        },
    ],
}


def test_the_page_says_what_works_what_fails_and_what_is_below_its_target():
    page = support_page.render(RAW)
    assert "**1 of 2 files work (50%)**" in page
    assert "| onnx fp16 | works | 0.999100 | 2 | 1.50 | 0.50 | 1.2 |" in page
    assert "| tflite fp32 | **fails** |" in page
    assert "- net: no such op" in page
    assert "- net onnx fp16: 0.999100, wanted 0.9995" in page


def test_the_page_says_whether_other_work_ran_while_it_was_timed():
    assert "other work" not in support_page.render(RAW)
    about = {"net": {**RAW["architectures"]["net"], "load_average": 3.1}}
    page = support_page.render({**RAW, "architectures": about})
    assert "other work ran meanwhile (load average 3.1 to 3.1 on 2 processors)" in page


def test_the_page_is_made_from_the_raw_file():
    root = Path(__file__).parents[1]
    raw = root / "benchmarks/results/support.json"
    if not raw.exists():
        pytest.skip("python -m benchmarks.support has not been run")
    assert (root / support_page.PAGE).read_text() == support_page.render(
        json.loads(raw.read_text())
    )
