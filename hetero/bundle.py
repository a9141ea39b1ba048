"""Bundle: a folder with a manifest, which every stage hands to the next.

    gallery/
      manifest.json        what is here, from what, with the SHA-256 of every file
      weights.safetensors  the model's parameters and buffers
      head.safetensors     a gallery model's classifier, rows in the space
      probe.safetensors    pictures, and what PyTorch gives for them: vectors, or logits
      trained.safetensors  of a classifier, fingerprints of the pictures it was trained on
      model.fp32.onnx ...  exported files

Nothing in a bundle is a pickle, and no path in a manifest may leave the folder. The manifest seals
itself: its last key, "sha256", is that of the canonical JSON of all the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from hetero._files import json_text, sha256, write_json, write_together
from hetero._manifest import (
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SCHEMA,
    Artifact,
    FittedMap,
    Manifest,
    Model,
    Nested,
    Role,
    read,
    sealed,
)
from hetero.errors import BundleError, ConfigError
from hetero.preprocess import Preprocess
from hetero.space import Space

__all__ = [
    "MANIFEST",
    "MAX_MANIFEST_BYTES",
    "SCHEMA",
    "Artifact",
    "Bundle",
    "FittedMap",
    "Manifest",
    "Model",
    "Nested",
    "Probe",
    "Role",
    "digest",
    "space_digest",
]


@dataclass(frozen=True)
class Probe:
    """Pictures at the model's input size, and what PyTorch gives for them.

    Attributes:
        ids: One per row.
        pixels: uint8 NHWC.
        vectors: float32, made by the bundle's own weights in PyTorch: unit rows, or a
            classifier's logits.
    """

    ids: tuple[str, ...]
    pixels: UInt8[np.ndarray, "n s s 3"]
    vectors: Float32[np.ndarray, "n d"]


@dataclass(frozen=True)
class Bundle:
    """A folder and its manifest, both checked. `load` reads one, `create` starts one."""

    root: Path
    manifest: Manifest

    def __repr__(self) -> str:
        """One line."""
        m = self.manifest
        return (
            f"Bundle({m.role} {m.model.backbone} in {self.space.id}, {len(m.files)} files, "
            f"{str(self.root)!r})"
        )

    def _repr_html_(self) -> str:
        """A small table, for notebooks."""
        from hetero.render import notebook

        return notebook.bundle(self)

    # -- what it says ---------------------------------------------------------------------------

    @property
    def role(self) -> Role:
        """Whether it embeds galleries or queries, or is a classifier."""
        return self.manifest.role

    @property
    def space(self) -> Space:
        """The space its vectors live in; a query bundle's is its gallery model's.

        A classifier's is made of its classes in their order: see `hetero.pct.train.class_space`.
        """
        m = self.manifest
        return Space(m.space_name, m.space_digest, m.model.dim)

    @property
    def nested(self) -> tuple[Space, ...]:
        """Shorter spaces that the first numbers of its vectors, normalised, are in; longest first.

        An upgraded gallery model with a longer embedding holds the space of the one before it, and
        what is trained into its space does so too.
        """
        return tuple(Space(n.name, n.digest, n.dim) for n in self.manifest.nested)

    @property
    def preprocess(self) -> Preprocess:
        """How pictures are prepared for its model."""
        return Preprocess.from_json(self.manifest.preprocess)

    @property
    def digest(self) -> str:
        """SHA-256 of the weights: the identity a child bundle records as its parent."""
        return self.artifact("weights").sha256

    def artifact(self, kind: str, precision: str = "") -> Artifact:
        """The file of this kind and precision.

        Raises:
            BundleError: There is none; the message lists those there are.
        """
        for item in self.manifest.files:
            if (item.kind, item.precision) == (kind, precision):
                return item
        have = ", ".join(f"{f.kind} {f.precision}".strip() for f in self.manifest.files) or "none"
        raise BundleError(
            f"{self.root}: no {kind} {precision} file; there are: {have}".replace("  ", " ")
        )

    def exported(self) -> tuple[Artifact, ...]:
        """The model files written by an exporter."""
        return tuple(f for f in self.manifest.files if f.precision)

    def path(self, item: Artifact) -> Path:
        """Where a file of this bundle is."""
        return self.root / item.path

    def tensors(self, kind: str) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays of a safetensors file of this bundle ("weights", "head", "probe").

        Raises:
            BundleError: It is missing or torn.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self.path(self.artifact(kind))
        try:
            return load(path.read_bytes())
        # KeyError, TypeError: a number type that NumPy does not have.
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({error})") from error

    def probe(self) -> Probe:
        """The probe pictures and their reference vectors.

        Raises:
            BundleError: It is missing or torn, or its parts do not belong together.
        """
        t = self.tensors("probe")
        try:
            ids = tuple(t["ids"].tobytes().decode().split("\n"))
            pixels, vectors = t["pixels"], t["vectors"]
        except (KeyError, UnicodeDecodeError) as error:
            raise BundleError(f"{self.root}: probe.safetensors is no probe ({error})") from error
        size, dim = self.preprocess.size_px, self.space.dim
        wanted = ((len(ids), size, size, 3), (len(ids), dim), np.uint8, np.float32)
        if (pixels.shape, vectors.shape, pixels.dtype, vectors.dtype) != wanted:
            raise BundleError(
                f"{self.root}: probe.safetensors has {pixels.dtype} pixels {pixels.shape} and "
                f"{vectors.dtype} vectors {vectors.shape} for {len(ids)} ids of "
                f"{size}x{size} pictures in {dim} dimensions; train again"
            )
        return Probe(ids, pixels, vectors)

    def train_classes(self) -> tuple[str, ...]:
        """The classes the model was trained on: on them an embedding must not be scored.

        Of a classifier they are the meaning of its logits, in order.
        """
        text = self.tensors("probe").get("train_classes")
        whole = "" if text is None else text.tobytes().decode()
        return tuple(whole.split("\n")) if whole else ()

    def inputs(
        self, item: Artifact, pixels: UInt8[np.ndarray, "n s s 3"]
    ) -> UInt8[np.ndarray, "n s s 3"] | Float32[np.ndarray, "n 3 s s"]:
        """What a model file of this bundle takes for these pictures: themselves, or normalised."""
        return pixels if item.input == "uint8_nhwc" else self.preprocess.tensor(pixels)

    # -- reading and writing --------------------------------------------------------------------

    @classmethod
    def load(cls, root: Path, *, verify: bool = True) -> Bundle:
        """The bundle in a folder, every file's hash checked.

        Args:
            root: The folder.
            verify: Compare each file's SHA-256 with the manifest. Leave it on for anything that
                was handed over; off only saves time right after writing.

        Raises:
            BundleError: No manifest, not valid, newer than this program, or a file is missing or
                altered; the message names it.
        """
        bundle = cls(root, read(root))
        try:
            _ = bundle.space, bundle.preprocess, bundle.nested
        except ConfigError as error:
            raise BundleError(f"{root / MANIFEST}: {str(error)[:500]}") from error
        if any(s.dim >= bundle.space.dim for s in bundle.nested):
            raise BundleError(f"{root / MANIFEST}: holds a space that is not shorter than its own")
        if verify:
            bundle.verify()
        return bundle

    def verify(self) -> None:
        """Nothing, if every file is there with the bytes the manifest promises.

        Raises:
            BundleError: One is missing, leaves the folder through a link, or was altered.
        """
        home = self.root.resolve()
        for item in self.manifest.files:
            path = self.path(item)
            try:
                if not path.exists():
                    raise BundleError(f"{path}: listed in the manifest but missing")
                if not all(p.resolve().is_relative_to(home) for p in (path, *path.rglob("*"))):
                    raise BundleError(f"{path}: leads out of the bundle")
                got, size = digest(path)
            # RuntimeError: links in a circle; ValueError: a name that no file can have.
            except (OSError, RuntimeError, ValueError) as error:
                raise BundleError(f"{path}: cannot be read ({error})") from error
            if got != item.sha256:
                raise BundleError(
                    f"{path}: altered: SHA-256 {got[:12]}… ({size} bytes) where the manifest has "
                    f"{item.sha256[:12]}… ({item.size_bytes} bytes); export or copy it again"
                )

    @classmethod
    def create(
        cls,
        root: Path,
        *,
        role: Role,
        space: Space,
        model: Model,
        preprocess: Preprocess,
        recipe: Mapping[str, str | int | float | bool],
        parent: str = "",
        data: Mapping[str, str | int] | None = None,
        made_with: Mapping[str, str] | None = None,
        tensors: Mapping[str, Mapping[str, np.ndarray[Any, Any]]],
        nested: Sequence[Space] = (),
    ) -> Bundle:
        """A new bundle in `root`; a full disk leaves what was there as it was.

        Args:
            root: The folder; made if need be. A manifest that was there is replaced at the end.
            role: "gallery", "query" or "classifier".
            space: Where its vectors live.
            model: How to build it.
            preprocess: How pictures are prepared for it.
            recipe: Method and settings as they were called.
            parent: `Bundle.digest` of the gallery bundle; "" for a gallery model, unless it was
                trained into the space of an older one.
            data: What it was trained on: source, split checksum, counts.
            made_with: Versions of the libraries.
            tensors: Kind ("weights", "head", "probe") to named arrays.
            nested: See `nested`.
        """
        from safetensors.numpy import save

        written: dict[Path, bytes | str] = {}
        files = []
        for kind, arrays in tensors.items():
            # No metadata: a gallery model's space is named after these very bytes.
            raw = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
            name, hexdigest = f"{kind}.safetensors", hashlib.sha256(raw).hexdigest()
            files.append(Artifact(path=name, kind=kind, sha256=hexdigest, size_bytes=len(raw)))
            written[root / name] = raw
        manifest = Manifest(
            schema=SCHEMA,
            role=role,
            space_name=space.name,
            space_digest=space.digest,
            model=model,
            preprocess=preprocess.to_json(),
            recipe=dict(recipe),
            parent=parent,
            nested=tuple(Nested(name=s.name, digest=s.digest, dim=s.dim) for s in nested),
            data=dict(data or {}),
            files=tuple(files),
            made_with=dict(made_with or {}),
        )
        written[root / MANIFEST] = json_text(sealed(manifest))
        write_together(written)
        return cls(root, manifest)

    def with_artifact(self, item: Artifact) -> Bundle:
        """This bundle with one more file, which is already in the folder; the manifest is written.

        A file of the same kind and precision takes the place of the old one.
        """
        kept = tuple(
            f for f in self.manifest.files if (f.kind, f.precision) != (item.kind, item.precision)
        )
        bundle = Bundle(self.root, self.manifest.model_copy(update={"files": (*kept, item)}))
        bundle._write()
        return bundle

    def without_artifact(self, kind: str, precision: str) -> Bundle:
        """This bundle with that file no longer listed; the manifest is written, the file stays."""
        kept = tuple(f for f in self.manifest.files if (f.kind, f.precision) != (kind, precision))
        bundle = Bundle(self.root, self.manifest.model_copy(update={"files": kept}))
        bundle._write()
        return bundle

    def _write(self) -> None:
        write_json(self.root / MANIFEST, sealed(self.manifest))


def digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file, or of a folder.

    A folder's hash is that of the lines ``<sha256>  <relative path>`` of its files, sorted by
    path: what ``sha256sum`` prints, hashed once more.
    """
    if path.is_file():
        return sha256(path), path.stat().st_size
    files = sorted(
        (p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).as_posix()
    )
    lines = "".join(f"{sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in files)
    return hashlib.sha256(lines.encode()).hexdigest(), sum(p.stat().st_size for p in files)


def space_digest(weights_sha256: str, preprocess: Preprocess, dim: int) -> str:
    """The identity of the space that a gallery model with these weights defines."""
    text = f"hetero.space/1 {weights_sha256} {preprocess.sha256} {dim}"
    return hashlib.sha256(text.encode()).hexdigest()
