"""Formulas as MathML, which browsers set by themselves, without a script or a network.

latex2mathml does the translation. What it leaves to be desired is mended here: the spaces around
named functions, bars and signs, limits below the name of an operator, and braces of a given size.
"""

import re
from xml.etree import ElementTree

from latex2mathml import converter

_NAMESPACE = "http://www.w3.org/1998/Math/MathML"
_THIN = "0.167em"
_OPENING = set("([{⟨")
_NONE_AFTER = set("([{⟨)]},;/∑∏")
_LOOSE = set("=<>≤≥≠∈,;:+×·∝") | _OPENING
_SPACELESS = "|", "/"


def parts(formula: str) -> list[str]:
    r"""A displayed formula cut at its wide spaces, \qquad, where a narrow page may break it."""
    kept = [""]
    for piece in re.split(r"\s*\\qquad\s*", formula.strip()):
        # Not between the ends of an environment, nor inside braces.
        whole = kept[-1].count(r"\begin") == kept[-1].count(r"\end")
        whole &= len(re.findall(r"(?<!\\)\{", kept[-1])) == len(re.findall(r"(?<!\\)\}", kept[-1]))
        if kept[-1] and whole:
            kept.append(piece)
        else:
            kept[-1] += rf" \qquad {piece}" if kept[-1] else piece
    return [piece.rstrip(",") for piece in kept]


def mathml(formula: str, display: str) -> str:
    """The markup of one formula, displayed as a "block" or "inline"."""
    # Words with spaces between them are text, which the translator would set as a product.
    spaced = r"\\operatorname\{([^{}]*\\ [^{}]*)\}"
    formula = re.sub(spaced, lambda name: rf"\text{{{name[1].replace(chr(92), '')}}}", formula)
    tree = ElementTree.fromstring(converter.convert(formula, display=display))
    for element in list(tree.iter()):
        _group(element)
    for element in tree.iter():
        _mend(element, display)
    ElementTree.register_namespace("", _NAMESPACE)
    return ElementTree.tostring(tree, encoding="unicode")


def _group(row: ElementTree.Element) -> None:
    """Puts all between sized parentheses below their exponent: alone, the last would not grow."""
    for power in [
        child for child in row if _kind(child) == "msup" and "minsize" in child[0].attrib
    ]:
        end = list(row).index(power)
        sized = [at for at in range(end) if "minsize" in row[at].attrib and row[at].text == "("]
        if sized and power[0].text == ")":
            group = ElementTree.Element(f"{{{_NAMESPACE}}}mrow")
            group.extend([*row[sized[-1] : end], power[0]])
            del row[sized[-1] : end]
            power[0] = group


def _mend(row: ElementTree.Element, display: str) -> None:
    before: ElementTree.Element | None = None
    children = list(row)
    is_row = _kind(row) in ("math", "mrow", "mtd", "mstyle", "msqrt")
    for index, child in enumerate(children):
        after = children[index + 1] if index + 1 < len(children) else None
        base = child[0] if _kind(child) in ("msub", "msup", "msubsup") else child
        text = base.text or ""
        if "minsize" in base.attrib:
            base.set("stretchy", "true")
        if text in (r"\{", r"\}"):
            base.text = text[1]
        elif is_row and _is_name(base):
            base.tag = f"{{{_NAMESPACE}}}mo"
            tight = before is None or (_kind(before) == "mo" and before.text in _LOOSE | {"−"})
            base.set("lspace", "0" if tight or _kind(before) == "mspace" else _THIN)
            last = after is None or _first(after).text in _NONE_AFTER
            base.set("rspace", "0" if last else _THIN)
            if base is not child and display == "block" and text not in ("log", "sin", "cos"):
                child.tag = f"{{{_NAMESPACE}}}munder"
                base.set("movablelimits", "false")
        elif text in _SPACELESS:
            base.set("lspace", "0")
            base.set("rspace", "0")
        elif text == "−" and (before is None or before.text in _LOOSE):
            base.set("form", "prefix")
            base.set("lspace", "0")
            base.set("rspace", "0")
        before = child


def _first(element: ElementTree.Element) -> ElementTree.Element:
    """What an element, or the base of its scripts, begins with."""
    return _first(element[0]) if len(element) else element


def _kind(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _is_name(element: ElementTree.Element) -> bool:
    """Whether it is the name of a function, such as log or max."""
    text = element.text or ""
    return _kind(element) in ("mi", "mo") and len(text) > 1 and text.isascii() and text.isalpha()
