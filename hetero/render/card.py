"""A bundle as a model card: Markdown with the metadata that Hugging Face's Hub reads.

Everything in it comes from the manifest, from the report of a check of this very bundle, or from
whoever gives the model away (name and licence). Its Python lines run in the bundle's folder.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hetero.bundle import Artifact, Bundle
from hetero.errors import ConfigError
from hetero.render import _verdict, _view, _words
from hetero.render.markdown import escaped
from hetero.report import Measurement, Report

#: What the Hub calls what a bundle does.
TASKS = {
    "query": "image-feature-extraction",
    "gallery": "image-feature-extraction",
    "classifier": "image-classification",
}

#: Measurements of a query model's files that a card shows, with their headings.
_OF_FILES = (
    ("heterogeneous_recall_at_1", "Recall@1"),
    ("heterogeneous_map", "mAP"),
    ("recall_at_1_lost", "Recall@1 lost to PyTorch"),
    ("latency_p50", "Latency, p50"),
)

#: Measurements of the models as a whole that stand beside them.
_OF_MODELS = (
    *("paragon_recall_at_1", "paragon_map", "independent_recall_at_1", "control_recall_at_1"),
    *("pixels_recall_at_1", "chance_recall_at_1"),
)

#: By measurement, what the Hub's metadata calls it.
_METRICS = {
    "heterogeneous_recall_at_1": "recall_at_1",
    "heterogeneous_map": "map",
    "paragon_recall_at_1": "recall_at_1",
    "paragon_map": "map",
}


def render(bundle: Bundle, report: Report | None, name: str, licence: str = "") -> str:
    """The card.

    Args:
        bundle: Of any role.
        report: Of a check of this bundle, or None.
        name: Of the model.
        licence: Of the model, as the Hub names it: "apache-2.0"; empty for none given.

    Raises:
        ConfigError: The report is about another bundle or other files.
    """
    if report is not None:
        _must_be_of(bundle, report)
    parts = (
        (f"# {escaped(name)}", _about(bundle)),
        ("## Model", _model(bundle)),
        ("## Preprocessing", _preprocessing(bundle)),
        ("## Files", _files(bundle)),
        ("## How to use", _use(bundle)),
        ("## Training", _training(bundle)),
        ("## Evaluation", _evaluation(bundle, report)),
        ("## Limitations", _limitations(bundle, report, licence)),
    )
    text = "\n\n".join(f"{head}\n\n" + "\n".join(lines) for head, lines in parts)
    return f"{_front(_metadata(bundle, report, name, licence))}\n{text}\n"


def _must_be_of(bundle: Bundle, report: Report) -> None:
    own = f"{bundle.manifest.model.backbone}, weights {bundle.digest[:12]}"
    sides = ("query model", "gallery model") if bundle.role == "gallery" else ("query model",)
    if own not in [report.facts.get(side) for side in sides]:
        told = report.facts.get("query model", "no query model")
        raise ConfigError(
            f"the report is about {told}, this bundle is {own}; name the report of this bundle"
        )
    for item in bundle.exported():
        for key, fact in report.facts.items():
            ran = key.startswith(f"{item.kind} {item.precision} on ") and bundle.role == "query"
            if ran and f"SHA-256 {item.sha256[:12]}" not in fact:
                raise ConfigError(
                    f"the report is about another {item.path} than that of {bundle.root}; run "
                    "`hetero check` again"
                )


# -- the metadata ---------------------------------------------------------------------------------


def _front(metadata: dict[str, Any]) -> str:
    """YAML between its lines. JSON is YAML, one key a line, and needs no library."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items()]
    return "\n".join(["---", *lines, "---", ""])


def _metadata(bundle: Bundle, report: Report | None, name: str, licence: str) -> dict[str, Any]:
    out: dict[str, Any] = {"library_name": "hetero"}
    if licence:
        out["license"] = _words.one_line(licence)
    out["pipeline_tag"] = TASKS[bundle.role]
    formats = list(dict.fromkeys(item.kind for item in bundle.exported()))
    out["tags"] = ["hetero", "visual-search", f"{bundle.role}-model", *formats]
    if report is not None and (results := _results(bundle, report)):
        out["model-index"] = [{"name": _words.one_line(name), "results": results}]
    return out


def _results(bundle: Bundle, report: Report) -> list[dict[str, Any]]:
    """The scores as the Hub's model-index has them: one task and data set, a metric a line."""
    data = _words.one_line(report.facts.get("data", "unknown").partition(", split checksum")[0])
    metrics = [
        {
            "type": _METRICS[m.name],
            "value": m.value,
            "name": _words.one_line(f"{_words.word(m.name).label}, {_at(m)}"),
        }
        for m in _scores(bundle, report)
        if m.name in _METRICS
    ]
    if not metrics:
        return []
    return [
        {
            "task": {"type": TASKS[bundle.role]},
            "dataset": {"type": data, "name": data, "split": "test"},
            "metrics": metrics,
        }
    ]


