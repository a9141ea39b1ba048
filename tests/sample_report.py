"""A report with everything in it, for the tests of the renderers; the numbers are made up."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from hetero import baseline
from hetero.cells import Cell, Pair
from hetero.plane import Asked, Plane, Spot
from hetero.report import Limit, Measurement, NotRun, Report

DEVICE = "local:threads=2"

LIMITS = (
    Limit("heterogeneous_recall_at_1", at_least=0.6, by="interval", min_n=200),
    Limit("recall_at_1_lost", at_most=0.03, by="interval", why="What an export may cost."),
    Limit("cosine_worst", at_least=0.9, why="Further than this is another picture."),
    Limit("control_recall_at_1", at_most=0.05),
)


def picture(colour: str) -> str:
    """A data URI of a small PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def found(label: str, right: bool, similarity: float = 0.5) -> dict[str, object]:
    """One answer of an example."""
    return {
        "id": f"gallery/{label}",
        "label": label,
        "image": picture("green" if right else "red"),
        "similarity": similarity,
        "right": right,
    }


def example(label: str = "sailboat", precision: str = "int8") -> dict[str, object]:
    """A query that went from right to wrong."""
    return {
        "query": {"id": f"query/{label}", "label": label, "image": picture("blue")},
        "device": DEVICE,
        "format": "tflite",
        "precision": precision,
        "before": [found(label, True, 0.9), found("cat", False, 0.8)],
        "after": [found("cat", False, 0.8), found(label, True, 0.7)],
    }


def unjudged(device: str = DEVICE, broken: bool = False, **fields: object) -> Report:
    """A full report without limits; `broken` turns the vectors of the int8 files."""
    rng = np.random.default_rng(0)
    rows: list[Measurement] = []

    def add(name: str, value: float, unit: str = "", *at: str, half: float | None = None) -> None:
        ci = None if half is None else (value - half, value + half)
        device, format, precision = at or ("", "", "")
        rows.append(Measurement(name, value, unit, device, format, precision, ci=ci, n=1532))

    for name, recall in (("paragon", 0.801), ("control", 0.006), ("independent", 0.583)):
        add(f"{name}_recall_at_1", recall, half=0.004)
        add(f"{name}_map", 0.7 * recall)
    add("pixels_recall_at_1", 0.214)
    add("chance_recall_at_1", 0.0031)
    add("compute_ratio", 12.34)
    for name, recall in (("heterogeneous", 0.712), ("homogeneous_query", 0.664), ("reverse", 0.69)):
        add(f"{name}_recall_at_1", recall, "", "", "pytorch", "fp32", half=0.02)
        add(f"{name}_map", 0.7 * recall, "", "", "pytorch", "fp32")
    series = {}
    for format in ("onnx", "tflite"):
        for precision in ("fp32", "int8"):
            at = (device, format, precision)
            lost = 0.0 if precision == "fp32" else (0.2 if broken else 0.004)
            worst = 0.999998 if precision == "fp32" else (0.41 if broken else 0.96)
            add("heterogeneous_recall_at_1", 0.712 - lost, "", *at, half=0.02)
            add("heterogeneous_map", 0.5 - lost, "", *at)
            add("homogeneous_query_recall_at_1", 0.66 - lost, "", *at)
            add("recall_at_1_lost", lost, "", *at, half=0.003)
            add("cosine_worst", worst, "", *at)
            add("query_negative_flip_rate", lost / 2, "", *at)
            add("size", 4.12 if precision == "fp32" else 1.14, "MiB", *at)
            add("load_time", 12.3, "ms", *at)
            for percent, ms in ((50, 3.21), (90, 3.9), (99, 5.5)):
                add(f"latency_p{percent}", ms, "ms", *at)
            add("peak_memory", 71.3, "MiB", *at)
            key = "|".join(at)
            series[f"latency_ms|{key}"] = (3 * np.exp(rng.normal(0, 0.1, 200))).tolist()
            minutes = np.arange(30)
            series[f"sustained_s|{key}"] = (60 * minutes + 30.0).tolist()
            series[f"sustained_ms|{key}"] = (3 + 2 * (1 - np.exp(-minutes / 9))).tolist()
            series[f"cosine|{key}"] = (1 - (1 - worst) * rng.random(200)).tolist()
    parts: dict[str, object] = {
        "subject": "mobilenet in the space of resnet",
        "measurements": tuple(rows),
        "facts": {
            "protocol": "on unseen classes",
            "seed": "0",
            "query bundle": "sha256:" + "7" * 64,
        },
        "not_run": (NotRun("coreml", "fp16", device, "Core ML files run on Apple systems only"),),
        "examples": (example(),),
        "series": series,
    }
    return Report(**(parts | fields))  # type: ignore[arg-type]


