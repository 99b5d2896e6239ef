"""Run notebooks from a clean kernel and save them with nothing in them that changes by itself.

    python notebooks/run.py                        # all, in place
    python notebooks/run.py 01_cross_entropy       # only that one
    python notebooks/run.py --into fresh           # leave the committed ones alone

It needs the `notebooks` extra: `python -m pip install -e ".[notebooks]"`.
"""

import argparse
import base64
import importlib
import io
import json
import os
import re
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent
SECONDS = 60.0
# The reader's own settings must not leak in. The notebook that needs several devices asks for them.
FOREIGN = re.compile(r"(XLA_|JAX_|MPL|PYTHONWARNINGS|PYTEST_)")


def executed(path: Path, seconds: float = SECONDS) -> dict:
    """The notebook after a run from its first cell to its last, in `seconds` or not at all."""
    import nbclient
    import nbformat

    importlib.import_module("matplotlib.font_manager")  # the first import of all writes a message
    deadline = time.monotonic() + seconds
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        coalesce_streams=True,
    )
    client.execute(env=environment)
    nbformat.validate(notebook)
    return json.loads(nbformat.writes(notebook))


def cleaned(notebook: dict) -> dict:
    """The same without times, versions, and whatever else differs from machine to machine."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in notebook["cells"]:
        kept = {key: cell["metadata"][key] for key in ("tags", "mystnb") if key in cell["metadata"]}
        cell["metadata"] = kept
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output["metadata"] = {}
            if "image/png" in output.get("data", {}):
                output["data"] = {"image/png": _compact(output["data"]["image/png"])}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    return notebook


def _compact(encoded: str) -> str:
    """A PNG of 256 colours, a third of the size; the version of Matplotlib is gone from it too."""
    from PIL import Image

    picture, file = Image.open(io.BytesIO(base64.b64decode(encoded))), io.BytesIO()
    colours = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def write(notebook: dict, path: Path) -> None:
    """As sorted JSON, so that a change shows as a change of the lines that it concerns."""
    path.write_text(json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    known = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--into", type=Path, default=FOLDER, help="folder to write to")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="limit for each notebook")
    arguments = parser.parse_args()
    for name in (Path(name).stem for name in arguments.names or known):
        start = time.monotonic()
        notebook = executed(FOLDER / f"{name}.ipynb", arguments.seconds)
        write(cleaned(notebook), arguments.into / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
