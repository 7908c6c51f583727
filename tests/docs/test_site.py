"""The site: every page is in it, its links lead somewhere there, and it asks no other place for anything."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from docs.building import pages
from docs.building.writing import DOCS, ROOT

EXTERNAL = re.compile(r"(?:\]\(|<|href=\"|src=\")(https?://[^)>\"\s]+)")
DOCUMENTS = [*DOCS.glob("*.md"), *(ROOT / source for source in pages.SOURCES.values())]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[str]]]:
    """The site as it is built, and what there was to complain of."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    folder, listener = tmp_path_factory.mktemp("site"), Listener(logging.WARNING)
    logging.getLogger("mkdocs").addHandler(listener)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
        yield folder, told
    finally:
        logging.getLogger("mkdocs").removeHandler(listener)


def test_every_link_and_anchor_leads_somewhere(site: tuple[Path, list[str]]) -> None:
    _, told = site
    assert told == []


def test_every_document_is_a_page_and_every_linked_file_is_there(site: tuple[Path, list[str]]) -> None:
    folder, _ = site
    for page in {path.name for path in DOCS.glob("*.md")} | pages.SOURCES.keys():
        assert (folder / page).with_suffix(".html").is_file(), page
        for name in pages.linked_files(page):
            assert (folder / pages.place_of(name)).read_bytes() == (ROOT / name).read_bytes()
    assert not list(folder.rglob("*.pyc"))
    assert not (folder / "building").exists()


def test_pages_load_nothing_over_the_network(site: tuple[Path, list[str]]) -> None:
    folder, _ = site
    for page in folder.rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|link)[^>]+?(?:src|href)=\"?(https?:[^\"\s>]+)", page.read_text(encoding="utf-8")
        )
        assert loaded == [], page.name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_page_has_no_conflict_marker_of_a_merge(document: Path) -> None:
    assert re.findall(r"^(?:<{7}|>{7}) .*", document.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_other_places_have_the_shape_of_one(document: Path) -> None:
    for url in EXTERNAL.findall(document.read_text(encoding="utf-8")):
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.scheme == "https" or parts.hostname == "localhost", url
        assert " " not in url


def test_links_of_the_site_are_those_of_the_repository_moved() -> None:
    text = (
        "[a](docs/guide.md#install) [b](LICENSE) [c](deploy/README.md) [d](https://x.example/y.md) [e](deploy/grafana/)"
    )
    assert pages.site_text(text, "index.md") == (
        "[a](guide.md#install) [b](files/LICENSE) [c](deploying.md) [d](https://x.example/y.md) e"
    )
    assert pages.site_text("[a](../README.md) [b](images/x.svg) [c](../.env.example)", "guide.md") == (
        "[a](index.md) [b](images/x.svg) [c](files/env.example)"
    )


def test_tools_of_the_site_are_a_group_of_their_own() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)
    assert any(name.startswith("mkdocs-material") for name in project["dependency-groups"]["docs"])
    assert not any("mkdocs" in name for name in project["project"]["dependencies"])
