"""The documentation builds without a warning, runs, and leaves out no public name."""

import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from documents import blocks, examples, printed

import jaxent

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FUNCTION = re.compile(r"^\.\. autofunction:: (\w+)$", re.MULTILINE)
EXAMPLES = [example for page in PAGES for example in examples(page)]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built pages: a warning, such as a reference to nothing, fails the build."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d"]
    command += [str(target / "doctrees"), str(ROOT / "docs"), str(target / "html")]
    built = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert built.returncode == 0, built.stderr
    return target / "html"


def undocumented(pages: Path, public: list[str]) -> set[str]:
    """Public names without a page of their own among the listed pages."""
    listed = [name for page in pages.glob("*.rst") for name in FUNCTION.findall(page.read_text())]
    assert len(set(listed)) == len(listed), "a name is documented twice"
    return set(public) ^ set(listed)


def test_every_public_name_has_its_place_in_the_reference():
    assert not undocumented(ROOT / "docs" / "api", jaxent.__all__)


def test_a_name_left_out_is_noticed():
    assert undocumented(ROOT / "docs" / "api", [*jaxent.__all__, "new_loss"]) == {"new_loss"}


def test_every_public_name_is_in_the_index_of_the_built_site(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = zlib.decompress(inventory).decode().splitlines()
    found = {entry.split()[0] for entry in entries if " py:function " in entry}
    assert found == {f"jaxent.{name}" for name in jaxent.__all__}


def test_formulas_are_set_without_a_script(site):
    page = (site / "api" / "softmax.html").read_text("utf-8")
    assert page.count("<math ") > 5
    for page in site.rglob("*.html"):
        assert not re.search(r'<script[^>]+src="https?://', page.read_text("utf-8")), page.name


def test_every_python_block_shows_what_it_prints():
    given = [block for page in PAGES for block in blocks(page) if block[1] == "python"]
    assert len(EXAMPLES) == len(given) > 0


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_python_block_prints_what_the_page_says(example):
    assert printed(example) == example.expected


def test_the_migration_page_names_what_exists():
    page = (ROOT / "docs" / "migration.md").read_text("utf-8")
    rows = [row.split("|") for row in page.partition("## From torch")[2].splitlines() if row]
    second = [row[2] for row in rows if len(row) > 3 and "`" in row[2]]
    names = {re.sub(r"^[^a-z]*", "", cell.strip(" `")).partition("(")[0] for cell in second}
    assert len(names) > 20
    assert {name.split("`")[0] for name in names} <= set(jaxent.__all__)
