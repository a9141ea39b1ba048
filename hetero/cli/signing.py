"""Signatures: who vouches for a bundle."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from hetero.cli._helpers import say
from hetero.cli._options import Json

#: The variable that holds the password of a private key; on a command line others would see it.
PASSWORD = "HETERO_KEY_PASSWORD"


def sign(
    bundle: Annotated[Path, typer.Argument(help="Any bundle.")],
    key: Annotated[
        Path,
        typer.Option(help=f"Private elliptic curve key, PEM; its password in {PASSWORD}."),
    ],
    json_: Json = False,
) -> None:
    """Sign all files of a bundle with a private key, in the format of OpenSSF model signing."""
    from hetero import signing

    made = signing.sign(bundle, key, os.environ.get(PASSWORD))
    say(json_, {"signature": str(made)}, f"{made}: signs {bundle}")


def verify(
    bundle: Annotated[Path, typer.Argument(help="A signed bundle.")],
    key: Annotated[Path, typer.Option(help="Public key of whoever signed it, PEM.")],
    json_: Json = False,
) -> None:
    """Say whether a bundle is as it was signed: no file altered, added or left out."""
    from hetero import signing

    files = signing.verify(bundle, key)
    say(json_, {"bundle": str(bundle), "files": files}, f"{bundle}: {files} files as signed")
