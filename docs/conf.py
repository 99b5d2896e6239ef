"""How the documentation is built: `python -m sphinx -W --keep-going docs docs/_build`.

The docstrings are reStructuredText with Google's sections, as JAX's and optax's are, so Sphinx
reads them as they stand. Formulas become MathML when the pages are built, and notebooks are shown
with the outputs they were committed with. Nothing on a page needs a network.
"""

import base64
import json
import os
import re
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes

import jaxent

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import formulas  # noqa: E402 -- lies beside this file
import reference  # noqa: E402

project = "jaxent"
author = "the jaxent authors"
version = release = jaxent.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build", "_*.ipynb"]
nitpicky = True
suppress_warnings = ["toc.empty_glob"]  # where the notebooks are not shipped

html_theme = "furo"
html_title = "jaxent"
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False
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
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_enable_extensions = ["attrs_block", "attrs_inline", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
add_function_parentheses = False


def _bring_notebooks(_app: Any, _config: Any) -> None:
    """Copies the notebooks, and the first picture of each, below docs/, where git ignores them."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    wanted = {}
    for source in (HERE.parent / "notebooks").glob("*.ipynb"):
        # Links that are right in the repository lead out of the folder of the pages.
        wanted[source.name] = source.read_bytes().replace(b"](../docs/", b"](../")
        for picture in _pictures(source):
            wanted[f"{source.stem}.png"] = picture
            break
    for name, content in wanted.items():
        if not (target / name).exists() or (target / name).read_bytes() != content:
            # In one go, since the pages may be built several times at once.
            draft = HERE / f"_{os.getpid()}_{name}"
            draft.write_bytes(content)
            draft.replace(target / name)
    for page in target.iterdir():
        if page.name not in wanted:
            page.unlink(missing_ok=True)


def _pictures(notebook: Path) -> Iterator[bytes]:
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", ()):
                picture = base64.b64decode(output["data"]["image/png"])
                width, height = struct.unpack(">II", picture[16:24])
                if height > width / 3:  # a narrow strip would be lost on a card
                    yield picture


def _complete(_app: Any, docname: str, source: list[str]) -> None:
    """Writes what would rot by hand: tables and lists of functions, and of notebooks.

    Links to notebooks, which are right in the repository, are led to their copies.
    """
    source[0] = source[0].replace("](../notebooks/", "](notebooks/")
    names = reference.functions(source[0])
    source[0] = reference.expanded(source[0])
    if docname.startswith("api/") and names:
        table = ".. autosummary::\n   :nosignatures:\n\n" + "".join(f"   {n}\n" for n in names)
        module = ".. currentmodule:: jaxent\n"
        source[0] = source[0].replace(module, f"{module}\n{table}\n", 1)
    if docname == "api/index":
        toctree = re.search(r"```\{toctree\}\n(.*?)```", source[0], re.DOTALL)
        assert toctree is not None
        pages = [line for line in toctree[1].split() if not line.startswith(":")]
        source[0] += "\n{.cards .wide}\n" + "\n".join(map(_family_card, pages))
    if docname == "index":
        cards = "\n".join(map(_notebook_card, sorted((HERE / "notebooks").glob("*.ipynb"))))
        source[0] = source[0].replace("<!-- notebooks -->", f"{{.cards .pictured .wide}}\n{cards}")


def _family_card(page: str) -> str:
    text = (HERE / "api" / f"{page}.rst").read_text("utf-8")
    title, _, _, introduction, *_ = text.splitlines()
    names = " ".join(f"{{func}}`~jaxent.{name}`" for name in reference.functions(text))
    return f"- **[{title}]({page})**\n\n  {introduction}\n\n  {names}\n"


def _notebook_card(notebook: Path) -> str:
    heading = "".join(json.loads(notebook.read_text("utf-8"))["cells"][0]["source"])
    title = heading.splitlines()[0].removeprefix("# ")
    picture = f"![](notebooks/{notebook.stem}.png)\n\n  "
    has_picture = notebook.with_suffix(".png").exists()
    return f"- {picture if has_picture else ''}[**{title}**](notebooks/{notebook.name})\n"


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
    app.connect("source-read", _complete)
