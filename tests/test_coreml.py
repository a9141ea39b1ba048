"""Core ML packages: converted here, run by the reference interpreter, held against PyTorch."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")
pytest.importorskip("coremltools")

from hetero import models  # noqa: E402
from hetero.bundle import Bundle, Model  # noqa: E402
from hetero.errors import BundleError, ConfigError, ExportError, HeteroError  # noqa: E402
from hetero.export import ConvertJob, Runner, _mil, _mil_store, _seal, coreml, metadata_of  # noqa: E402
from hetero.preprocess import Preprocess  # noqa: E402
from hetero.space import Space  # noqa: E402

if sys.platform == "darwin":
    pytest.skip("these tests are of the reference interpreter", allow_module_level=True)

# What the libraries warn of is theirs; coremltools leaves its folders to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

SIZE, DIM, N = 24, 32, 12
WORST = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.99}


@dataclass(frozen=True)
class Made:
    """A bundle, its pictures and vectors, and packages by (baked, precision)."""

    bundle: Bundle
    pixels: NDArray[Any]
    vectors: NDArray[Any]
    packages: dict[tuple[bool, str], Path]
    facts: dict[tuple[bool, str], dict[str, Any]]


def _bundle(root: Path, net: models.EmbeddingNet, backbone: str) -> Made:
    """A bundle of a net whose batch norms have seen the pictures."""
    preprocess = Preprocess(size_px=SIZE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    coarse = np.random.default_rng(0).integers(0, 256, (N, 4, 4, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((1, SIZE // 4, SIZE // 4, 1), np.uint8))
    for part in net.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.momentum = None  # statistics of all that was seen, not a moving average
    net.train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.from_numpy(preprocess.tensor(pixels)))
    net.eval()
    vectors = models.embed_pixels(net, preprocess, pixels)
    ids = "\n".join(f"picture {i}" for i in range(N)).encode()
    bundle = Bundle.create(
        root,
        role="query",
        space=Space("tiny", hashlib.sha256(b"tiny").hexdigest(), DIM),
        model=Model(backbone=backbone, dim=DIM, parameters=0, macs=0),
        preprocess=preprocess,
        recipe={},
        tensors={
            "weights": models.arrays(net),
            "probe": {"ids": np.frombuffer(ids, np.uint8), "pixels": pixels, "vectors": vectors},
        },
    )
    return Made(bundle, pixels, vectors, {}, {})


def _job(bundle: Bundle, output: Path, precision: str, bake: bool, batch: int = 1) -> ConvertJob:
    return ConvertJob(
        bundle=bundle.root,
        output=output,
        format="coreml",
        precision=precision,
        bake=bake,
        batch=batch,
        size_px=SIZE,
        dim=DIM,
        metadata=metadata_of(bundle, precision, bake),
    )


BACKBONE = "mobilenet:width=0.5,depth=0.5,se=1,act=hswish,stride=1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("coreml")
    gc.freeze()  # coremltools collects garbage in every conversion
    torch.manual_seed(0)
    result = _bundle(root / "bundle", models.build(BACKBONE, DIM, SIZE), BACKBONE)
    for bake, precision in ((True, "fp32"), (True, "fp16"), (True, "int8"), (False, "fp16")):
        output = root / f"{bake}.{precision}.mlpackage"
        job = _job(result.bundle, output, precision, bake)
        result.facts[bake, precision] = coreml.convert(job)
        result.packages[bake, precision] = output
    yield result
    gc.unfreeze()
    gc.collect()


def _cosine(rows: NDArray[Any], right: NDArray[Any]) -> float:
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(right, axis=1)
    return float((np.einsum("nd,nd->n", rows, right, dtype=np.float64) / lengths).min())


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """The int8 package, to be damaged."""
    path = tmp_path / "model.int8.mlpackage"
    shutil.copytree(made.packages[True, "int8"], path)
    return path


@pytest.mark.parametrize("precision", WORST)
def test_a_package_gives_the_vectors_of_pytorch(made: Made, precision: str) -> None:
    with coreml.load(made.packages[True, precision]) as runner:
        rows = runner(made.pixels)
    assert rows.dtype == np.float32
    assert rows.shape == (N, DIM)
    assert _cosine(rows, made.vectors) >= WORST[precision]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_the_precisions_do_differ(made: Made) -> None:
    def difference(precision: str) -> float:
        with coreml.load(made.packages[True, precision]) as runner:
            return float(np.abs(runner(made.pixels) - made.vectors).max())

    assert difference("fp32") < 1e-5 < difference("fp16") < difference("int8")


def test_a_package_without_preprocessing_takes_normalised_floats(made: Made) -> None:
    with coreml.load(made.packages[False, "fp16"]) as runner:
        rows = runner(made.bundle.preprocess.tensor(made.pixels))
    assert _cosine(rows, made.vectors) >= WORST["fp16"]


def test_a_package_without_preprocessing_may_take_a_fixed_batch(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "five.mlpackage"
    coreml.convert(_job(made.bundle, path, "fp32", bake=False, batch=5))
    with coreml.load(path) as runner:
        rows = runner(made.bundle.preprocess.tensor(made.pixels))
    assert coreml.describe(path)["inputs"] == [
        {"name": "images", "kind": "array fp32", "shape": [5, 3, SIZE, SIZE]}
    ]
    assert _cosine(rows, made.vectors) >= WORST["fp32"]


def test_an_image_input_refuses_a_batch(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes one picture a call, got batch 4; leave batch out"):
        coreml.convert(_job(made.bundle, tmp_path / "x.mlpackage", "fp32", bake=True, batch=4))


def test_the_metadata_reads_back_as_it_was_written(made: Made) -> None:
    for (bake, precision), path in made.packages.items():
        assert coreml.metadata(path) == metadata_of(made.bundle, precision, bake)


def test_a_description_says_what_is_in_a_package(made: Made) -> None:
    told = coreml.describe(made.packages[True, "int8"])
    assert told["specification_version"] == 8
    assert told["opset"] == "CoreML7"
    assert told["inputs"] == [{"name": "pixels", "kind": "image RGB", "shape": [SIZE, SIZE]}]
    assert told["outputs"] == [{"name": "embedding", "kind": "array fp32", "shape": [1, DIM]}]
    ops, compression = told["ops"], told["compression"]
    assert isinstance(ops, dict)
    assert isinstance(compression, dict)
    assert ops["conv"] == sum(isinstance(m, torch.nn.Conv2d) for m in _net(made).modules())
    assert "const" not in ops
    large = [p for p in _net(made).parameters() if p.ndim > 1 and p.numel() > 2048]
    assert compression == {"constexpr_affine_dequantize": len(large)}
    weights = made.packages[True, "int8"] / "Data/com.apple.CoreML/weights/weight.bin"
    assert told["weight_bytes"] == weights.stat().st_size
    assert json.loads(json.dumps(told)) == told


def _net(made: Made) -> models.EmbeddingNet:
    return models.load(made.bundle)


def test_int8_and_fp16_shrink_the_weights(made: Made) -> None:
    sizes = {p: coreml.describe(made.packages[True, p])["weight_bytes"] for p in WORST}
    assert isinstance(sizes["fp32"], int)
    assert sizes["int8"] < sizes["fp16"] < 0.6 * sizes["fp32"]  # type: ignore[operator]


def test_the_tail_of_a_float16_program_stays_float32(made: Made) -> None:
    package = _mil.load(made.packages[True, "fp16"]).package
    declared = [(op.type, op.outputs[0].dtype) for op in package.operations if op.type != "const"]
    assert declared[-5:] == [
        ("linear", "fp32"),
        ("reduce_l2_norm", "fp32"),
        ("maximum", "fp32"),
        ("tile", "fp32"),
        ("real_div", "fp32"),
    ]
    inner = {dtype for kind, dtype in declared[:-5] if kind != "cast"}
    assert inner == {"fp16"}


def test_the_facts_say_what_was_done(made: Made) -> None:
    assert made.facts[True, "fp32"]["exporter"] == "torch.export"
    assert made.facts[True, "fp32"]["compute"] == "float32"
    told = made.facts[True, "int8"]
    assert told["weights"] == "int8 per channel, symmetric, from 2048 elements on"
    assert told["activations"] == "float16, not quantised"
    assert "fallback" not in told


def test_equal_bundles_give_equal_packages(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "again.mlpackage"
    coreml.convert(_job(made.bundle, path, "int8", bake=True))
    first = made.packages[True, "int8"]
    files = sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file())
    assert [str(f) for f in files] == [
        "Data/com.apple.CoreML/model.mlmodel",
        "Data/com.apple.CoreML/weights/weight.bin",
        "Manifest.json",
    ]
    for file in files:
        assert (path / file).read_bytes() == (first / file).read_bytes()


class Branching(torch.nn.Module):
    """A backbone that branches on its input: torch.export refuses it, tracing does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        return y.mean((2, 3)) if float(y.sum()) > -1 else y.amax((2, 3))


