"""What a bundle's `manifest.json` says, and how it is read: nothing in it is trusted unchecked.

The manifest seals itself: its last key, "sha256", is that of the canonical JSON of all the others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hetero import _schemas
from hetero._files import canonical_json
from hetero.errors import BundleError

SCHEMA = "hetero.bundle/1"
MANIFEST = "manifest.json"

#: Far more than any manifest has.
MAX_MANIFEST_BYTES = 16 << 20

Role = Literal["gallery", "query", "classifier"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Artifact(_Frozen):
    """One file (or, for Core ML, folder) of a bundle.

    Attributes:
        path: Relative to the bundle, forward slashes.
        kind: "weights", "head", "probe", "trained", or a format's name: "onnx", "tflite", "coreml".
        sha256: Of the bytes; of a folder, see `digest`.
        size_bytes: Of the file, or of all files in the folder.
        precision: "fp32", "fp16", "int8"; empty for what is not a model file.
        input: What the model file takes: "uint8_nhwc" (preprocessing inside) or "float32_nchw".
        batch: 1 for a fixed batch, 0 for a dynamic one.
        facts: What the writer found out: tool versions, parity, conversion time.
    """

    path: str
    kind: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)
    precision: str = ""
    input: Literal["", "uint8_nhwc", "float32_nchw"] = ""
    batch: int = Field(default=0, ge=0)
    facts: dict[str, str | float | int] = Field(default_factory=dict)

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        parts = PurePosixPath(value).parts
        if not parts or "\\" in value or "\0" in value or value.startswith("/") or ".." in parts:
            raise ValueError(f"path {value!r} leaves the bundle")
        return value


class FittedMap(_Frozen):
    """A map behind the embedding, which leads into the space of another model.

    Attributes:
        name: A module of `hetero.maps` or a dotted path.
        settings: Its settings.
        dim: Length of the embedding it takes.
    """

    name: str
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)
    dim: int = Field(ge=1)


class Model(_Frozen):
    """What is needed to build the model again before its weights are loaded.

    Attributes:
        backbone: As given to `hetero.models.backbone`: "resnet:width=32", "timm:NAME", "m:f".
        dim: Length of the embedding; of a classifier, the number of classes.
        inner: Numbers the embedding is lifted from by a last linear layer; 0 for none.
        parameters: Count, embedding layer included, classifier excluded.
        macs: Multiply-accumulates for one picture at the bundle's input size.
        map: What follows the embedding of a model that was aligned; None where nothing does, or
            where the map is folded into the model.
    """

    backbone: str
    dim: int = Field(ge=1)
    inner: int = Field(default=0, ge=0)
    parameters: int = Field(ge=0)
    macs: int = Field(ge=0)
    map: FittedMap | None = None


class Nested(_Frozen):
    """A space that a longer one holds: the first `dim` numbers of a vector, normalised, are in it.

    Attributes:
        name: As in `hetero.space.Space`.
        digest: As in `hetero.space.Space`.
        dim: As in `hetero.space.Space`.
    """

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    dim: int = Field(ge=1)


class Manifest(_Frozen):
    """What a bundle is; `manifest.json` is this, and nothing else is trusted."""

    schema_: str = Field(alias="schema")
    role: Role
    space_name: str
    space_digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    model: Model
    preprocess: dict[str, Any]
    recipe: dict[str, str | int | float | bool]
    parent: str = ""
    nested: tuple[Nested, ...] = ()
    data: dict[str, str | int] = Field(default_factory=dict)
    files: tuple[Artifact, ...] = ()
    made_with: dict[str, str] = Field(default_factory=dict)

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), populate_by_name=True
    )


def read(root: Path) -> Manifest:
    """The manifest in a bundle's folder, valid and as it was written.

    Raises:
        BundleError: There is none, or it is not valid, altered or newer than this program.
    """
    path = root / MANIFEST
    try:
        # A pipe would never end, and neither would a link to a device.
        if path.exists() and not path.is_file():
            raise BundleError(f"{path}: cannot be read (not an ordinary file)")
        if (size := path.stat().st_size) > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: {size} bytes, a manifest has {MAX_MANIFEST_BYTES}")
        raw = json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except FileNotFoundError:
        raise BundleError(
            f"{root}: not a bundle, it has no {MANIFEST}; make one with `hetero train` "
            "or `hetero adopt`"
        ) from None
    except NotADirectoryError:
        raise BundleError(
            f"{root}: a file, and a bundle is a folder; name the folder that it is in"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path}: cannot be read ({str(error)[:200]})") from error
    said = raw if isinstance(raw, dict) else {}
    made = said.get("made_with")
    _schemas.check(
        path,
        said.get("schema"),
        SCHEMA,
        again="use the version that wrote it, or train and export again",
        writer=made.get("hetero", "") if isinstance(made, dict) else "",
    )
    if raw.pop("sha256", None) != seal(raw):
        raise BundleError(
            f"{path}: altered: it is not as it was written; copy it again, or train again"
        )
    try:
        return Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise BundleError(
            f"{path}: {error.error_count()} mistakes, first at {where}: {first['msg']}"
        ) from error


def _finite(text: str) -> float:
    """The number that a text in JSON stands for.

    Raises:
        ValueError: It is NaN or infinite, which no manifest holds and JSON does not know.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} where a finite number was expected")
    return value


def seal(content: Mapping[str, object]) -> str:
    """The hash by which a manifest of this content seals itself."""
    return hashlib.sha256(canonical_json(content).encode(errors="backslashreplace")).hexdigest()


def sealed(manifest: Manifest) -> dict[str, object]:
    """What `manifest.json` holds."""
    content = manifest.model_dump(mode="json", by_alias=True)
    return {**content, "sha256": seal(content)}


def json_schema() -> dict[str, Any]:
    """The published schema of `manifest.json`, which is `hetero/manifest.schema.json`."""
    made = Manifest.model_json_schema(by_alias=True)
    made["properties"]["schema"] = {"const": SCHEMA}
    made["properties"]["sha256"] = {
        "description": "Of the canonical JSON (sorted keys, no spaces) of all the other keys.",
        "pattern": "^[0-9a-f]{64}$",
        "type": "string",
    }
    made["required"].append("sha256")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}
