"""Run the notebooks' sources and write them, with their outputs, as .ipynb: `python notebooks/render.py [04 ...]`."""

import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent

for source in sorted(HERE.glob("[0-9]*.py")):
    if sys.argv[1:] and not source.name.startswith(tuple(sys.argv[1:])):
        continue
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day of one run
        shown = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]  # libraries' import warnings
        if cell.cell_type == "code":
            cell.outputs = shown
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    print(source.stem)