def branching() -> Branching:
    """For `hetero.models.backbone`."""
    return Branching()


def test_what_torch_export_refuses_is_traced_and_the_facts_say_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    name = f"{__name__}:branching"
    if "." not in name.partition(":")[0]:
        sys.modules["hetero_test.coreml"] = sys.modules[__name__]
        sys.modules.setdefault("hetero_test", type(sys)("hetero_test"))
        name = "hetero_test.coreml:branching"
    made = _bundle(tmp_path / "bundle", models.build(name, DIM, SIZE), name)
    path = tmp_path / "traced.mlpackage"
    facts = coreml.convert(_job(made.bundle, path, "fp32", bake=True))
    assert facts["exporter"] == "torchscript"
    assert "torch.export was refused" in str(facts["fallback"])
    with coreml.load(path) as runner:
        assert _cosine(runner(made.pixels), made.vectors) >= WORST["fp32"]


def test_what_both_ways_refuse_gives_both_reasons(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hetero.export import _coreml_convert

    def refuse(*given: object, **named: object) -> None:
        raise RuntimeError(f"cannot take {type(given[0]).__name__}")

    monkeypatch.setattr(_coreml_convert.ct, "convert", refuse)
    with pytest.raises(ExportError, match=r"torch.export \(.*ExportedProgram\) and .* tracing"):
        coreml.convert(_job(made.bundle, tmp_path / "x.mlpackage", "fp32", bake=True))


# -- damage -------------------------------------------------------------------------------------

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def _flip(path: Path, at: int, mask: int = 0x40) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= mask
    path.write_bytes(raw)


def test_a_flipped_bit_in_the_weights_is_refused(copy: Path) -> None:
    _flip(copy / WEIGHTS, (copy / WEIGHTS).stat().st_size // 2)
    with pytest.raises(BundleError, match=r"weight.bin: altered: SHA-256 .*; export or copy it"):
        coreml.load(copy)


def _write(path: Path, spec: Any) -> None:
    """Puts a message into a package as if we had exported it, its seal whole."""
    spec.description.metadata.userDefined[_seal.KEY] = _seal.BLANK
    (path / MODEL).write_bytes(_seal.seal(spec.SerializeToString()))


def _without_hash(path: Path) -> None:
    spec = _mil_store.message(path)
    del spec.description.metadata.userDefined[_mil_store.WEIGHTS_KEY]
    _write(path, spec)


def test_damaged_weights_without_a_recorded_hash_show_in_the_vectors(
    made: Made, copy: Path
) -> None:
    _without_hash(copy)
    raw = bytearray((copy / WEIGHTS).read_bytes())
    spec = _mil_store.message(copy)
    (function,) = spec.mlProgram.functions.values()
    biggest = max(
        (
            op.attributes["quantized_data"]
            for op in function.block_specializations[function.opset].operations
            if op.type == "constexpr_affine_dequantize"
        ),
        key=lambda value: value.type.tensorType.dimensions[0].constant.size,
    )
    begin = int.from_bytes(raw[biggest.blobFileValue.offset + 16 :][:8], "little")
    for at in range(begin, begin + 2000):
        raw[at] ^= 0x80
    (copy / WEIGHTS).write_bytes(raw)
    with coreml.load(copy) as runner:
        assert _cosine(runner(made.pixels), made.vectors) < WORST["int8"] - 0.01


def test_a_truncated_weight_file_is_refused(copy: Path) -> None:
    _without_hash(copy)
    raw = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BundleError, match=r"weight.bin at \d+: .*truncated.*; export it again"):
        coreml.load(copy)


def test_a_missing_weight_file_is_refused(copy: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=r"weight.bin: cannot be read \(No such file"):
        coreml.load(copy)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_model_file_is_refused(copy: Path, share: float) -> None:
    raw = (copy / MODEL).read_bytes()
    (copy / MODEL).write_bytes(raw[: int(share * len(raw))])
    for use in (coreml.load, coreml.metadata, coreml.describe):
        with pytest.raises(BundleError, match=r"model.mlmodel: .*export") as caught:
            use(copy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["Manifest.json", MODEL])
def test_a_missing_file_is_refused(copy: Path, file: str) -> None:
    (copy / file).unlink()
    for use in (coreml.load, coreml.metadata, coreml.describe):
        with pytest.raises(BundleError, match=r"cannot be read|not a Core ML package"):
            use(copy)


def test_a_path_that_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "absent", tmp_path / "file", tmp_path):
        with pytest.raises(BundleError, match="not a Core ML package"):
            coreml.load(path)


