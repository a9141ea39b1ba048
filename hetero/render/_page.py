"""What pages share: one environment for their templates, and the filters for text from outside."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hetero.errors import require
from hetero.render import _words


def page(template: str, **values: Any) -> str:
    """A template of this folder, filled; every string that came from outside is escaped.

    Raises:
        MissingExtraError: Jinja is not installed.
    """
    jinja = require("jinja2", "report")
    environment = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"unbroken": _unbroken, "clean": _clean, "named": _named}
    text: str = environment.get_template(template).render(**values)
    return text


def _clean(text: object) -> str:
    return _words.clean(str(text))


def _named(text: object) -> str:
    """The escaped name of a file or device, which may go on a new line behind its punctuation."""
    from markupsafe import Markup, escape

    # What escaping writes, "&lt;", has none of these signs in it.
    return Markup(re.sub(r"([:,@/])(?=\w)", r"\1<wbr>", str(escape(_clean(text)))))


def _unbroken(text: str) -> str:
    """The text with numbers kept on one line with their units."""
    return re.sub(r"(?<=\d) (?=(%|points|ms|MiB|of)\b|%)", "\u00a0", text)
