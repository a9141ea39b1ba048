"""The whole chain on the embedded pictures: train, export, run, verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from hetero import data
from hetero.bundle import Bundle
from hetero.fit import Settings
from hetero.preprocess import Preprocess
from hetero.progress import Reporter
from hetero.report import Report
from hetero.stages import checking, exporting, running
from hetero.train import QUERY_LR, GalleryRecipe, QueryRecipe, train_gallery, train_query

FORMATS = ("onnx", "tflite", "coreml")
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Size:
    """How much the demo trains: epochs of three models, and the length of latency measurement."""

    gallery: GalleryRecipe
    query: QueryRecipe
    gallery_epochs: int
    query_epochs: int
    thorough: str


FULL = Size(
    gallery=GalleryRecipe(backbone="resnet:width=16", dim=128),
    query=QueryRecipe(backbone="mobilenet:width=0.5", method="csd+regression", views=8),
    gallery_epochs=22,
    query_epochs=30,
    thorough="normal",
)

#: A smoke run: everything is executed, nothing is good.
QUICK = Size(
    gallery=GalleryRecipe(backbone="resnet:width=8", dim=64),
    query=QueryRecipe(backbone="mobilenet:width=0.5", method="regression", views=0),
    gallery_epochs=2,
    query_epochs=2,
    thorough="quick",
)


def run(
    output: Path,
    *,
    quick: bool,
    seed: int,
    resume: bool,
    limits: Path | None,
    command: str,
    reporter: Reporter,
) -> Report:
    """The report of the whole chain.

    `output` gets gallery/, query/ and control/ (bundles; the query's exported files lie beside its
    weights) and check/ (the report and everything raw).

    Args:
        output: The run directory.
        quick: A smoke run of about a minute; its limits only ask that files do what PyTorch does.
        seed: Of every model.
        resume: Take over what is finished, go on with what was stopped.
        limits: A file of one's own.
        command: For the record.
        reporter: Shows progress.
    """
    size = QUICK if quick else FULL
    images = data.load("emoji")
    preprocess = Preprocess(32)
    settings = Settings(epochs=size.gallery_epochs, seed=seed, keep_going=quick)
    gallery = train_gallery(
        images,
        size.gallery,
        preprocess,
        settings,
        output / "gallery",
        resume=resume,
        reporter=reporter,
    )
    # Exact targets bear, and need, a higher rate than a classifier's.
    settings = replace(settings, epochs=size.query_epochs, lr=QUERY_LR)
    query = train_query(
        gallery, images, size.query, settings, output / "query", resume=resume, reporter=reporter
    )
    settings = replace(settings, lr=Settings.lr)
    alone = replace(size.gallery, backbone=size.query.backbone)
    control = train_gallery(
        images, alone, preprocess, settings, output / "control", resume=resume, reporter=reporter
    )
    query = exporting.export_all(
        Bundle.load(query.root) if resume else query,
        FORMATS,
        PRECISIONS,
        images=images,
        gallery=gallery,
        bake=True,
        batch=None,
        resume=resume,
        reporter=reporter,
    )
    if quick and limits is None:
        limits = Path(__file__).with_name("limits-quick.toml")
    options = running.CheckOptions(
        limits=limits, thorough=size.thorough, resume=resume, command=command
    )
    return checking.check(
        query, gallery, images, output / "check", options, control=control, reporter=reporter
    )
