"""What gets installed: the wheel holds the package and its metadata, and nothing besides."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import jaxent

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    # Without isolation the build uses the hatchling installed here, so a test downloads nothing.
    command += ["--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_wheel_holds_the_package_and_its_metadata_only(wheel):
    metadata = f"jaxent-{jaxent.__version__}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"jaxent", metadata}
    packaged = {name for name in wheel.namelist() if name.startswith("jaxent/")}
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "jaxent").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packaged == sources
    assert "jaxent/py.typed" in packaged


def test_wheel_metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert [re.split(r"[<>=]", line)[0] for line in sorted(needed)] == ["chex", "jax", "optax"]
    extras = set(metadata.get_all("Provides-Extra", []))
    assert extras >= {"demo", "notebooks", "test", "benchmark"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_source_distribution_can_be_tested_and_holds_no_strays(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist"]
    subprocess.run([*command, "--directory", str(tmp_path)], check=True, cwd=ROOT)
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tops = {name.split("/")[0] for name in names}
    assert {"jaxent", "tests", "LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= tops
    assert tops <= {
        *("jaxent", "tests", "benchmarks", "docs", "notebooks"),
        *(
            "LICENSE",
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "pyproject.toml",
            "PKG-INFO",
            ".gitignore",
        ),
    }


def test_oldest_versions_can_be_read_off_the_dependencies():
    for requirement in PROJECT["dependencies"]:
        assert re.fullmatch(r"[a-z]+>=\d+(\.\d+)+", requirement)


def test_changelog_opens_with_this_version():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert next(h for h in headings if h != "Unreleased") == jaxent.__version__
