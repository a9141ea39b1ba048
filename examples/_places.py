"""Where the examples find pictures and bundles; what they share, so that each shows one thing."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from hetero import Bundle, Images
from hetero.data import load


@dataclass(frozen=True)
class Places:
    """The pictures and the two bundles that the first tutorial makes, and a folder for results."""

    images: Images
    gallery: Bundle
    query: Bundle
    output: Path


def places() -> Places:
    """What the command line names, or what the tutorial's folder holds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", default="photos", help="a folder per class")
    parser.add_argument("--gallery", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--query", type=Path, default=Path("runs/query"))
    parser.add_argument("--output", type=Path, default=Path("runs/examples"))
    chosen = parser.parse_args()
    return Places(
        load(chosen.photos), Bundle.load(chosen.gallery), Bundle.load(chosen.query), chosen.output
    )
