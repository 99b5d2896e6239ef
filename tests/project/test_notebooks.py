"""The committed notebooks are what they print and draw when somebody runs them."""

import base64
import copy
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 180  # half a minute on idle cores, and a test has to share them
LARGEST = 500_000  # bytes
NEEDED = ("ipykernel", "nbclient", "nbformat", "sklearn")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
# A figure that somebody computed: a decimal or a power of ten, but not the number of a version.
FIGURE = re.compile(r"(?<![\w.$])\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.])")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$\n]+\$", re.DOTALL)
PATH = re.compile(
    r"(?<![\w:/])/(?:home|root|tmp|usr|opt|work|var|Users|private)/|[A-Z]:\\|0x[0-9a-f]{6,}"
)
TOLERANCE = 2e-3  # relative, or one unit of the last printed digit


def load(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def text(field: str | list[str]) -> str:
    return field if isinstance(field, str) else "".join(field)


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def pictures(cell: dict) -> list[bytes]:
    data = [output.get("data", {}).get("image/png") for output in cell["outputs"]]
    return [base64.b64decode(text(image)) for image in data if image]


def said(cell: dict) -> list[tuple[str, str]]:
    """What a cell printed, returned or drew, in order: the kind, and the text if it is one."""
    found = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            found.append((output["name"], text(output["text"])))
        for kind, content in sorted(output.get("data", {}).items()):
            found.append((kind, text(content) if kind.startswith("text/") else ""))
    return found


def printed(notebook: dict) -> str:
    return "\n".join(words for cell in code_cells(notebook) for _, words in said(cell))


# What is wrong with a notebook as it lies there.


def problems(notebook: dict, size: int = 0) -> list[str]:
    """In words; none if all is well."""
    cells, code = notebook["cells"], code_cells(notebook)
    names = [cell.get("id", "") for cell in cells]
    found = [f"{size} bytes"] * (size > LARGEST)
    if (notebook["nbformat"], notebook["nbformat_minor"]) != (4, 5):
        found.append("not of format 4.5")
    if sorted(notebook["metadata"]) != ["kernelspec", "language_info"]:
        found.append("metadata of the notebook")
    elif notebook["metadata"]["kernelspec"]["name"] != "python3":
        found.append("not for the kernel python3")
    elif notebook["metadata"]["language_info"] != {"name": "python"}:
        found.append("the version of somebody's Python")
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[a-z][a-z0-9-]+", n) for n in names):
        found.append("ids of cells: one word each, all different")
    if not text(cells[0]["source"]).startswith("# "):
        found.append("no title")
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("not run from top to bottom")
    for cell in cells:
        if set(cell["metadata"]) - {"tags", "mystnb"}:
            found.append(f"metadata of {cell['id']}")
        if not text(cell["source"]).strip():
            found.append(f"{cell['id']} is empty")
    for cell in code:
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            found.append(f"{cell['id']} failed")
        if any(kind == "stderr" for kind, _ in said(cell)):
            found.append(f"{cell['id']} writes to stderr")
        found += [
            f"{cell['id']}: picture {fault}" for image in pictures(cell) for fault in faults(image)
        ]
    if not any(map(pictures, code)):
        found.append("no picture")
    if path := PATH.search(printed(notebook)):
        found.append(f"a path or an address of this machine: {path.group()}")
    return found + [f"{figure} comes from nowhere" for figure in unsourced(notebook)]


def faults(image: bytes) -> list[str]:
    pixels = matplotlib.image.imread(io.BytesIO(image), format="png")
    found = ["of one colour only"] * bool(np.all(pixels == pixels[0, 0]))
    found += ["without a white ground"] * bool(np.any(pixels[0, 0] != 1.0))
    return found + ["wider than a page"] * (pixels.shape[1] > 1200)


def unsourced(notebook: dict) -> list[str]:
    """Figures in the prose that stand neither in the code nor in what it printed."""
    code = [text(cell["source"]) for cell in code_cells(notebook)]
    known = set(NUMBER.findall("\n".join([*code, printed(notebook)]).replace("-", " ")))
    known |= set(NUMBER.findall("\n".join([*code, printed(notebook)])))
    prose = [text(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    figures = FIGURE.findall(FORMULA.sub("", "\n".join(prose)))
    return [figure for figure in figures if figure not in known]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_complete_and_clean(path):
    assert not problems(load(path), path.stat().st_size)


# Whether its outputs are those of its code.


def differences(old: dict, new: dict) -> list[str]:
    """Cells whose committed outputs are not what a fresh run gives."""
    pairs = zip(code_cells(old), code_cells(new), strict=True)
    return [f"{a['id']}: {why}" for a, b in pairs if (why := difference(a, b))]


def difference(old: dict, new: dict) -> str:
    before, after = said(old), said(new)
    if [kind for kind, _ in before] != [kind for kind, _ in after]:
        return f"{before} became {after}"
    if "timing" in old["metadata"].get("tags", ()):
        return ""
    for (_, left), (_, right) in zip(before, after, strict=True):
        if not same(left, right):
            return f"{left!r} became {right!r}"
    return ""


def same(left: str, right: str) -> bool:
    """Word for word, and number for number up to rounding."""
    if words(left) != words(right):
        return False
    return all(map(near, NUMBER.findall(left), NUMBER.findall(right)))


def words(printed: str) -> list[str]:
    return NUMBER.sub(" # ", printed).split()


def near(left: str, right: str) -> bool:
    a, b = float(left), float(right)
    return abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), 1.001 * min(unit(left), unit(right)))


def unit(number: str) -> float:
    """What one step of the last printed digit is worth; nothing if it counts."""
    if number.lstrip("+-").isdigit():
        return 0.0
    mantissa, _, exponent = number.lower().partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


@pytest.mark.skipif(bool(MISSING), reason=f"the notebooks extra is not installed: {MISSING}")
@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_prints_what_it_shows(path, tmp_path):
    # In a process of its own: what the kernel's sockets leave behind is nobody's warning here.
    command = [sys.executable, str(FOLDER / "run.py"), path.stem, "--into", str(tmp_path)]
    command += ["--seconds", str(SECONDS)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=3 * SECONDS, check=False)
    assert run.returncode == 0, run.stderr
    fresh = load(tmp_path / path.name)
    assert not problems(fresh)
    assert not differences(load(path), fresh)


# The checks refuse what they are there for.


def cell(kind: str, name: str, source: str, *outputs: dict) -> dict:
    made = {"cell_type": kind, "id": name, "metadata": {}, "source": source}
    return made | ({"execution_count": 1, "outputs": list(outputs)} if kind == "code" else {})


def stream(content: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": content}


def picture(colour: float = 0.0, ground: float = 1.0) -> dict:
    pixels = np.full((4, 4), ground)
    pixels[1:3, 1:3] = colour
    file = io.BytesIO()
    matplotlib.image.imsave(file, pixels, cmap="gray", vmin=0.0, vmax=1.0, format="png")
    data = {"image/png": base64.b64encode(file.getvalue()).decode()}
    return {"output_type": "display_data", "data": data, "metadata": {}}


@pytest.fixture
def good() -> dict:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": [
            cell("markdown", "title", "# A title\nThe loss is 0.25 nats, of $0.5^2$."),
            cell("code", "loss", "print(loss)", stream("loss 0.25 of 3\n"), picture()),
        ],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def test_a_good_notebook_has_no_problems(good):
    assert not problems(good, 1000)
    assert not differences(good, copy.deepcopy(good))


def doctored(notebook: dict, fault: str) -> dict:
    title, code = notebook["cells"]
    if fault == "format":
        notebook["nbformat_minor"] = 4
    elif fault == "version":
        notebook["metadata"]["language_info"]["version"] = "3.11.1"
    elif fault == "ids":
        code["id"] = "7f3a0c"
        title["id"] = "7f3a0c"
    elif fault == "title":
        title["source"] = "Some words"
    elif fault == "order":
        code["execution_count"] = 2
    elif fault == "never run":
        code["execution_count"], code["outputs"] = None, []
    elif fault == "time":
        code["metadata"] = {"execution": {"iopub.execute_input": "now"}}
    elif fault == "failed":
        code["outputs"].append(
            {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
        )
    elif fault == "stderr":
        code["outputs"].append(stream("a warning", "stderr"))
    elif fault == "path":
        code["outputs"][0]["text"] += "saved in /home/somebody/picture.png"
    elif fault == "address":
        code["outputs"][0]["text"] += "<object at 0x7f12345678>"
    elif fault == "no picture":
        code["outputs"].pop()
    elif fault == "blank picture":
        code["outputs"][-1] = picture(1.0, 1.0)
    elif fault == "dark ground":
        code["outputs"][-1] = picture(1.0, 0.0)
    elif fault == "figure":
        title["source"] += "\nIt was 0.26 yesterday."
    return notebook


@pytest.mark.parametrize(
    "fault",
    [
        *("format", "version", "ids", "title", "order", "never run", "time", "failed", "stderr"),
        *("path", "address", "no picture", "blank picture", "dark ground", "figure"),
    ],
)
def test_a_doctored_notebook_is_refused(good, fault):
    assert problems(doctored(good, fault))


def test_a_notebook_that_is_too_large_is_refused(good):
    assert problems(good, LARGEST + 1)


@pytest.mark.parametrize(
    "stale",
    ["loss 0.35 of 3\n", "loss 0.25 of 4\n", "gain 0.25 of 3\n", "loss 0.25\n", "loss nan of 3"],
)
def test_stale_text_is_noticed(good, stale):
    old = copy.deepcopy(good)
    old["cells"][1]["outputs"][0]["text"] = stale
    assert differences(old, good)
    old["cells"][1]["metadata"]["tags"] = ["timing"]
    assert not differences(old, good)


def test_a_picture_that_came_or_went_is_noticed_even_among_timings(good):
    old = copy.deepcopy(good)
    old["cells"][1]["outputs"].pop()
    assert differences(old, good)
    good["cells"][1]["metadata"]["tags"] = old["cells"][1]["metadata"]["tags"] = ["timing"]
    assert differences(old, good)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("0.6931", "0.6932", True),
        ("0.6931", "0.6951", False),
        ("4.12e-09", "4.13e-09", True),
        ("4.12e-09", "4.22e-09", False),
        ("4.12e-09", "0", False),
        ("1e-05", "9.99e-06", True),
        ("-1.0", "1.0", False),
        ("172", "173", False),
        ("17200", "17201", True),
        ("0", "1", False),
        ("0.0", "-0.0", True),
    ],
)
def test_numbers_are_compared_to_the_last_digit_but_one(left, right, expected):
    assert near(left, right) is near(right, left) is expected