def test_a_list_of_contents_that_leads_outside_is_refused(copy: Path) -> None:
    raw = json.loads((copy / "Manifest.json").read_text())
    raw["itemInfoEntries"][raw["rootModelIdentifier"]]["path"] = "../../secret"
    (copy / "Manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="leads out of the package"):
        coreml.load(copy)


def test_weights_that_lie_outside_are_refused(copy: Path) -> None:
    spec = _mil_store.message(copy)
    raw = spec.SerializeToString()
    inside, outside = b"@model_path/weights/weight.bin", b"@model_path/../../../secret.bi"
    assert len(inside) == len(outside)
    assert inside in raw
    _write(copy, type(spec).FromString(raw.replace(inside, outside)))
    with pytest.raises(BundleError, match="leads out of the package"):
        coreml.load(copy)


def test_weights_behind_a_link_that_leads_outside_are_refused(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).rename(tmp_path / "weight.bin")
    (copy / WEIGHTS).symlink_to(tmp_path / "weight.bin")
    with pytest.raises(BundleError, match="a link or no ordinary file"):
        coreml.load(copy)


def test_a_name_too_long_for_a_line_is_refused(copy: Path) -> None:
    spec = _mil_store.message(copy)
    (function,) = spec.mlProgram.functions.values()
    function.block_specializations[function.opset].operations[5].type = "conv" * 1000
    _write(copy, spec)
    with pytest.raises(BundleError, match=r"a name of 4000 letters: 'convconv.*; export it again"):
        coreml.load(copy)


def test_a_message_of_another_kind_is_refused(copy: Path) -> None:
    spec = _mil_store.message(copy)
    spec.identity.SetInParent()
    _write(copy, spec)
    with pytest.raises(BundleError, match="holds identity, an ML program was expected"):
        coreml.load(copy)


def test_a_description_that_does_not_fit_the_program_is_refused(copy: Path) -> None:
    spec = _mil_store.message(copy)
    spec.description.input[0].name = "picture"
    _write(copy, spec)
    with pytest.raises(
        BundleError, match=r"names \['picture'\] where the program has \['pixels'\]"
    ):
        coreml.load(copy)


def test_an_op_that_is_not_known_is_named(copy: Path) -> None:
    spec = _mil_store.message(copy)
    (function,) = spec.mlProgram.functions.values()
    operations = function.block_specializations[function.opset].operations
    next(op for op in operations if op.type == "conv").type = "conv_of_tomorrow"
    _write(copy, spec)
    with pytest.raises(ExportError, match="Core ML op 'conv_of_tomorrow' is not known"):
        coreml.load(copy)


def test_any_flipped_bit_in_program_or_weights_is_refused(made: Made, copy: Path) -> None:
    draw = np.random.default_rng(0)
    for file in (MODEL, WEIGHTS):
        whole = (copy / file).read_bytes()
        for _ in range(20):
            _flip(copy / file, int(draw.integers(len(whole))), 1 << int(draw.integers(8)))
            with pytest.raises(BundleError, match=r"altered|without a seal"):
                coreml.load(copy)
            (copy / file).write_bytes(whole)


def test_a_forged_program_ends_in_one_line_or_in_vectors(made: Made, copy: Path) -> None:
    _without_hash(copy)
    spec = _mil_store.message(copy)
    whole = {WEIGHTS: (copy / WEIGHTS).read_bytes(), MODEL: spec.SerializeToString()}
    draw = np.random.default_rng(0)
    refused = passed = 0
    for _ in range(80):
        file = str(draw.choice(list(whole)))
        raw = bytearray(whole[file])
        raw[int(draw.integers(len(raw)))] ^= 1 << int(draw.integers(8))
        (copy / file).write_bytes(raw)
        try:
            with _reference(copy) as runner:
                runner(made.pixels[:1])
        except HeteroError as error:
            refused += str(error).count("\n") == 0
        else:
            passed += 1
        (copy / file).write_bytes(whole[file])
    assert refused + passed == 80
    assert refused > 10


def _reference(path: Path) -> Runner:
    """The Runner behind `load`, for a package whose seal nobody looks at."""
    return coreml._Reference(path, 1)


def test_wrong_pictures_are_refused(made: Made) -> None:
    with coreml.load(made.packages[True, "fp32"]) as runner:
        for wrong in (
            made.pixels.astype(np.float32),
            made.pixels[:, :8],
            made.pixels[:0],
            made.pixels.transpose(0, 3, 1, 2),
        ):
            with pytest.raises(ConfigError, match="takes uint8 pictures of shape"):
                runner(wrong)


def test_the_runtime_is_not_called_core_ml_where_it_is_not(made: Made) -> None:
    with coreml.load(made.packages[True, "fp32"]) as runner:
        assert runner.runtime.startswith("reference execution of the MIL program")
    assert "not by Apple's runtime" in coreml.RUNS_HERE
