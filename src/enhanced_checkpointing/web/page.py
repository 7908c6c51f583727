"""The status page: whole, and as what one that is open needs to be as of now."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from enhanced_checkpointing.web.sections import sections
from enhanced_checkpointing.web.view import Mode, View

_COLOURS = {Mode.HEALTHY: "#1a7f4b", Mode.OUTAGE: "#c4320a", Mode.REFUSING: "#b42318", Mode.OFF: "#667085"}
_OTHER_COLOUR = "#b7791f"

_STYLE = files("enhanced_checkpointing.web").joinpath("page.css").read_text(encoding="utf-8")
_SCRIPT = files("enhanced_checkpointing.web").joinpath("page.js").read_text(encoding="utf-8")


def _source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_source(_STYLE)}; script-src {_source(_SCRIPT)}; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Nothing from elsewhere, and of what is inline only what is ours."""


def page(view: View) -> str:
    """The whole page, of use without its script, too: it is loaded anew every ten seconds then."""
    shown = sections(view)
    parts = "\n".join(f'<section id="{name}">{html}</section>' for name, html in shown.items() if name != "headline")
    return f"""<!doctype html>
<html lang="en" data-mode="{view.mode}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="robots" content="noindex">
<title>{title(view)}</title>
<link rel="icon" href="{icon(view.mode)}">
<style>{_STYLE}</style>
<noscript><meta http-equiv="refresh" content="10"></noscript>
</head>
<body>
<p id="silence" role="alert" hidden></p>
<main>
<p class="name">Checkpoints of <b>{escape(view.name)}</b></p>
<header id="headline" role="status">{shown["headline"]}</header>
{parts}
</main>
<footer>
<nav aria-label="For machines"><a href="health">health</a> <a href="metrics">metrics</a> <a href="readyz">readyz</a>
<a href="livez">livez</a></nav>
</footer>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def update(view: View) -> dict[str, Any]:
    """The same as plain JSON types; a page that is open changes only what has changed."""
    return {"mode": view.mode, "title": title(view), "icon": icon(view.mode), "sections": sections(view)}


def title(view: View) -> str:
    """What the tab says: the state first."""
    return f"{view.headline.title} · checkpoints"


def icon(mode: Mode) -> str:
    """A dot in the colour of the state, for the tab."""
    drawing = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
        f"<circle cx='8' cy='8' r='7' fill='{_COLOURS.get(mode, _OTHER_COLOUR)}'/></svg>"
    )
    return "data:image/svg+xml," + quote(drawing, safe="")
