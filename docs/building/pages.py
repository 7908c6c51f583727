"""A hook of MkDocs: pages that stand elsewhere in the repository, and links that work there and on the site.

Documents link to each other, and to files, as they lie in the repository. On the site a page is where `SOURCES` says,
and a file that is no page is copied to `files/`, so that the site needs no other place.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

SOURCES = {
    "index.md": "README.md",
    "deploying.md": "deploy/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
}
"""Pages of the site that do not stand in docs/."""

PAGES = {source: page for page, source in SOURCES.items()}
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
"""A link, or picture, to a place in the repository: it has no scheme, and so no colon."""
FOLDER_LINK = re.compile(r"\[(?P<text>[^]]+)\]\((?P<target>[^)\s#:]+/)\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere, and the files that any page links to."""
    for page, source in SOURCES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    linked = {name for page in files.documentation_pages() for name in linked_files(page.src_uri)}
    for name in sorted(linked):
        files.append(File.generated(config, place_of(name), content=(ROOT / name).read_bytes()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let the links of a page lead to where things are on the site."""
    return site_text(markdown, page.file.src_uri)


def site_text(markdown: str, page: str) -> str:
    """The text of a page with the links of the site; a link to a folder becomes plain text."""
    source = source_of(page)

    def moved(link: re.Match[str]) -> str:
        there = place_of(resolved(source, link["target"]))
        target = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{link['before']}{target}{link['anchor'] or ''})"

    return LINK.sub(moved, FOLDER_LINK.sub(r"\g<text>", markdown))


def linked_files(page: str) -> set[str]:
    """The files of the repository that a page links to, and that are not of the site by themselves."""
    source = source_of(page)
    text = FOLDER_LINK.sub("", (ROOT / source).read_text(encoding="utf-8"))
    names = {resolved(source, link["target"]) for link in LINK.finditer(text)}
    return {name for name in names if place_of(name).startswith("files/") and (ROOT / name).is_file()}


def source_of(page: str) -> str:
    """Where in the repository the text of a page stands."""
    return SOURCES.get(page, f"docs/{page}")


def resolved(source: str, target: str) -> str:
    """The path in the repository to which a link in `source` leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def place_of(name: str) -> str:
    """Where on the site a file of the repository is."""
    if name in PAGES:
        return PAGES[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    folder, file = posixpath.split(name)
    return posixpath.join("files", folder, file.removeprefix("."))