def _scores(bundle: Bundle, report: Report) -> list[Measurement]:
    """What the report says of this bundle: of a query model its files, else of the model itself."""
    mine = "heterogeneous_" if bundle.role == "query" else "paragon_"
    return [m for m in report.measurements if m.name.startswith(mine) and math.isfinite(m.value)]


def _at(m: Measurement) -> str:
    return _words.place(m.device, m.format, m.precision)


# -- the text -------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _about(bundle: Bundle) -> list[str]:
    return [
        {
            "query": "A small model that embeds query pictures into the space of a larger gallery "
            "model, so that it searches that model's index.",
            "gallery": "A model that embeds a collection of pictures and so defines a space, which "
            "small query models are trained into.",
            "classifier": "An image classifier.",
        }[bundle.role]
        + " Made with hetero."
    ]


def _model(bundle: Bundle) -> list[str]:
    m, space = bundle.manifest, bundle.space
    rows = [
        ("Role", bundle.role),
        ("Backbone", escaped(m.model.backbone)),
        ("Parameters", f"{m.model.parameters:,}"),
        ("Multiply-accumulates for a picture", f"{m.model.macs / 1e6:.2f} million"),
        ("Gives", f"{space.dim} numbers" + ("" if bundle.role == "classifier" else ", length 1")),
        ("Space", f"`{space.id}`"),
        ("Weights, SHA-256", f"`{bundle.digest}`"),
    ]
    if m.parent:
        rows.append(("Gallery model, SHA-256 of its weights", f"`{m.parent}`"))
    rows += [("Holds the shorter space", f"`{s.id}`") for s in bundle.nested]
    note = [
        "",
        "Vectors of two spaces must never be compared: an index made by a model of another space "
        "answers nonsense without an error.",
    ]
    return [*_table(("", ""), rows), *(note if bundle.role != "classifier" else [])]


def _preprocessing(bundle: Bundle) -> list[str]:
    p = bundle.preprocess
    fit = {
        "centre": "the largest centred square is cut out",
        "squash": "the aspect ratio is ignored",
    }[p.fit]
    inside = [f"`{x.path}`" for x in bundle.exported() if x.input == "uint8_nhwc"]
    lines = [
        "1. Decode to RGB: turned as EXIF says, transparency over white.",
        f"2. {fit[0].upper()}{fit[1:]}, then resized to {p.size_px}x{p.size_px} with Pillow's "
        f"antialiased {p.resize} filter: uint8.",
        f"3. (x / 255 - mean) / std, mean {list(p.mean)}, std {list(p.std)}, by RGB channel.",
    ]
    if inside:
        lines += ["", f"Step 3 is inside {', '.join(inside)}."]
    return lines


def _files(bundle: Bundle) -> list[str]:
    rows = [
        (f"`{x.path}`", f"{x.kind} {x.precision}".strip(), f"{x.size_bytes:,}", f"`{x.sha256}`")
        for x in bundle.manifest.files
    ]
    return _table(("File", "What", "Bytes", "SHA-256"), rows)


def _use(bundle: Bundle) -> list[str]:
    made = bundle.exported()
    onnx = next((x for x in made if x.kind == "onnx"), None)
    if not made:
        return ["There is no model file for devices in it yet; `hetero export .` writes one."]
    lines = []
    if onnx is not None:
        lines += [
            "With ONNX Runtime alone, in this folder: the pictures of the probe, held to what "
            "PyTorch gave for them.",
            "",
            *_fenced("python", _onnx(bundle, onnx)),
        ]
    if bundle.role == "classifier":
        return lines or [f"Run {made[0].path} with the runtime of its format."]
    item = onnx or made[0]
    lines += [
        *([""] if lines else []),
        "With pictures of your own, which have to be prepared exactly as in training: `hetero "
        "snippet` writes that as source code, for Python, JavaScript, Kotlin or Swift, with "
        "pictures to check it by.",
        "",
        *_fenced(
            "bash",
            f"hetero snippet . --file {shlex.quote(f'{item.kind}:{item.precision}')} "
            "--language python --output snippets",
        ),
        "",
        *_fenced(
            "python",
            "import sys\n\n"
            'sys.path.insert(0, "snippets")\n'
            "from embed import decode, embed, open_model\n\n"
            f"run = open_model({json.dumps(item.path)})\n"
            'vector = embed(decode("picture.jpg"), run)  # your picture',
        ),
    ]
    return lines


def _fenced(language: str, code: str) -> list[str]:
    return [f"```{language}", code, "```"]


