from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_bundle import make, rewrite, with_file

from hetero import signing
from hetero.bundle import Bundle
from hetero.errors import BundleError, ConfigError, MissingExtraError

try:
    import model_signing
except ModuleNotFoundError:
    model_signing = None

needs_signing = pytest.mark.skipif(
    model_signing is None,
    reason="needs the extra 'sign', in an environment without the extra 'tflite'",
)


def pair(folder: Path, name: str = "key", password: bytes | None = None) -> tuple[Path, Path]:
    """A private and a public key."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    lock = form.BestAvailableEncryption(password) if password else form.NoEncryption()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, lock))
    kind = form.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(key.public_key().public_bytes(form.Encoding.PEM, kind))
    return private, public


@pytest.fixture
def signed(tmp_path):
    root = with_file(make(tmp_path / "bundle")).root
    (root / "logs").mkdir()
    private, public = pair(tmp_path)
    assert signing.sign(root, private) == root / "model.sig"
    return root, private, public


@pytest.mark.skipif(model_signing is not None, reason="model-signing is installed")
def test_without_the_library_one_line_says_what_to_install(tmp_path):
    for call in (signing.sign, signing.verify):
        with pytest.raises(MissingExtraError, match=r"pip install 'hetero\[sign\]'"):
            call(tmp_path, tmp_path / "key.pem")


@needs_signing
def test_a_signed_bundle_is_verified_wherever_it_is_copied_to(signed, tmp_path):
    root, _, public = signed
    # manifest, weights, probe, model file; not the signature, not logs.
    assert signing.verify(root, public) == 4
    shutil.copytree(root, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "logs" / "export-onnx.log").write_text("chatter")
    assert signing.verify(tmp_path / "elsewhere", public) == 4


@needs_signing
def test_what_a_manifest_sealed_anew_hides_a_signature_shows(signed):
    root, _, public = signed
    rewrite(root, lambda content: {**content, "recipe": {"method": "other"}})
    Bundle.load(root)  # whoever alters it on purpose also writes its hash anew
    with pytest.raises(BundleError, match=r"not as it was signed .*manifest\.json"):
        signing.verify(root, public)


@needs_signing
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: (root / "extra.onnx").write_bytes(b"x"), "extra.onnx"),
        (lambda root: (root / "model.int8.onnx").write_bytes(b"other"), "model.int8.onnx"),
        (lambda root: (root / "weights.safetensors").unlink(), "weights.safetensors"),
    ],
)
def test_a_file_that_was_altered_added_or_left_out_is_named(signed, change, words):
    root, _, public = signed
    change(root)
    with pytest.raises(BundleError, match=words) as caught:
        signing.verify(root, public)
    assert "\n" not in str(caught.value)
    assert "digest" not in str(caught.value).lower()


@needs_signing
def test_another_key_a_torn_signature_and_none_are_refused(signed, tmp_path):
    root, private, public = signed
    with pytest.raises(BundleError, match=r"not as it was signed .*Key mismatch"):
        signing.verify(root, pair(tmp_path, "other")[1])
    raw = (root / "model.sig").read_bytes()
    (root / "model.sig").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(BundleError, match="not as it was signed"):
        signing.verify(root, public)
    at = raw.index(b'"sig"') + 20
    (root / "model.sig").write_bytes(raw[:at] + (b"A" if raw[at] != 65 else b"B") + raw[at + 1 :])
    with pytest.raises(BundleError, match=r"not by the owner|not as it was signed"):
        signing.verify(root, public)
    (root / "model.sig").unlink()
    with pytest.raises(BundleError, match="not signed"):
        signing.verify(root, public)
    assert signing.sign(root, private).exists()


@needs_signing
def test_keys_of_another_kind_are_refused_in_one_line(tmp_path):
    root = make(tmp_path / "bundle").root
    private, public = pair(tmp_path, password=b"secret")
    with pytest.raises(ConfigError, match="cannot be read"):
        signing.sign(root, tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="not a private elliptic curve key"):
        signing.sign(root, public)
    with pytest.raises(ConfigError, match="not a private elliptic curve key"):
        signing.sign(root, private)  # without its password
    signing.sign(root, private, "secret")
    with pytest.raises(ConfigError, match="not a public elliptic curve key"):
        signing.verify(root, private)


@needs_signing
def test_a_bundle_that_is_not_whole_is_not_signed(tmp_path):
    root = with_file(make(tmp_path / "bundle")).root
    (root / "model.int8.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match="altered"):
        signing.sign(root, pair(tmp_path)[0])
    assert not (root / "model.sig").exists()


@needs_signing
def test_the_commands_sign_and_verify_and_exit_with_2_where_it_is_not_so(tmp_path):
    root = make(tmp_path / "bundle").root
    private, public = pair(tmp_path)

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "hetero.cli", *map(str, args)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True,
            text=True,
            check=False,
        )

    assert run("sign", root, "--key", private).returncode == 0
    done = run("verify", root, "--key", public)
    assert (done.returncode, done.stdout) == (0, f"{root}: 3 files as signed\n")
    (root / "more").write_text("x")
    done = run("verify", root, "--key", public)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "more" in done.stderr