def plane(device: str = DEVICE) -> Plane:
    """Ten classes on a plane, in a ring; of the first one, one query went astray."""
    labels = tuple(f"class of pictures {at}" for at in range(10))
    rng = np.random.default_rng(1)

    def near(at: float) -> tuple[float, float]:
        x, y = np.array([np.cos(at), 0.8 * np.sin(at)]) + rng.normal(0, 0.12, 2)
        return float(x), float(y)

    def spots(kind: str, count: int) -> list[Spot]:
        return [
            Spot(f"{kind}/{label}/{n}", label, *near(2 * np.pi * at / 10))
            for at, label in enumerate(labels)
            for n in range(count)
        ]

    asked = [Asked(s, replace(s, x=s.x + 0.01), True, True) for s in spots("query", 4)]
    astray = asked[0].before
    asked[0] = Asked(astray, replace(astray, x=-0.2, y=0.4), True, False)
    shares = (0.31, 0.17)
    gallery = tuple(spots("gallery", 8))
    return Plane(device, "tflite", "int8", shares, labels, gallery, tuple(asked))


def diagnosis(model: str = "mobilenet, weights 777777777777") -> dict[str, object]:
    """What `hetero diagnose` writes, of an app that mixes up two colours."""
    return {
        "schema": "hetero.diagnosis/1",
        "stage": "colours",
        "verdict": "fault",
        "faults": [
            {
                "stage": "colours",
                "cause": "blue and red are exchanged",
                "evidence": ["with blue and red exchanged the reference gives the device's vector"],
                "fix": "read pictures as RGB",
                "explained": 0.99,
            }
        ],
        "losses": [
            {"stage": "colours", "cosine_lost": 0.21, "recall_lost": 0.125, "how": "swapped in"},
            {"stage": "model", "cosine_lost": 0.001, "recall_lost": 0.0, "how": "the rest"},
        ],
        "cosine_lost": 0.211,
        "recall_lost": 0.125,
        "recall": 0.7,
        "suspects": [],
        "notes": ["32 canaries"],
        "worst": "a.png",
        "smallest": "a.png",
        "layer": None,
        "facts": {
            "command": "hetero diagnose runs/query --gallery runs/gallery --trace app",
            "model": model,
            "space": "s" * 12,
            "file": "tflite:int8",
            "device": "trace app",
            "canaries": 32,
        },
    }


#: Devices as a fleet has them, with names as long as addresses are.
FLEET = ("local", "ssh:pi@raspberrypi.local,threads=4", "adb:192.168.1.20:5555,cores=f0")


def fleet() -> Report:
    """A full report of several devices, one of them noisy, with what they agree in."""
    # What is about the models as a whole is in each of them.
    rows = dict.fromkeys(m for x in FLEET for m in unjudged(x, broken=True).measurements)
    doubted = [
        replace(m, doubt="noisy: had a processor for 40 % of the time only")
        if m.unit == "ms" and m.device == FLEET[1]
        else m
        for m in rows
    ]
    kinds = [(f, p) for f in ("onnx", "tflite") for p in ("fp32", "int8")]
    cosine = {"fp32": 1 - 9e-13, "int8": 0.97}
    pairs = tuple(
        # From PyTorch a file may be as far as its limits allow; devices are apart from each other.
        Pair(f, p, a, b, cosine[p], "query/sailboat", 0.9, 1532, bool(a) and p == "int8")
        for f, p in kinds
        for k, b in enumerate(FLEET)
        for a in ("", *FLEET[:k])
    )
    series = {k: v for device in FLEET for k, v in unjudged(device).series.items()}
    cells = tuple(Cell(device, f, p, "native") for device in FLEET for f, p in kinds)
    made = unjudged(measurements=tuple(doubted), agreement=pairs, cells=cells, series=series)
    return made.judged_by(LIMITS)


def passing() -> Report:
    """A full report that passes."""
    return unjudged().judged_by(LIMITS)


def failing() -> Report:
    """A full report in which the int8 files fail."""
    return unjudged(broken=True).judged_by(LIMITS)


def compared() -> Report:
    """A report that is held to an earlier run, in which the int8 files were better."""
    now, before = baseline.Run(failing(), None), baseline.Run(passing(), None, "runs/last-week")
    limit = Limit("recall_at_1_lost_to_baseline", at_most=0.02, by="noninferiority")
    lost = baseline.judged(baseline.compared(now, before), [limit])
    facts = {**now.report.facts, "baseline": baseline.note(now, before)}
    rows = (*now.report.measurements, *lost)
    return replace(now.report, measurements=rows, facts=facts)


def runs_over_time(folder: Path) -> None:
    """Three stored runs of one subject, the folders 1 to 3; in the last one int8 is broken."""
    for number, made in enumerate((passing(), passing(), failing()), 1):
        facts = {
            **made.facts,
            "measured": f"2026-02-0{number}T10:00:00+00:00",
            "data": "emoji",
            "queries": "1532",
        }
        at = folder / str(number)
        at.mkdir(parents=True)
        replace(made, facts=facts).save(at / "report.json")
        (at / "report.html").write_text("<!DOCTYPE html><title>a report</title>")
