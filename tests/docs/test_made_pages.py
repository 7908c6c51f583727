"""What is made for the documents is up to date, and what they draw of the house is the house."""

from __future__ import annotations

import re
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest

from docs.building import architecture, configuration, deployment
from docs.building.writing import DOCS, ROOT
from enhanced_checkpointing.config import CheckpointerConfig, variable_of
from enhanced_checkpointing.settings import CheckpointerSettings

MADE = {
    "configuration": (configuration.PAGE, configuration.page),
    "architecture": (architecture.PICTURE, architecture.drawing),
    "deployment": (deployment.PICTURE, deployment.drawing),
}


@pytest.mark.parametrize("name", MADE)
def test_page_is_what_its_maker_makes_now(name: str) -> None:
    file, make = MADE[name]
    assert file.read_text(encoding="utf-8") == make(), f"run `python -m docs.building.{name} --write`"


def test_no_page_has_what_a_merge_left_in_it() -> None:
    pages = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
    assert [page.name for page in pages if re.search(r"^(<{7}|>{7}) ", page.read_text("utf-8"), re.MULTILINE)] == []


def test_page_of_the_configuration_has_every_setting_with_its_default_and_its_range() -> None:
    page = configuration.page()
    sections = dict(re.findall(r"^### `(\w+)`\n\n(.*?)(?=\n#|\Z)", page, flags=re.MULTILINE | re.DOTALL))
    assert set(sections) == {variable_of(name) for name in CheckpointerSettings.model_fields}
    for name, field in CheckpointerSettings.model_fields.items():
        section = sections[variable_of(name)]
        assert str(field.description) in section
        assert "- default: " in section
        limits = [getattr(each, side) for each in field.metadata for side in ("ge", "le") if hasattr(each, side)]
        assert all(f"`{limit}`" in section for limit in limits), name
    for name in set(CheckpointerConfig.model_fields) - set(CheckpointerSettings.model_fields):
        assert f"| `{name}` |" in page


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "s", "not set"),
        (True, "", "`true`"),
        (5.0, "s", "`5` s"),
        (0.01, "s", "`0.01` s"),
        (268435456, "bytes", "`268435456` bytes (256 MiB)"),
        (2**50, "bytes", "`1125899906842624` bytes (1024 TiB)"),
        (0, "bytes", "`0` bytes"),
        (4097, "bytes", "`4097` bytes"),
    ],
)
def test_value_is_shown_as_one_would_write_it(value: object, unit: str, expected: str) -> None:
    assert configuration.shown(value, unit) == expected


def test_house_of_the_architecture_is_the_one_that_the_imports_are_held_to() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    expected = [{part.strip().rpartition(".")[2] for part in layer.split("|")} for layer in layers]
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    _, _, house = page.partition("| Package |")
    rows = re.findall(r"^\| (`[^|]+) \|", house, flags=re.MULTILINE)
    assert [set(re.findall(r"`(\w+)(?:/|\.py)`", row)) for row in rows] == expected


@pytest.mark.parametrize("document", ["architecture.md", "troubleshooting.md", "guide.md"])
def test_every_module_that_a_page_names_exists(document: str) -> None:
    package = ROOT / "src" / "enhanced_checkpointing"
    for name in re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`", (DOCS / document).read_text(encoding="utf-8")):
        assert any((folder / name).exists() for folder in (package, ROOT)) or name == "app.py", name


@pytest.mark.parametrize("picture", sorted((DOCS / "images").glob("*.svg")), ids=lambda path: path.stem)
def test_picture_is_whole_and_asks_nobody_else_for_parts(picture: Path) -> None:
    drawn = ET.parse(picture).getroot()
    assert drawn.tag.endswith("}svg")
    assert not re.search(r"(?:href|src)=\"https?:", picture.read_text(encoding="utf-8"))


def test_picture_of_the_architecture_says_what_it_shows_to_those_who_cannot_see_it() -> None:
    drawn = ET.parse(architecture.PICTURE).getroot()
    title = drawn.find("{http://www.w3.org/2000/svg}title")
    assert title is not None
    assert all(word in str(title.text) for word in ("Healthy", "outage", "After it"))


@pytest.mark.parametrize("made", [architecture, deployment], ids=["architecture", "deployment"])
def test_words_of_a_picture_stay_inside_of_it(made: ModuleType) -> None:
    for words in ET.parse(made.PICTURE).getroot().iter("{http://www.w3.org/2000/svg}text"):
        width = len(words.text or "") * float(words.attrib["font-size"]) * 0.58
        x, anchor = float(words.attrib["x"]), words.attrib["text-anchor"]
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        assert left >= 0, words.text
        assert left + width <= made.WIDTH, words.text
