"""`pyro-mm demo`."""

import json
import re
import shutil
import time

import pytest

from pyro_mm import files
from pyro_mm.cli import demo, main
from tests.helpers.cli import complaint, same


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(demo, "VARIANTS", ("mvae", "jmvae_kl"))
    monkeypatch.setattr(demo, "FIGURES", ("loss",))


def test_the_demo_prints_one_table_of_the_runs_numbers(tmp_path, capsys, run, few):
    out = tmp_path / "demo"
    shutil.copytree(run, out / "mvae")  # an earlier demo, which this one replaces
    files.write_json(out / demo.RECORD, {})
    assert main(["demo", "--epochs", "1", "-k", "10", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert not same(out / "mvae", run)
    assert max(map(len, said.splitlines()[:-1])) <= 100  # the last line is the folder
    assert re.search(r"^ +mvae +jmvae-kl$", said, re.MULTILINE)
    results = [json.loads((out / v / "results.json").read_text()) for v in ("mvae", "jmvae_kl")]
    for quantity in results[0]["likelihoods"]:
        row = re.search(rf"^{re.escape(quantity)} +(\S+) \+- (\S+) +(\S+) \+- (\S+)$", said, re.MULTILINE)
        assert row, quantity
        numbers = [f"{r['likelihoods'][quantity][s]:.2f}" for r in results for s in ("mean", "se")]
        assert list(row.groups()) == numbers
    row = re.search(r"^accuracy \(label \| image\) +(\S+) % +(\S+) %$", said, re.MULTILINE)
    assert row
    assert list(row.groups()) == [f"{100 * r['accuracy']['accuracy']['value']:.1f}" for r in results]
    assert (out / "table.txt").read_text() in said
    assert (out / "mvae" / "figures" / "loss.png").is_file()


def test_the_demo_does_not_replace_runs_of_yours(tmp_path, capsys, run, few):
    shutil.copytree(run, tmp_path / "mine" / "mvae")
    assert "holds runs that are not the demo's" in complaint(capsys, "demo", "--out", tmp_path / "mine")
    assert same(tmp_path / "mine" / "mvae", run)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of wall time, on a busy machine
def test_the_demo_reads_labels_off_pictures(tmp_path, capsys):
    """The real thing, with a third of the epochs: every variant names more than 9 of 10 digits, in little time."""
    began = time.process_time()
    assert main(["demo", "--epochs", "40", "-k", "50", "--out", str(tmp_path / "demo")]) == 0
    assert time.process_time() - began < 400  # a slow core that other work shares
    for variant in demo.VARIANTS:
        results = json.loads((tmp_path / "demo" / variant / "results.json").read_text())
        assert results["accuracy"]["accuracy"]["value"] > 0.9
        assert results["accuracy"]["accuracy (guide)"]["value"] > 0.85
