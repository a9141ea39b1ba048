"""Which emoji designs are in the package, by whom, under which licences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Design:
    """One set of drawings.

    Attributes:
        name: As in picture ids.
        package: npm package below ``@iconify-json/``.
        version: The version this file was last run with.
        family: Designs of one family share drawings.
        licence: SPDX name that the package declares; anything else stops the build.
    """

    name: str
    package: str
    version: str
    family: str
    licence: str


DESIGNS = (
    Design("emojione", "emojione", "1.2.3", "emojione", "CC-BY-4.0"),
    Design("emojione-mono", "emojione-monotone", "1.2.1", "emojione", "CC-BY-4.0"),
    Design("fluent", "fluent-emoji", "1.2.7", "fluent", "MIT"),
    Design("fluent-flat", "fluent-emoji-flat", "1.2.6", "fluent", "MIT"),
    Design("fluent-hc", "fluent-emoji-high-contrast", "1.2.6", "fluent", "MIT"),
    Design("fxemoji", "fxemoji", "1.2.2", "fxemoji", "Apache-2.0"),
    Design("noto", "noto", "1.2.9", "noto", "Apache-2.0"),
    Design("noto-v1", "noto-v1", "1.2.5", "noto-v1", "Apache-2.0"),
    Design("twemoji", "twemoji", "1.2.5", "twemoji", "CC-BY-4.0"),
)

#: What the makers ask to be named beside the author that the package states.
HOLDERS = {
    "emojione": " and the contributors of EmojiTwo, which continues EmojiOne 2",
    "twemoji": ", Inc and other contributors",
}

LICENCE_TEXTS = """\
CC-BY-4.0 is the Creative Commons Attribution 4.0 International licence; Apache-2.0 is the Apache
License, Version 2.0, whose text is in the LICENSE file of this project. They disclaim warranties.

MIT, for the fluent designs: Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def notice(infos: Mapping[str, Mapping[str, Any]], tile_px: int) -> str:
    """The attributions that the licences ask for, from what the packages say of themselves.

    Args:
        infos: Design -> its package's ``info.json``.
        tile_px: Side of a picture.
    """
    lines = [
        "The pictures in emoji.webp are by the makers of nine emoji designs. They were rendered",
        f"from vector drawings on white, downscaled to {tile_px} x {tile_px} pixels and",
        "recompressed; nothing else was changed. No maker endorses this use.",
        "",
    ]
    for design in DESIGNS:
        info = infos[design.name]
        author, licence = info["author"], info["license"]
        lines += [
            f"{design.name}: {info['name']}",
            f"  by {author['name']}{HOLDERS.get(design.family, '')}, {author['url']}",
            f"  {licence['spdx']}, {licence['url']}",
            f"  from the npm package @iconify-json/{design.package} {design.version}",
            "",
        ]
    return "\n".join([*lines, LICENCE_TEXTS])
