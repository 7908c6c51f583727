"""The status page as HTML, and as the update that an open page polls."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from enhanced_checkpointing.errors import shortened
from enhanced_checkpointing.observability.recent import CALLS_KEPT
from enhanced_checkpointing.web import view as views
from enhanced_checkpointing.web.view import CALL_SECONDS, Mode, View

LONGEST_SHOWN = 500
"""Characters shown of any text: thread ids and errors have no limit of their own."""

_COLOURS = {Mode.HEALTHY: "#1a7f4b", Mode.OUTAGE: "#c4320a", Mode.REFUSING: "#b42318", Mode.OFF: "#667085"}
_OTHER_COLOUR = "#b7791f"

_SECTIONS = ("headline", "points", "figures", "depth", "outages", "calls", "refused", "branches", "messages", "clock")


def _cut_to_readable_length(value: object) -> object:
    return shortened(value, LONGEST_SHOWN) if type(value) is str else value


_templates = Environment(
    loader=PackageLoader("enhanced_checkpointing", "web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_cut_to_readable_length,
)
_templates.filters |= {
    name: getattr(views, name)
    for name in ("clock", "depth", "exact", "figures", "moment", "outage_end", "span", "strip")
}
_templates.filters["number"] = "{:,}".format
_templates.globals |= {"call_minutes": round(CALL_SECONDS / 60), "calls_kept": CALLS_KEPT}
_PAGE = _templates.get_template("page.html")
_PARTS = _templates.get_template("sections.html").module


def _inline(name: str) -> tuple[Markup, str]:
    """A style or script of ours, and how the policy names it."""
    assert _templates.loader is not None
    text = _templates.loader.get_source(_templates, name)[0]
    return Markup(text), f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


_STYLE, _STYLE_HASH = _inline("page.css")
_SCRIPT, _SCRIPT_HASH = _inline("page.js")

CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src {_STYLE_HASH}; script-src {_SCRIPT_HASH}; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Nothing from elsewhere; inline only our own style and script."""


def page(view: View) -> str:
    """The whole page. Without JavaScript it reloads every ten seconds."""
    shown = update(view)
    headline = shown["sections"].pop("headline")
    return _PAGE.render(view=view, style=_STYLE, script=_SCRIPT, headline=headline, **shown)


def update(view: View) -> dict[str, Any]:
    """The same as plain JSON types; an open page replaces only the parts that changed."""
    return {
        "mode": view.mode,
        "title": f"{view.headline.title} · checkpoints",  # the tab shows the state first
        "icon": icon(view.mode),
        "sections": sections(view),
    }


def sections(view: View) -> dict[str, Markup]:
    """The inner HTML of every part of the page, by its id; empty where a part has nothing to say."""
    return {name: Markup(getattr(_PARTS, name)(view).strip()) for name in _SECTIONS}


def icon(mode: Mode) -> str:
    """A dot in the colour of the state, as the icon of the tab."""
    drawing = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'>"
        f"<circle cx='8' cy='8' r='7' fill='{_COLOURS.get(mode, _OTHER_COLOUR)}'/></svg>"
    )
    return "data:image/svg+xml," + quote(drawing, safe="")
