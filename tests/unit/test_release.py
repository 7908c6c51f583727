"""What is published is exactly what is meant to be, and what the checks run with is locked."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
VERSION = PROJECT["project"]["version"]
NAME = f"enhanced_checkpointing-{VERSION}"
DATA = {"py.typed", *(f"web/{name}" for name in ("page.css", "page.html", "page.js", "sections.html"))}
DOCUMENTS = {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "pyproject.toml"}
STRAYS = (
    *(
        "secret.key",
        ".env",
        "src/secret.key",
        "src/enhanced_checkpointing/secret.key",
        "src/enhanced_checkpointing/.env",
    ),
    *("src/enhanced_checkpointing/web/notes.txt", "src/enhanced_checkpointing/cli/dump.sqlite", "tests/id_rsa"),
    *("src/enhanced_checkpointing/web/page.css.bak", "src/enhanced_checkpointing/journal/0.journal"),
)
LOCKS = {path.stem: path for path in (ROOT / ".ci" / "locks").glob("*.txt")}


def sources() -> set[str]:
    """Every file of the package that is meant to be there, below its folder."""
    package = ROOT / "src" / "enhanced_checkpointing"
    return {path.relative_to(package).as_posix() for path in package.rglob("*.py")} | DATA


def built(target: str, tree: Path) -> Path:
    """A wheel or a source distribution, made by the build backend itself and without a network."""
    program = f"import hatchling.build as one; print(one.build_{target}({str(tree / 'dist')!r}))"
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tree, capture_output=True, text=True, timeout=100, check=True
    )
    return tree / "dist" / ran.stdout.split()[-1]


@pytest.mark.thorough
def test_wheel_and_source_distribution_have_exactly_these_files_whatever_lies_beside_them(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__"))
    for name in DOCUMENTS:
        shutil.copy(ROOT / name, tree / name)
    for name in STRAYS:
        stray = tree / name
        stray.parent.mkdir(parents=True, exist_ok=True)
        stray.write_text("-----BEGIN PRIVATE KEY-----")
    with zipfile.ZipFile(built("wheel", tree)) as wheel:
        names = set(wheel.namelist())
    told = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    assert names == {f"enhanced_checkpointing/{name}" for name in sources()} | told | {
        f"{NAME}.dist-info/licenses/LICENSE"
    }
    with tarfile.open(built("sdist", tree)) as archive:
        names = set(archive.getnames())
    packed = {f"src/enhanced_checkpointing/{name}" for name in sources()}
    assert names == {f"{NAME}/{name}" for name in packed | DOCUMENTS | {"PKG-INFO"}}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no clone: nothing tells which files belong to it")
def test_every_source_is_known_to_git() -> None:
    ran = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert {f"src/enhanced_checkpointing/{name}" for name in sources()} == set(ran.stdout.split())


@pytest.mark.parametrize("name", sorted(LOCKS))
def test_lock_names_versions_and_hashes_and_no_place_to_take_them_from(name: str) -> None:
    text = LOCKS[name].read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    for block in blocks:
        if not block.startswith("#"):
            assert re.match(r"[\w.-]+(\[[\w,]+\])?==\S+", block), block
            assert "--hash=sha256:" in block, block


@pytest.mark.parametrize("name", sorted({*LOCKS} - {"lint"}))
def test_lock_has_every_dependency_of_the_project_in_a_version_that_fits(name: str) -> None:
    text = LOCKS[name].read_text(encoding="utf-8")
    pinned: dict[str, set[str]] = {}
    for found in re.finditer(r"^([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", text, re.MULTILINE):
        pinned.setdefault(canonicalize_name(found[1]), set()).add(found[2])
    project = PROJECT["project"]
    extras = (one for extra in project["optional-dependencies"].values() for one in extra)
    for wanted in map(Requirement, [*project["dependencies"], *extras]):
        if wanted.name != project["name"]:
            versions = pinned.get(canonicalize_name(wanted.name), set())
            assert versions, f"{wanted} is not in the lock: run `nox -s lock`"
            assert all(map(wanted.specifier.contains, versions)), f"{wanted} is locked at {versions}: run `nox -s lock`"
