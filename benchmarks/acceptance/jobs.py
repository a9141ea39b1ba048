"""What the acceptance experiments train, at two sizes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.lab import Job

#: Methods that have to lead into the gallery's space.
COMPATIBLE = ("regression", "raml", "csd", "d3still", "ssp", "aml", "bct", "csd+regression")
#: Methods that must not.
CONTROLS = ("vanilla_kd", "rkd", "pkt")
#: Widths of the query model for the claims about size.
WIDTHS = (0.25, 0.5, 1.0, 1.5)
#: Widths that one run trains together.
NESTED = (0.25, 0.5, 1.0)
QUERY_WIDTH = 0.5


@dataclass(frozen=True)
class Size:
    """How large the experiments are.

    Attributes:
        name: "quick" or "full".
        gallery: Backbone of the gallery model.
        gallery_epochs, query_epochs: Lengths.
        views: Stored views of each picture.
        keep: Share of the training classes used.
        batch: Pictures a step.
        query_lr: Peak learning rate of the query models.
        widths: Of the query models for the claims about size.
    """

    name: str
    gallery: str
    gallery_epochs: int
    query_epochs: int
    views: int
    keep: float
    batch: int
    query_lr: float
    widths: tuple[float, ...] = WIDTHS


SIZES = {
    "quick": Size("quick", "resnet:width=8", 14, 6, 2, 0.34, 64, 1e-2, WIDTHS[:3]),
    "full": Size("full", "resnet:width=16", 12, 10, 4, 1.0, 128, 3e-3),
}


def query_name(method: str, width: float = QUERY_WIDTH) -> str:
    """Name of the job that trains a query model of this width with this method."""
    return f"{method}-w{width:g}"


def jobs(size: Size) -> list[Job]:
    """All jobs of one seed."""
    gallery = Job("gallery", "gallery", size.gallery, size.gallery_epochs, batch=size.batch)
    query = Job(
        "",
        "query",
        f"mobilenet:width={QUERY_WIDTH:g}",
        size.query_epochs,
        gallery="gallery",
        views=size.views,
        batch=size.batch,
        lr=size.query_lr,
    )
    out = [
        gallery,
        # The same small model, trained alone.
        replace(gallery, name="independent", backbone=query.backbone),
        # A gallery model that saw every other class, and one with a plain classifier.
        replace(gallery, name="gallery-half", keep=0.5),
        replace(gallery, name="gallery-plain", head="plain"),
    ]
    out += [replace(query, name=query_name(m), method=m) for m in (*COMPATIBLE, *CONTROLS)]
    out.append(replace(query, name="head-only", method="bct", settings={"own_weight": 0.0}))
    best = replace(query, method="csd+regression")
    out += [
        replace(best, name=query_name(best.method, w), backbone=f"mobilenet:width={w:g}")
        for w in size.widths
        if w != QUERY_WIDTH
    ]
    out.append(replace(best, name="nested", role="widths", widths=NESTED))
    for flag in (True, False):
        half = replace(query, method="bct", gallery="gallery-half")
        out.append(
            replace(
                half, name=f"bct-half-{'rows' if flag else 'none'}", settings={"synthesise": flag}
            )
        )
        plain = replace(query, method="bct", gallery="gallery-plain")
        out.append(
            replace(
                plain,
                name=f"bct-plain-{'normalised' if flag else 'plain'}",
                settings={"normalised": flag},
            )
        )
    return out
