"""What the command line says of itself: help, lists, descriptions; and nobody who reads need wait."""

import re
import subprocess
import sys

import pytest

from pyro_mm import variants
from pyro_mm.cli import main
from pyro_mm.cli.parser import make_parser
from pyro_mm.data import available

COMMANDS = (
    "demo",
    "list",
    "describe",
    "train",
    "evaluate",
    "certify",
    "diagnose",
    "compare",
    "generate",
    "plot",
    "reproduce",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_gives_examples_that_parse(capsys, command):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    examples = [line.split("   ")[0].strip() for line in text.partition("examples:\n")[2].splitlines()]
    assert len(examples) >= 2
    for example in examples:
        words = example.partition(" | ")[0].split()
        assert words[:2] == ["pyro-mm", command]
        make_parser().parse_args(words[1:])  # would exit


def test_the_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert set(COMMANDS) <= set(re.findall(r"^    (\w+) ", text, re.MULTILINE))


def test_help_imports_only_what_the_package_does():
    """No ArviZ, matplotlib, Lightning or scikit-learn for a page of text."""
    code = (
        "import sys, pyro_mm; before = set(sys.modules); from pyro_mm.cli import main; main(['train', '--help']); "
        "new = {m.partition('.')[0] for m in set(sys.modules) - before}; "
        "print('NEW', *sorted(new & {'arviz', 'matplotlib', 'lightning_fabric', 'sklearn', 'torchvision', 'pandas'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1].strip() == "NEW"


def test_python_dash_m_is_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "pyro_mm", "train", "nvae"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "pyro-mm: unknown variant 'nvae': did you mean vae or svae or mvae?\n"


def test_list_names_everything_on_one_line_each(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    _, *first = [line.split()[0] for line in lines if line.startswith("  ")]
    variants_first, sets = first[: len(variants.__all__)], first[len(variants.__all__) :]
    assert sorted(variants_first) == sorted(v.replace("_", "-") for v in variants.__all__)
    assert sets == list(available())


def test_list_says_what_tells_variants_apart(capsys):
    """Guide, terms, rows, stages, paper: of the systems with one model, no two lines are alike but for the name."""
    assert main(["list"]) == 0
    lines = {line.split()[0]: line.split(None, 1)[1] for line in capsys.readouterr().out.splitlines() if "  " in line}
    cells = {name: re.split(r"  +", line.strip()) for name, line in lines.items()}
    assert cells["mvae"] == ["product of experts", "elbo over S", "anything", "1", "Wu & Goodman 2018"]
    assert cells["mvae-sampled"][1] == "elbo over drawn S" and cells["mmvae-dreg"][1] == "looser iwae"
    assert cells["scan"] == ["product of posteriors", "elbo + kl", "by stage", "2", "Higgins et al. 2018"]
    assert cells["m2"] == ["class experts", "elbo + log q", "image or text", "1", "Kingma et al. 2014"]
    assert cells["vae"][0] == "one encoder" and cells["cvae"][2] == "everything" and cells["vcca"][2] == "image"
    assert cells["jnf"][-1] == "Senellart et al. 2025" and cells["nexus"][1] == "elbo, elbo of z_m"
    for same in (["mvae", "mvae-sampled", "mvae-cross"], ["jmvae", "jmvae-zero"], ["mmvae", "mmvae-iwae", "mmvae-dreg"],
                 ["mmvm", "mmvm-pairwise"], ["nexus", "nexus-elbo"], ["mopoe", "mopoe-density", "mwbvae"],
                 ["avae", "avae-staged", "avae-wasserstein"]):  # fmt: skip
        assert len({tuple(cells[n]) for n in same}) == len(same)


def test_describe_shows_a_variant_and_a_run(run, tmp_path, capsys):
    assert main(["describe", "jmvae-kl", "--dim", "5", "--figure", str(tmp_path / "g.png")]) == 0
    said = capsys.readouterr().out
    assert "Suzuki" in said
    assert "KL(q(z | image, label) || q(z | image))" in said
    assert re.search(r"z +Normal +\(8,\) +\(5,\)", said)
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert main(["describe", str(run), "--no-figure"]) == 0
    assert "p(z) p(image | z) p(label | z)" in capsys.readouterr().out
    assert not (run / "figures" / "graph.png").exists()


def test_a_reader_that_stops_early_is_no_error():
    """`pyro-mm list | head -1`"""
    command = f"{sys.executable} -m pyro_mm list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] in ("0", "141")
