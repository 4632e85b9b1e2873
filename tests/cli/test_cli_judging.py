"""`pyro-mm certify | compare | diagnose`."""

import json
import re

from pyro_mm.cli import main
from pyro_mm.runs import open_run
from tests.helpers.cli import TINY, complaint


def test_certify_prints_and_writes_both_ends(run, capsys):
    assert main(["certify", str(run), "--rows", "8", "-k", "50", "--temperatures", "3", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    table, found = said.splitlines(), json.loads((run / "certificates.json").read_text())
    assert [(c["quantity"], c["method"]) for c in found["certificates"]][:3] == [
        ("log p(image, label)", "sandwich"),
        ("log p(image, label)", "BDMC"),
        ("log p(image)", "sandwich"),
    ]
    for c in found["certificates"]:
        line = next(row for row in table if row.startswith(f"{c['quantity']}  {c['method']}"))
        assert f"{c['lower']:.3f}" in line and f"{c['upper']:.3f}" in line
    assert "What it does not say" in said and "What it says" in said
    assert max(map(len, table[:-1])) <= 120
    assert (run / "figures" / "certificates.png").is_file()
    assert main(["certify", str(run), "--rows", "4", "-k", "9", "--temperatures", "0", "--no-refine", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert {c["method"] for c in json.loads((run / "certificates.json").read_text())["certificates"]} == {"sandwich"}


def test_compare_prints_paired_differences(run, trained, tmp_path, capsys):
    other = tmp_path / "longer"
    assert main(["train", "mvae", "--out", str(other), *TINY, "--epochs", "4"]) == 0
    assert main(["compare", str(run), str(other), "--rows", "40", "-k", "50", "--no-refine"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^longer +-\d+\.\d+", said, re.MULTILINE) and "40 rows" in said
    assert said.index("longer") < said.index("run "), "the best comes first"
    assert "at least two runs" in complaint(capsys, "compare", run)


def test_diagnose_prints_what_the_functions_find(run, capsys):
    from pyro_mm import evaluation

    assert main(["diagnose", str(run), "--rows", "40", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    opened = open_run(run)
    pair, test = (opened.recipe.model, opened.recipe.guide), opened.splits.test[:40]
    for found in (
        evaluation.report(*pair, test, seed=0),
        evaluation.sbc(*pair, test, seed=0),
        evaluation.symmetric_divergence(*pair, test, seed=0),
    ):
        assert repr(found) in said
    assert {"report.png", "calibration.png"} <= {p.name for p in (run / "figures").iterdir()}
