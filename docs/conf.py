"""How the documentation is built: `python -m sphinx -W --keep-going docs docs/_build`.

The docstrings are reStructuredText with Google's sections, as JAX's and optax's are, so Sphinx
reads them as they stand. Formulas become MathML when the pages are built: they need neither a
script nor a network to be seen.
"""

import tomllib
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes

project = "jaxent"
author = "the jaxent authors"
_metadata = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))
version = release = _metadata["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = "jaxent"
html_math_renderer = "mathml"
html_copy_source = False

default_role = "code"
add_module_names = False
autodoc_typehints = "none"  # every docstring says more about its arguments than their types do
napoleon_numpy_docstring = False
napoleon_use_rtype = False
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3


def _mathml(display: str) -> Any:
    """A visitor that writes a formula as MathML, which browsers set by themselves."""

    def visit(translator: Any, node: nodes.Element) -> None:
        markup = latex2mathml.converter.convert(node.astext(), display=display)
        block = display == "block"
        translator.body.append(f'<div class="math">{markup}</div>' if block else markup)
        raise nodes.SkipNode

    return visit


def setup(app: Any) -> None:
    """Registers the renderer of formulas."""
    app.add_html_math_renderer("mathml", (_mathml("inline"), None), (_mathml("block"), None))
