"""Run the notebooks' sources and write them, with their outputs, as .ipynb: `python notebooks/render.py [04 ...]`."""

import base64
import io
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def plain(png: str) -> str:
    """The picture without the text that the program wrote into it, base64 as before."""
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


for source in sorted(HERE.glob("[0-9]*.py")):
    if sys.argv[1:] and not source.name.startswith(tuple(sys.argv[1:])):
        continue
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # not random ones, which would change with every rendering
        cell.metadata.pop("execution", None)  # the times of day of one run
        shown = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]  # libraries' import warnings
        if cell.cell_type == "code":
            cell.outputs = shown
        for data in (o["data"] for o in shown if "image/png" in o.get("data", {})):
            data["image/png"] = plain(data["image/png"])
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(source.stem)
