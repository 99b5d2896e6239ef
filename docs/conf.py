"""How the documentation is built: `python -m sphinx -W --keep-going docs docs/_build`.

The docstrings are reStructuredText with Google's sections, as JAX's and optax's are, so Sphinx
reads them as they stand. Formulas become MathML when the pages are built, and notebooks are shown
with the outputs they were committed with. Nothing on a page needs a network.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from docutils import nodes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import formulas  # noqa: E402 -- lies beside this file

project = "jaxent"
author = "the jaxent authors"
_metadata = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))
version = release = _metadata["project"]["version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
nitpicky = True
suppress_warnings = ["toc.empty_glob"]  # where the notebooks are not shipped

html_theme = "furo"
html_title = "jaxent"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#b3470c",
        "color-brand-content": "#9a3d0a",
        "color-brand-visited": "#7a4a2b",
    },
    "dark_css_variables": {
        "color-brand-primary": "#ff9a57",
        "color-brand-content": "#ffab73",
        "color-brand-visited": "#d9a886",
    },
}

default_role = "code"
add_module_names = False
autodoc_typehints = "none"  # every docstring says more about its arguments than their types do
autosummary_generate = False
maximum_signature_line_length = 68
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

_FUNCTION = re.compile(r"^\.\. autofunction:: (\w+)$", re.MULTILINE)


def _bring_notebooks(_app: Any, _config: Any) -> None:
    """Copies the notebooks to where Sphinx looks for pages, below docs/ (git ignores them)."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    sources = {source.name: source for source in (HERE.parent / "notebooks").glob("*.ipynb")}
    for name, source in sources.items():
        page = target / name
        if not page.exists() or page.read_bytes() != source.read_bytes():
            page.write_bytes(source.read_bytes())
    for page in target.glob("*.ipynb"):
        if page.name not in sources:
            page.unlink()


def _add_summaries(app: Any, docname: str, source: list[str]) -> None:
    """Gives each page of the reference a table of its functions, and the first a list of all."""
    names = _FUNCTION.findall(source[0])
    if docname.startswith("api/") and names:
        table = ".. autosummary::\n   :nosignatures:\n\n" + "".join(f"   {n}\n" for n in names)
        module = ".. currentmodule:: jaxent\n"
        source[0] = source[0].replace(module, f"{module}\n{table}\n", 1)
    if docname == "api/index":
        toctree = re.search(r"```\{toctree\}\n(.*?)```", source[0], re.DOTALL)
        assert toctree is not None
        pages = [line for line in toctree[1].split() if not line.startswith(":")]
        source[0] += "\n{.cards}\n" + "\n".join(_card(Path(app.srcdir), page) for page in pages)


def _card(folder: Path, page: str) -> str:
    title, _, _, introduction, *_ = (folder / "api" / f"{page}.rst").read_text().splitlines()
    names = _FUNCTION.findall((folder / "api" / f"{page}.rst").read_text())
    listed = ", ".join(f"{{func}}`~jaxent.{name}`" for name in names)
    return f"- **[{title}]({page})**\n\n  {introduction}\n\n  {listed}\n"


def _visit_inline(translator: Any, node: nodes.Element) -> None:
    translator.body.append(formulas.mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _visit_block(translator: Any, node: nodes.Element) -> None:
    parts = (formulas.mathml(part, "block") for part in formulas.parts(node.astext()))
    spans = "".join(f"<span>{part}</span>" for part in parts)
    translator.body.append(f'<div class="math">{spans}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> None:
    """Registers the renderer of formulas and what happens before pages are read."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    app.connect("config-inited", _bring_notebooks)
    app.connect("source-read", _add_summaries)
