"""Passport: what a model file must say to a few known pictures, and how far it may stray.

It stands beside the file as ``FILE.passport.json`` and travels with it into an app. It holds the
identity of the space, of the preprocessing, of the weights and of the file; canary pictures; the
vectors the file gives for them; and, per runtime, a band: how far those vectors moved when the
file was run in other ways that are all right. Vectors outside of the band come from something else,
and those of known faults, which are kept too, often say from what.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32

from hetero import _schemas
from hetero._files import canonical_json, write_json
from hetero.errors import BundleError, ConfigError
from hetero.preprocess import Preprocess
from hetero.space import Space

SCHEMA = "hetero.passport/1"

#: What a file's name is followed by.
SUFFIX = ".passport.json"

#: The band that holds for a runtime of which nothing was measured.
ANY = "any"

#: A passport is some hundred kilobytes; a larger one is not ours.
MAX_BYTES = 32 << 20

#: Vectors of the same pictures agree by more than those of different ones, by this much, in any
#: two models of one space.
SAME_SPACE = 0.25

Kind = Literal["same", "other space", "other preprocessing", "other weights", "unusable"]

#: Keys of a model file's texts -> what it means if they differ from the passport's.
DECLARED: Mapping[str, Kind] = MappingProxyType(
    {
        "hetero.space_digest": "other space",
        "hetero.preprocess_sha256": "other preprocessing",
        "hetero.weights_sha256": "other weights",
    }
)


@dataclass(frozen=True)
class Band:
    """How far a good vector may be from the canary's.

    Attributes:
        cosine_least: Smallest cosine that passes, -1 to 1.
        seen_worst: The smallest that was seen while the band was learned.
        variants: Number of ways in which the file was run for it.
    """

    cosine_least: float
    seen_worst: float
    variants: int


@dataclass(frozen=True)
class Picture:
    """A canary picture.

    Attributes:
        name: File name: "canary-03.png".
        png: Its bytes, without loss, so that every decoder gives the same pixels.
    """

    name: str
    png: bytes


@dataclass(frozen=True, eq=False)
class Passport:
    """A file's identity, its canaries and its bands; see the module.

    Attributes:
        space: Whose vectors the file gives.
        preprocess: How pictures become its input.
        weights_sha256: Of the weights it was made from.
        file: Name of the model file.
        file_sha256: Its digest, as manifests have it.
        kind, precision, input: Of the file, as manifests have them.
        pictures: The canaries.
        vectors: What the file gives for them, unit rows.
        faults: Name of a fault -> what the file gives with it.
        bands: Runtime, without version, or "any" -> its band.
    """

    space: Space
    preprocess: Preprocess
    weights_sha256: str
    file: str
    file_sha256: str
    kind: str
    precision: str
    input: str
    pictures: tuple[Picture, ...]
    vectors: Float32[np.ndarray, "n d"]
    faults: Mapping[str, Float32[np.ndarray, "n d"]]
    bands: Mapping[str, Band]

    def band(self, runtime: str = "") -> Band:
        """The band of a runtime, such as "onnxruntime 1.32.0", or that for any."""
        return self.bands.get(runtime.partition(" ")[0], self.bands[ANY])

    def declared(self) -> dict[str, str]:
        """Key -> what the model file's own texts have to say of its identity."""
        return {
            "hetero.space_digest": self.space.digest,
            "hetero.preprocess_sha256": self.preprocess.sha256,
            "hetero.weights_sha256": self.weights_sha256,
        }

    def to_json(self) -> dict[str, object]:
        """The passport as JSON values, sealed by a hash of itself."""
        content: dict[str, object] = {
            "schema": SCHEMA,
            "space": {"id": self.space.id, "name": self.space.name, "digest": self.space.digest},
            "preprocess": self.preprocess.to_json(),
            "preprocess_sha256": self.preprocess.sha256,
            "weights_sha256": self.weights_sha256,
            "file": {
                "path": self.file,
                "sha256": self.file_sha256,
                "kind": self.kind,
                "precision": self.precision,
                "input": self.input,
            },
            "vectors": {
                "dtype": "float32",
                "shape": list(self.vectors.shape),
                "base64": _packed(self.vectors),
            },
            "faults": {name: _packed(rows) for name, rows in self.faults.items()},
            "bands": {name: vars(band) for name, band in self.bands.items()},
            "pictures": {p.name: base64.b64encode(p.png).decode() for p in self.pictures},
        }
        return {**content, "sha256": _seal(content)}

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def from_json(cls, value: object, name: str) -> Passport:
        """The passport that `to_json` gave.

        Args:
            value: Any JSON value.
            name: What it came from, for messages.

        Raises:
            BundleError: It is none, or was altered.
        """
        found = value.get("schema") if isinstance(value, dict) else None
        _schemas.check(name, found, SCHEMA, again="write the passport again")
        assert isinstance(value, dict), "nothing else says what it is"
        content = dict(value)
        if content.pop("sha256", None) != _seal(content):
            raise BundleError(f"{name}: altered since it was written; write the passport again")
        try:
            return cls._checked(content)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            text = f"{type(error).__name__} {error}"[:200]
            raise BundleError(f"{name}: not a passport ({text}); write it again") from error
        except ConfigError as error:
            raise BundleError(f"{name}: {error}") from error

    @classmethod
    def _checked(cls, content: Mapping[str, Any]) -> Passport:
        file, stored = content["file"], content["vectors"]
        n, dim = (int(x) for x in stored["shape"])
        if not (2 <= n <= 4096 and 1 <= dim <= 1 << 20):
            raise ValueError(f"{n} canaries of {dim} numbers")
        bands = {}
        for name, band in content["bands"].items():
            least, worst = float(band["cosine_least"]), float(band["seen_worst"])
            if not (math.isfinite(least) and math.isfinite(worst) and -1 <= least <= worst <= 1.01):
                raise ValueError(f"band {name!r} of {least} below {worst}")
            bands[str(name)] = Band(least, worst, int(band["variants"]))
        pictures = tuple(
            Picture(_plain(k), base64.b64decode(v, validate=True))
            for k, v in content["pictures"].items()
        )
        if len(pictures) != n or ANY not in bands:
            raise ValueError(f"{len(pictures)} pictures, {n} vectors, bands {sorted(bands)}")
        preprocess = Preprocess.from_json(content["preprocess"])
        if preprocess.sha256 != content["preprocess_sha256"]:
            raise ValueError("the hash of the preprocessing is not that of its text")
        space = content["space"]
        vectors = _unpacked(stored["base64"], n, dim)
        if not np.allclose(np.linalg.norm(vectors.astype(np.float64), axis=1), 1, atol=1e-3):
            raise ValueError("canary vectors that are not of length 1")
        return cls(
            Space(str(space["name"]), str(space["digest"]), dim),
            preprocess,
            str(content["weights_sha256"]),
            _plain(file["path"]),
            str(file["sha256"]),
            str(file["kind"]),
            str(file["precision"]),
            str(file["input"]),
            pictures,
            vectors,
            {str(k): _unpacked(v, n, dim) for k, v in content["faults"].items()},
            bands,
        )

    @classmethod
    def load(cls, path: Path) -> Passport:
        """The passport in a file.

        Raises:
            BundleError: It cannot be read, is none, or was altered.
        """
        try:
            if not path.is_file() or path.stat().st_size > MAX_BYTES:
                raise BundleError(f"{path}: not a file of at most {MAX_BYTES} bytes")
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{path}: cannot be read ({str(error)[:200]})") from error
        return cls.from_json(value, str(path))