def _onnx(bundle: Bundle, item: Artifact) -> str:
    p = bundle.preprocess
    takes = "pixels[None]"
    prepare = ""
    if item.input == "float32_nchw":
        takes = "tensor(pixels)"
        prepare = (
            "\n\ndef tensor(pixels):\n"
            f"    mean, std = np.float32({list(p.mean)}), np.float32({list(p.std)})\n"
            "    x = (pixels.astype(np.float32) / 255 - mean) / std\n"
            "    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])\n"
        )
    return f"""\
import numpy as np
import onnxruntime
from safetensors.numpy import load_file
{prepare}
probe = load_file({json.dumps(bundle.artifact("probe").path)})
session = onnxruntime.InferenceSession(
    {json.dumps(item.path)}, providers=["CPUExecutionProvider"]
)
name = session.get_inputs()[0].name
cosines = []
for pixels, expected in zip(probe["pixels"], probe["vectors"]):  # uint8 {p.size_px}x{p.size_px} RGB
    (vector,) = session.run(None, {{name: {takes}}})[0]
    vector = vector / np.linalg.norm(vector)
    cosines.append(vector @ expected / np.linalg.norm(expected))
print(f"worst cosine to PyTorch: {{min(cosines):.6f}}")"""


def _training(bundle: Bundle) -> list[str]:
    m = bundle.manifest
    rows = [
        *(("Data: " + k, v) for k, v in m.data.items()),
        *m.recipe.items(),
        *(("Version: " + k, v) for k, v in m.made_with.items()),
    ]
    return _table(("Setting", "Value"), ((escaped(str(k)), escaped(str(v))) for k, v in rows))


def _evaluation(bundle: Bundle, report: Report | None) -> list[str]:
    if report is None:
        return ["Not evaluated: this card was written without the report of a check."]
    facts = {key: escaped(value) for key, value in report.facts.items()}
    on = (
        f"{facts.get('data', 'Unknown pictures')}, {facts.get('protocol', '')}: "
        f"{facts.get('queries', '?')} queries of {facts.get('test classes', '?')} classes, "
        f"{facts.get('gallery pictures', '?')} pictures in the gallery. In brackets the 95 % "
        "interval, classes resampled."
    )
    lines = [on]
    shown = [x for x in _view.subjects(report) if x.get("heterogeneous_recall_at_1") is not None]
    if bundle.role == "query" and shown:
        heads = [head for name, head in _OF_FILES if any(x.get(name) for x in shown)]
        names = [name for name, _ in _OF_FILES if any(x.get(name) for x in shown)]
        rows = [
            (escaped(_words.place(*x.place)), *(_number(x.get(name)) for name in names))
            for x in shown
        ]
        lines += ["", *_table(("Searching the gallery's index", *heads), rows)]
    beside = [m for name in _OF_MODELS if (m := _view.whole(report, name)) is not None]
    if beside:
        rows = [(escaped(_words.word(m.name).label), _number(m)) for m in beside]
        lines += ["", *_table(("Beside it", "In PyTorch"), rows)]
    return [*lines, "", f"Verdict of the check: {escaped(_verdict.verdict_line(report))}"]


def _number(m: Measurement | None) -> str:
    if m is None:
        return _words.ABSENT
    between = _words.interval(m)
    return escaped(_words.number(m) + (f" ({between})" if between else ""))


def _limitations(bundle: Bundle, report: Report | None, licence: str) -> list[str]:
    lines = [] if licence else ["No licence was given with this card."]
    if report is None:
        return [
            f"- {x}"
            for x in [*lines, "Nothing was measured for this card, on no device and no pictures."]
        ]
    lines += _not_measured(bundle, report) if bundle.role == "query" else []
    lines += [
        f"{_words.word(m.name).label}, {_at(m)}: {m.outcome}. {_view.explain(m)}"
        for m in _view.problems(report)
    ]
    lines += [
        f"{_words.word(m.name).label}, {_at(m)}: {m.doubt}"
        for m in report.measurements
        if m.doubt and m.name == "latency_p50"
    ]
    lines.append(
        "Scores are of the pictures named above, split by class; pictures of another kind have "
        "other scores."
    )
    return [f"- {escaped(x)}" for x in lines]


def _not_measured(bundle: Bundle, report: Report) -> list[str]:
    """What a reader might take for measured."""
    lines = [
        f"Not executed: {_words.place(x.device, x.format, x.precision)}: {x.reason}"
        for x in report.not_run
    ]
    ran = {x.place[1:] for x in _view.files(report)}
    lines += [
        f"Not part of the check: {x.path}."
        for x in bundle.exported()
        if (x.kind, x.precision) not in ran
    ]
    lines += [
        f"{_words.place(c.device, c.format, c.precision)}: execution is {c.execution}; that tells "
        "right from wrong, and nothing of speed."
        for c in report.cells
        if c.execution != "native"
    ]
    devices = dict.fromkeys(x.place[0] for x in _view.files(report))
    if devices:
        lines.append(f"Run on {', '.join(devices)} and nowhere else.")
    if _view.whole(report, "control_recall_at_1") is None:
        lines.append("No negative control was part of the check.")
    return lines
