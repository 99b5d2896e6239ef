"""docs/architecture.md is true: its map has every file, and its order is that of the imports."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jaxent"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
MAP = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[0]


def wings(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each wing of a map, in its order, with the names of files that stand under it."""
    wing, names = "", set()
    for line in text.splitlines():
        if not line.startswith(" "):
            if wing:
                yield wing, names
            wing, names = line.split()[0], set()
        else:
            # What follows two spaces, or a colon, is said of the names before it.
            listed = re.split(r"\s{2,}|:", line.strip())[0]
            names |= set(re.split(r",\s*", listed))
    yield wing, names


def missing_from(text: str) -> set[str]:
    """The files of the package that a map lacks, and the names in it that are no files."""
    found = dict(wings(text))
    actual = {path.name for path in PACKAGE.glob("*.py") if not path.name.startswith("__")}
    actual |= {f"{path.name}/" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    wrong = set(found) ^ actual
    for wing, names in found.items():
        if not names:
            continue
        inside = {p.stem for p in (PACKAGE / wing).glob("*.py") if p.stem != "__init__"}
        inside |= {f"{p.name}/" for p in (PACKAGE / wing).iterdir() if (p / "__init__.py").exists()}
        wrong |= {f"{wing}{name}" for name in names ^ inside}
    return wrong


def test_the_map_has_every_file_and_no_other():
    assert missing_from(MAP) == set()


def test_a_file_left_out_is_noticed():
    assert missing_from(MAP.replace("sparsemax", "sparse")) == {
        "_kernels/sparse",
        "_kernels/sparsemax",
    }


def test_its_order_is_that_of_the_imports():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    (layers,) = (each["layers"] for each in settings["contracts"] if each["type"] == "layers")
    order = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    on_map = [wing.removesuffix("/").removesuffix(".py") for wing, _ in wings(MAP)]
    # The first two know nothing of each other, so that either may come first.
    assert set(on_map[:2]) == set(order[:2])
    assert [name for name in order[2:] if name != "__main__"] == on_map[2:]


def test_the_paths_it_names_exist():
    for path in re.findall(r"`((?:_\w+|tests|docs|columns)/[\w/.]*)`", PAGE):
        places = (ROOT / path, PACKAGE / path, PACKAGE / "_heads" / path)
        assert any(place.exists() for place in places), path
