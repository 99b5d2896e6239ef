"""The documentation builds without a warning, runs offline, and leaves out no public name."""

import importlib.util
import re
import subprocess
import sys
import types
import zlib
from collections.abc import Iterable
from pathlib import Path

import pytest

from project.documents import blocks, examples, printed
from public import FUNCTIONS, OTHER_NAMES_OF_OPTAX

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
FAMILIES = sorted((ROOT / "docs" / "api").glob("*.rst"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
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


def beside_pages(name: str) -> types.ModuleType:
    """A module that lies with the pages and is no part of any package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


formulas, reference = beside_pages("formulas"), beside_pages("reference")


def undocumented(pages: Path, public: Iterable[str]) -> set[str]:
    """Public names without a page of their own among the listed pages."""
    listed = [
        name for page in pages.glob("*.rst") for name in reference.functions(page.read_text())
    ]
    assert len(set(listed)) == len(listed), "a name is documented twice"
    return set(public) ^ set(listed)


def test_every_public_name_has_its_place_in_the_reference():
    assert not undocumented(ROOT / "docs" / "api", FUNCTIONS)


def test_a_name_left_out_is_noticed():
    assert undocumented(ROOT / "docs" / "api", [*FUNCTIONS, "new_loss"]) == {"new_loss"}


def test_every_public_name_is_in_the_index_of_the_built_site(site):
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    entries = zlib.decompress(inventory).decode().splitlines()
    found = {entry.split()[0] for entry in entries if " py:function " in entry}
    assert found == {f"jaxent.{name}" for name in FUNCTIONS}


@pytest.mark.parametrize("source", FAMILIES, ids=lambda source: source.stem)
def test_a_page_of_the_reference_opens_with_what_it_is_and_a_table(site, source):
    text = source.read_text("utf-8")
    assert text.split("\n\n")[1].endswith(".")
    table = (site / "api" / f"{source.stem}.html").read_text("utf-8").partition("</table>")[0]
    assert all(f'href="#jaxent.{name}"' in table for name in reference.functions(text))


def test_every_notebook_is_shown_with_its_outputs(site):
    assert {page.stem for page in (site / "notebooks").glob("*.html")} == {
        notebook.stem for notebook in NOTEBOOKS
    }
    for page in (site / "notebooks").glob("*.html"):
        assert "cell_output" in page.read_text("utf-8")


def from_outside(page: str) -> list[str]:
    """What a page makes a browser load from elsewhere. Links for the reader to follow are not."""
    tags = re.findall(r"<(?:script|link|img|iframe|source|object|embed|video)\b[^>]*>", page)
    addresses = [found for tag in tags for found in re.findall(r'="([^"]*)"', tag)]
    addresses += re.findall(r"url\(([^)]*)\)|@import ([^;]*)", page)
    addresses = ["".join(address).strip("\"' ") for address in addresses]
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    return [address for address in addresses if re.match(r"(https?:)?//", address)] + [
        script for script in scripts if "//" in script
    ]


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img alt="" src="http://example/x.png">',
        '@font-face { src: url("https://fonts.example/x.woff2") }',
        "@import 'https://example/x.css';",
        "<script>import('https://cdn.example/x.js')</script>",
    ],
)
def test_what_comes_from_outside_is_noticed(page):
    assert from_outside(page)


def test_nothing_on_a_page_comes_from_a_network(site):
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 20
    outside = {page.name: from_outside(page.read_text("utf-8")) for page in pages}
    assert {page: found for page, found in outside.items() if found} == {}


def test_formulas_are_markup_and_no_command_of_theirs_is_left_over(site):
    written = [
        formula
        for page in site.rglob("*.html")
        for formula in re.findall(r"<math.*?</math>", page.read_text("utf-8"), re.DOTALL)
    ]
    assert len(written) > 200
    assert [formula for formula in written if "\\" in formula] == []


def test_a_formula_breaks_at_wide_spaces_of_its_own():
    cases = r"\begin{cases} 0 & x < 0 \qquad \\ 1 \end{cases}"
    assert formulas.parts(rf"a = b, \qquad {cases} \qquad c_{{x \qquad y}}") == [
        "a = b",
        cases,
        r"c_{x \qquad y}",
    ]


def test_a_formula_is_set_as_a_mathematician_would():
    minus_log = formulas.mathml(r"-\log p", "inline")
    assert re.search(r'<mo form="prefix"[^>]*>−</mo><mo lspace="0" rspace="0.167em">log', minus_log)
    assert "<munder><mo" in formulas.mathml(r"\max_j x_j", "block")
    assert "<msub><mo" in formulas.mathml(r"\max_j x_j", "inline")
    assert "bits\xa0per\xa0byte</mtext>" in formulas.mathml(
        r"\operatorname{bits\ per\ byte}", "block"
    )
    assert "<msup><mrow><mo" in formulas.mathml(r"\Big( a \Big)^2", "block")


def test_every_public_name_is_on_the_decision_page():
    page = (ROOT / "docs" / "choosing.md").read_text("utf-8")
    named = set(re.findall(r"\{func\}`~jaxent\.(\w+)`", page))
    assert named == set(FUNCTIONS) - OTHER_NAMES_OF_OPTAX


def test_the_changelog_names_every_public_name():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    # Those of classes may be told as the multiclass forms of those of yes and no.
    either = {name: (name, name.removeprefix("multiclass_")) for name in FUNCTIONS}
    assert {
        name for name, any_of in either.items() if not any(f"`{n}`" in changelog for n in any_of)
    } == set()


def test_every_python_block_shows_what_it_prints():
    given = [block for page in PAGES for block in blocks(page) if block[1] == "python"]
    assert len(EXAMPLES) == len(given) > 0


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_python_block_prints_what_the_page_says(example):
    assert printed(example) == example.expected


def test_the_migration_page_names_what_exists():
    page = (ROOT / "docs" / "migration.md").read_text("utf-8")
    rows = [row.split("|") for row in page.partition("## From torch")[2].splitlines() if row]
    cells = [row[2] for row in rows if len(row) > 3 and "`" in row[2]]
    # What is called or stands alone, and is no attribute of something else.
    names = {name for cell in cells for name in re.findall(r"(?<![\w.])([a-z]\w+)(?=[(`])", cell)}
    assert len(names) > 40
    assert names <= set(FUNCTIONS)
