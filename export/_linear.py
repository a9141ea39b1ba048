"""Files of a linearised model: an ordinary graph of two streams, equal to the JVP it stands for.

The formats convert it as they convert a bundle's own net. What differs is what it is held to: not
unit rows, but outputs within 1e-4 of PyTorch's Jacobian-vector product in float64.

Paper: Achille et al., "LQF: Linear Quadratic Fine-Tuning", CVPR 2021, arXiv:2012.11140.
Differs: the paper's model needs forward-mode differentiation at run time, these files do not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hetero._files import canonical_json, make_folder, sha256, storage_errors
from hetero.bundle import Artifact, Bundle, digest
from hetero.errors import ConfigError
from hetero.export import _child, file_name, module
from hetero.export._job import ConvertJob
from hetero.export._placing import scratch_folder

if TYPE_CHECKING:
    from hetero.lqf import Adaptation

SCHEMA = "hetero.linear/1"


def metadata_of(
    bundle: Bundle, adaptation: Adaptation, adaptation_sha256: str, bake: bool
) -> dict[str, str]:
    """The texts that a linearised model's file carries."""
    return {
        "hetero.schema": SCHEMA,
        "hetero.classes": canonical_json(list(adaptation.classes)),
        "hetero.input": "uint8_nhwc" if bake else "float32_nchw",
        "hetero.preprocess": canonical_json(bundle.preprocess.to_json()),
        "hetero.preprocess_sha256": bundle.preprocess.sha256,
        "hetero.weights_sha256": bundle.digest,
        "hetero.base_sha256": adaptation.base,
        "hetero.adaptation_sha256": adaptation_sha256,
        "hetero.precision": "fp32",
    }


def export(
    bundle: Bundle,
    adaptation: Path,
    format: str,
    folder: Path,
    *,
    bake: bool = True,
    batch: int | None = None,
    threads: int = 1,
    timeout_s: float = 3600,
    on_line: Callable[[str], None] | None = None,
) -> Artifact:
    """A float32 model file in `folder`, written there only if it agrees with the JVP.

    Args:
        bundle: Its weights and probe pictures are used; it is not changed.
        adaptation: A file of `hetero.lqf.Adaptation`.
        format: See `hetero.export.formats`.
        folder: Made if need be; a file of this name there is replaced.
        bake: See `hetero.export.export`.
        batch: See there.
        threads: See there.
        timeout_s: See there.
        on_line: Told in a line what happens.

    Raises:
        ConfigError: Unknown format, or an adaptation of another bundle.
        MissingExtraError: The format's libraries are not installed.
        ExportError: The converter refused, or the file does not do what the JVP does.
    """
    from hetero import lqf

    say = on_line or (lambda _: None)
    variant, found = module(format), lqf.Adaptation.load(adaptation)
    if found.bundle != bundle.digest:
        raise ConfigError(
            f"{adaptation}: belongs to the bundle with weights {found.bundle[:12]}…, "
            f"{bundle.root} has {bundle.digest[:12]}…"
        )
    with scratch_folder(make_folder(folder) / f".export-{format}") as scratch:
        job = ConvertJob(
            bundle=bundle.root.resolve(),
            output=scratch / file_name(format, "fp32", bake),
            format=format,
            precision="fp32",
            bake=bake,
            batch=batch or (0 if variant.DYNAMIC_BATCH else 1),
            size_px=bundle.preprocess.size_px,
            dim=len(found.classes),
            metadata=metadata_of(bundle, found, sha256(adaptation), bake),
            threads=threads,
            adaptation=adaptation.resolve(),
        )
        say(f"{format}: converting the linearised model")
        log = make_folder(folder / "logs") / f"export-{format}.log"
        (facts,) = _child.facts([job], scratch, log, timeout_s)
        hexdigest, size = digest(job.output)
        target = folder / job.output.name
        with storage_errors(folder):
            if target.exists():
                # A folder cannot be replaced by a rename as a file can; so the old one moves away.
                os.replace(target, scratch / f"last-{target.name}")
            os.replace(job.output, target)
    say(
        f"{format}: {size / 2**20:.2f} MiB, outputs up to {facts['largest_output']:.1f}, within "
        f"{facts['max_abs_diff']:.2g} of the JVP, {facts['conversion_s']:.1f} s"
    )
    return Artifact(
        path=target.name,
        kind=format,
        sha256=hexdigest,
        size_bytes=size,
        precision="fp32",
        input=job.input,
        batch=job.batch,
        facts=facts,
    )
