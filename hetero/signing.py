"""Signatures: who vouches for every file of a bundle, by the OpenSSF model-signing library.

Hashes and seals find accidents; whoever alters a file on purpose writes the hash anew. A signature
is of all files in the bundle, by a private key that stays where models are made; anybody with the
public key can tell whether one was altered, added or left out. Keys are elliptic curve keys in PEM
(P-256, P-384, P-521), as ``openssl ecparam -name prime256v1 -genkey`` makes them. No network is
used.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hetero._files import write_atomically
from hetero.bundle import Bundle
from hetero.errors import BundleError, ConfigError, require

EXTRA = "sign"

#: Name of the signature in a bundle, in the Sigstore bundle format.
SIGNATURE = "model.sig"

#: What a bundle may hold that is no part of the model: what training and exports leave behind.
UNSIGNED = (SIGNATURE, "logs", "training")


def sign(root: Path, private_key: Path, password: str | None = None) -> Path:
    """The signature of all files of a bundle, written into it; one that was there is replaced.

    Args:
        root: A whole bundle.
        private_key: An elliptic curve key in PEM.
        password: Of the key, if it has one.

    Raises:
        BundleError: The bundle is not whole.
        ConfigError: The key cannot be read, or is of another kind.
        MissingExtraError: model-signing is not installed.
        StorageError: The disk is full.
    """
    require("model_signing", EXTRA)
    from model_signing import signing

    Bundle.load(root)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=private_key,
            password=password.encode() if password else None,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _unfit(private_key, "private", error) from error
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / SIGNATURE
        config.set_hashing_config(_hashing()).sign(root, made)
        write_atomically(root / SIGNATURE, made.read_bytes())
    return root / SIGNATURE


def verify(root: Path, public_key: Path) -> int:
    """Number of files in a bundle that are as they were signed; there are no others.

    Args:
        root: A bundle.
        public_key: Of whoever has signed it, in PEM.

    Raises:
        BundleError: There is no signature, it is of another key, or files were altered, added or
            left out since; the message names the first.
        ConfigError: The key cannot be read, or is of another kind.
        MissingExtraError: model-signing is not installed.
    """
    require("model_signing", EXTRA)
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    signature = root / SIGNATURE
    if not signature.is_file():
        raise BundleError(f"{root}: not signed, it has no {SIGNATURE}; sign it with `hetero sign`")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError, AttributeError) as error:
        raise _unfit(public_key, "public", error) from error
    try:
        config.set_hashing_config(_hashing()).verify(root, signature)
    except InvalidSignature as error:
        raise BundleError(f"{signature}: not by the owner of {public_key}, or altered") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        text = " ".join(str(error).split()).removeprefix("Signature mismatch: ")
        text = text.partition(": Expected ")[0].strip('[]"')[:300]  # without digests as bytes
        raise BundleError(
            f"{root}: not as it was signed ({text}); copy it again from whoever signed it"
        ) from error
    Bundle.load(root)
    return sum(1 for p in root.rglob("*") if p.is_file() and not _left_out(p.relative_to(root)))


def _hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)


def _left_out(path: Path) -> bool:
    return path.parts[0] in UNSIGNED


def _unfit(key: Path, kind: str, error: Exception) -> ConfigError:
    if isinstance(error, OSError):
        return ConfigError(f"{key}: cannot be read ({error.strerror or error})")
    text = " ".join(str(error).split())[:200]
    return ConfigError(
        f"{key}: not a {kind} elliptic curve key in PEM ({text}); make a pair with "
        "`openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem` and "
        "`openssl ec -in KEY.pem -pubout -out KEY.pub.pem`"
    )