@dataclass(frozen=True)
class Verdict:
    """What the vectors that something gave for the canaries say of it.

    Attributes:
        kind: "same" if all are within the band.
        worst_cosine: The smallest cosine to a canary vector; NaN where there is none.
        cosine_least: What was asked for.
        worst: Name of that picture.
        reason: One line for people.
    """

    kind: Kind
    worst_cosine: float
    cosine_least: float
    worst: str
    reason: str

    @property
    def ok(self) -> bool:
        """Whether it is the file that the passport is for."""
        return self.kind == "same"


def verify(
    passport: Passport,
    vectors: np.ndarray[Any, Any],
    *,
    runtime: str = "",
    declared: Mapping[str, str] | None = None,
) -> Verdict:
    """Whether vectors are those of the passport's file, and if not, of what they are.

    Args:
        passport: Of the file that should have given them.
        vectors: (n, dim), of the passport's pictures in their order, of any length but 0.
        runtime: What gave them, with or without a version: its own band is used if there is one.
        declared: The ``hetero.*`` texts of the model file, if they are at hand. What they say is
            exact, so it comes first.
    """
    least = passport.band(runtime).cosine_least
    for key, meaning in DECLARED.items():
        has = passport.declared()[key]
        said = (declared or {}).get(key, has)
        if said != has:
            return Verdict(
                meaning, math.nan, least, "", f"{key} is {said[:12]}…, expected {has[:12]}…"
            )
    rows = np.asarray(vectors)
    if rows.ndim != 2 or len(rows) != len(passport.vectors):
        wanted = passport.vectors.shape
        return Verdict(
            "unusable", math.nan, least, "", f"an array of shape {rows.shape}, expected {wanted}"
        )
    if rows.shape[1] != passport.space.dim:
        return Verdict(
            "other space",
            math.nan,
            least,
            "",
            f"vectors of {rows.shape[1]} numbers, space {passport.space.id} has "
            f"{passport.space.dim}",
        )
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1)
    bad = np.flatnonzero(~np.isfinite(lengths) | (lengths < 1e-12))
    if bad.size:
        name = passport.pictures[int(bad[0])].name
        return Verdict("unusable", math.nan, least, name, f"no direction for {name}")
    rows /= lengths[:, None]
    cosines = (rows * passport.vectors).sum(axis=1)
    at = int(cosines.argmin())
    kind, reason = _cause(passport, rows, cosines, least)
    return Verdict(kind, float(cosines[at]), least, passport.pictures[at].name, reason)


