"""Snippets: the app's side of a model file, as one readable source file per language.

A language is a module of this folder, found by its name. It offers:

    FILE          name of the source file
    RUN           how its self-check is run, for people
    render(spec)  the source

Every one of them crops, resizes, normalises and checks itself with the same numbers and the same
whole-number arithmetic, so that pixels are equal bit by bit to `hetero.preprocess`.

Paper: none; the resize is that of Pillow's src/libImaging/Resample.c, across first, then down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from hetero import _plugins
from hetero.errors import ConfigError
from hetero.passport import Passport
from hetero.preprocess import Preprocess

#: Half of each filter's width at scale 1, in source pixels.
SUPPORT: Mapping[str, float] = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}


@dataclass(frozen=True)
class Spec:
    """What a snippet has to know.

    Attributes:
        preprocess: How pictures become the file's input.
        space_id, space_digest: Of the vectors.
        dim: Their length.
        weights_sha256: What the file was made from.
        file: Its name.
        file_sha256: Its digest.
        kind: "onnx", "tflite" or "coreml".
        input: "uint8_nhwc" or "float32_nchw".
        cosine_least: Of a canary, on a runtime of which nothing is known.
    """

    preprocess: Preprocess
    space_id: str
    space_digest: str
    dim: int
    weights_sha256: str
    file: str
    file_sha256: str
    kind: str
    input: str
    cosine_least: float

    @classmethod
    def of(cls, passport: Passport) -> Spec:
        """What a passport says."""
        p = passport
        return cls(
            p.preprocess,
            p.space.id,
            p.space.digest,
            p.space.dim,
            p.weights_sha256,
            p.file,
            p.file_sha256,
            p.kind,
            p.input,
            p.band().cosine_least,
        )

    def constants(self) -> dict[str, str]:
        """Placeholder of a template -> what stands for it in every language."""
        p = self.preprocess
        return {
            "SPACE_ID": _text(self.space_id),
            "SPACE_DIGEST": self.space_digest,
            "DIM": str(self.dim),
            "PREPROCESS_SHA256": p.sha256,
            "WEIGHTS_SHA256": _text(self.weights_sha256),
            "FILE": _text(self.file),
            "FILE_SHA256": _text(self.file_sha256),
            "INPUT": _text(self.input),
            "SIZE": str(p.size_px),
            "RESIZE": p.resize,
            "SUPPORT": str(SUPPORT[p.resize]),
            "FIT": p.fit,
            "MEAN": ", ".join(_number(x) for x in p.mean),
            "STD": ", ".join(_number(x) for x in p.std),
            "COSINE_LEAST": f"{self.cosine_least:.9f}",
        }


def languages() -> tuple[str, ...]:
    """Names of the languages there are."""
    return _plugins.names(__name__)


def module(language: str) -> ModuleType:
    """The module of a language.

    Raises:
        ConfigError: There is none of this name; the message lists those there are.
    """
    return _plugins.load(__name__, language)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with every ``@NAME@`` replaced.

    Raises:
        ConfigError: There is nothing to put in place of one.
    """
    left = sorted(set(re.findall(r"@([A-Z0-9_]+)@", template)) - set(values))
    if left:
        raise ConfigError(f"a snippet's template asks for {left[0]}, which is not known")
    return re.sub(r"@([A-Z0-9_]+)@", lambda m: values[m[1]], template)


def _number(value: float) -> str:
    """A decimal that every language reads as the same float32."""
    text = repr(float(value))
    return text if re.fullmatch(r"-?\d+\.\d+", text) else f"{value:.20f}"


def _text(value: str) -> str:
    """A text that may stand between quotes in every language.

    Raises:
        ConfigError: It holds what would end the quotes or be read as code.
    """
    if not re.fullmatch(r"[^\"'\\$`\x00-\x1f\x7f\u2028\u2029]{0,300}", value):
        raise ConfigError(
            f"{value[:60]!r} cannot stand in source code: name the space in letters and digits"
        )
    return value
