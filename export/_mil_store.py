"""A Core ML package on disk: its list of contents, its message, its weight file.

Every length, offset and path is checked before it is used, so that a torn, altered or hostile
package ends in one line.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetero.errors import BundleError, require

#: Extra that brings the message definitions.
EXTRA = "coreml"

#: Key under which our packages carry the SHA-256 of their weight file.
WEIGHTS_KEY = "weight_file_sha256"

#: Our name for an element type -> NumPy's.
NUMPY: Mapping[str, str] = MappingProxyType(
    {
        "bool": "?",
        "fp16": "<f2",
        "fp32": "<f4",
        "fp64": "<f8",
        "int8": "i1",
        "int16": "<i2",
        "int32": "<i4",
        "int64": "<i8",
        "uint8": "u1",
        "uint16": "<u2",
        "uint32": "<u4",
        "uint64": "<u8",
    }
)

#: The weight file's number for a type.
_BLOB_DTYPES: Mapping[int, str] = MappingProxyType(
    {
        1: "fp16",
        2: "fp32",
        3: "uint8",
        4: "int8",
        6: "int16",
        7: "uint16",
        14: "int32",
        15: "uint32",
    }
)
_SENTINEL = 0xDEADBEEF


def model_file(path: Path) -> Path:
    """The file in a package that holds the program.

    Raises:
        BundleError: Not a package, or its list of contents is missing, torn or leads outside.
    """
    contents = path / "Manifest.json"
    try:
        raw = json.loads(contents.read_bytes())
        inner = raw["itemInfoEntries"][raw["rootModelIdentifier"]]["path"]
        found: Path = path / "Data" / inner
        inside = found.resolve().is_relative_to(path.resolve())
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{path}: not a Core ML package: a folder with a Manifest.json was expected; "
            "export it again"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError(f"{contents}: cannot be read ({line(error)}); export it again") from error
    if not inside:
        raise BundleError(f"{contents}: {inner!r} leads out of the package; export it again")
    return found


def message(path: Path) -> Any:
    """The protobuf message in a package's model file (``CoreML.Specification.Model``).

    Raises:
        BundleError: It is missing, torn, or no ML program.
        MissingExtraError: coremltools is not installed.
    """
    file = model_file(path)
    spec = _proto("Model_pb2").Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except OSError as error:
        raise BundleError(f"{file}: cannot be read ({error.strerror}); export it again") from error
    except Exception as error:  # protobuf's DecodeError, without importing protobuf by name
        raise BundleError(
            f"{file}: truncated or altered ({line(error)}); export it again"
        ) from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise BundleError(
            f"{file}: holds {spec.WhichOneof('Type') or 'nothing'}, an ML program was expected; "
            "it is truncated, or made for iOS 14 and earlier; export it again"
        )
    return spec


class Weights:
    """The weight files of a package, each read once.

    Args:
        package: The package's folder.
        home: The folder that "@model_path" stands for.
        sha256: Of the weight file as it was written; "" if nobody recorded it.
    """

    def __init__(self, package: Path, home: Path, sha256: str) -> None:
        self._package, self._home, self._sha256 = package, home, sha256
        self._files: dict[str, bytes] = {}

    @property
    def size_bytes(self) -> int:
        """Size of the files that were read so far."""
        return sum(len(raw) for raw in self._files.values())

    def array(self, name: str, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """The array that a file holds at an offset.

        Args:
            name: The file, as the program names it.
            offset: Of the record that describes the data, in bytes.
            dtype: The element type that the program expects.
            shape: The shape that it expects.

        Raises:
            BundleError: The file is missing, altered, or holds something else there.
        """
        raw = self._bytes(name)
        where = f"{self._package}: {name.rpartition('/')[2]} at {offset}"
        if offset < 0 or offset % 64 or offset + 64 > len(raw):
            raise BundleError(
                f"{where}: no weights there, the file has {len(raw)} bytes; it is truncated or "
                "altered; export it again"
            )
        mark, number, size, begin = struct.unpack_from("<IIQQ", raw, offset)
        found = _BLOB_DTYPES.get(number, f"type {number}")
        wanted = math.prod(shape) * np.dtype(NUMPY[dtype]).itemsize
        if mark != _SENTINEL or found != dtype or size != wanted:
            raise BundleError(
                f"{where}: {wanted} bytes of {dtype} were expected, found {size} bytes of {found}; "
                "export it again"
            )
        if begin + size > len(raw):
            raise BundleError(
                f"{where}: needs {begin + size} bytes, the file has {len(raw)}: truncated; "
                "export it again"
            )
        return np.frombuffer(raw, NUMPY[dtype], math.prod(shape), begin).reshape(shape)

    def _bytes(self, name: str) -> bytes:
        if name not in self._files:
            # No "..", no absolute path, nothing that a file system may read in its own way.
            if not re.fullmatch(r"@model_path(/\w[\w.\-]{0,99})+", name):
                raise BundleError(f"{self._package}: {name[:99]!r} leads out of the package")
            file = self._home / name.removeprefix("@model_path/")
            if not file.resolve().is_relative_to(self._package.resolve()):
                raise BundleError(f"{file}: leads out of the package through a link")
            try:
                raw = file.read_bytes()
            except OSError as error:
                raise BundleError(
                    f"{file}: cannot be read ({error.strerror}); export it again"
                ) from error
            got = hashlib.sha256(raw).hexdigest()
            if self._sha256 and got != self._sha256:
                raise BundleError(
                    f"{file}: altered: SHA-256 {got[:12]}… ({len(raw)} bytes) where the model was "
                    f"written with {self._sha256[:12]}…; export or copy it again"
                )
            self._files[name] = raw
        return self._files[name]


def line(error: BaseException) -> str:
    """What an error says, as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _proto(name: str) -> ModuleType:
    """A module of coremltools' message definitions.

    Importing coremltools takes several seconds, since it imports PyTorch and others on the way;
    its message definitions need none of that, so they are imported as a package of their own.
    """
    if "coremltools" in sys.modules:
        return require(f"coremltools.proto.{name}", EXTRA)
    alias = "hetero.export._coreml_proto"
    if alias not in sys.modules:
        whole = importlib.util.find_spec("coremltools")
        if whole is None or whole.origin is None:
            return require("coremltools", EXTRA)
        folder = Path(whole.origin).parent / "proto"
        spec = importlib.util.spec_from_file_location(
            alias, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            return require(f"coremltools.proto.{name}", EXTRA)
        package = importlib.util.module_from_spec(spec)
        sys.modules[alias] = package
        spec.loader.exec_module(package)
    return importlib.import_module(f"{alias}.{name}")