def _cause(
    passport: Passport,
    rows: np.ndarray[Any, Any],
    cosines: np.ndarray[Any, Any],
    least: float,
) -> tuple[Kind, str]:
    """What unit rows are, and why that is said."""
    worst = float(cosines.min())
    if worst >= least:
        return "same", f"worst cosine {worst:.6f}, at least {least:.6f} was asked for"
    outside = f"worst cosine {worst:.6f} is below {least:.6f}"
    near = {k: float((rows * v).sum(axis=1).min()) for k, v in passport.faults.items()}
    if near:
        name, score = max(near.items(), key=lambda x: x[1])
        # Nearer to the fault than to the truth, and about as near as a good file is to the truth.
        if score > worst and 1 - score <= max(2 * (1 - least), 0.1 * (1 - worst)):
            return "other preprocessing", f"{outside}; the vectors are those of: {name}"
    cross = rows @ passport.vectors.T.astype(np.float64)
    n = len(rows)
    others = (cross.sum() - np.trace(cross)) / (n * (n - 1))
    if cosines.mean() - others < SAME_SPACE:
        return "other space", f"{outside}; the pictures are no nearer to their own canaries"
    return (
        "other weights",
        f"{outside}; the space seems to be the same: other weights, damaged ones, or a "
        "preprocessing of a kind that was not tried",
    )


def check_file(passport: Passport, got_sha256: str, path: Path) -> None:
    """Nothing, if the model file is the one the passport is for.

    Raises:
        BundleError: It is another.
    """
    if got_sha256 != passport.file_sha256:
        raise BundleError(
            f"{path}: SHA-256 {got_sha256[:12]}…, its passport says "
            f"{passport.file_sha256[:12]}…; "
            "write the passport again, or copy the file that belongs to it"
        )


def beside(path: Path) -> Path:
    """Where the passport of a model file stands."""
    return path.with_name(path.name + SUFFIX)


def _plain(name: object) -> str:
    """A file name without a folder.

    Raises:
        ConfigError: It is something else.
    """
    text = str(name)
    if not text or len(text) > 200 or text in (".", "..") or any(c in text for c in '/\\\0:"\n'):
        raise ConfigError(f"file name {text[:60]!r} leads elsewhere")
    return text


def _packed(rows: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(rows, dtype="<f4").tobytes()).decode()


def _unpacked(text: str, n: int, dim: int) -> Float32[np.ndarray, "n d"]:
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
    if len(raw) != n * dim * 4:
        raise ValueError(f"{len(raw)} bytes of vectors, {n} x {dim} x 4 were expected")
    rows = np.frombuffer(raw, "<f4").reshape(n, dim).astype(np.float32)
    if not np.isfinite(rows).all():
        raise ValueError("a vector that is not finite")
    return rows


def _seal(content: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(content).encode(errors="backslashreplace")).hexdigest()
