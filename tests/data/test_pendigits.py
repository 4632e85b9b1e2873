"""UNIPEN files: what is read from small ones, what is said of damaged ones, and the originals where they are."""

import numpy as np
import pytest

from pyro_mm.data import pendigits as module
from pyro_mm.data.pendigits import COUNTS, FILES, content_md5, pendigits, read_unipen
from tests.helpers.drawn_and_spoken import unipen

DIGITS = [
    (8, 12, [[(267, 333), (267, 336), (260, 340)]]),
    (4, 3, [[(1, 2), (3, 4)], [(-5, 6)], [(7, 8), (9, 10)]]),
    (0, 30, [[(100, 100)]]),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / FILES["train"]
    path.write_text(unipen(DIGITS))
    return path


def test_digits_are_read_in_order(file):
    digits = read_unipen(file)
    assert [(d.label, d.writer, [list(map(tuple, s.tolist())) for s in d.strokes]) for d in digits] == DIGITS
    assert all(s.dtype == np.int16 for d in digits for s in d.strokes)


def test_line_ends_and_spaces_mean_nothing(file):
    expected = content_md5(read_unipen(file))
    file.write_bytes(file.read_bytes().replace(b"\n", b" \r\n\r\n"))
    assert content_md5(read_unipen(file)) == expected


def test_the_digest_sees_every_part(file):
    (a, b, c), found = DIGITS, set()
    _, _, (one, two, three) = b
    for digits in (
        [a, b, c],
        [(9, *a[1:]), b, c],
        [(a[0], 13, a[2]), b, c],
        [a, (4, 3, [one, two, [(7, 8), (9, 11)]]), c],
        [a, (4, 3, [one + two, three]), c],
        [a, b],
        [b, a, c],
    ):
        file.write_text(unipen(digits))
        found.add(content_md5(read_unipen(file)))
    assert len(found) == 7


def test_a_file_cut_at_any_line_is_refused_or_lacks_whole_digits(file):
    lines = unipen(DIGITS).splitlines()
    for end in range(len(lines)):
        file.write_text("\n".join(lines[:end]))
        try:
            digits = read_unipen(file)
        except ValueError as error:
            assert f"{file}" in str(error) and ("truncated" in str(error) or "holds no digits" in str(error))
        else:
            assert [(d.label, len(d.strokes)) for d in digits] == [(8, 1), (4, 3), (0, 1)][: len(digits)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 267  336", " 267", r"line 10: '267' is no point"),
        (" 267  336", " 267  3b6", r"line 10: '267 3b6' is no point"),
        (" 267  336", " 267  99999", r"line 10: the point 267 99999 lies off any tablet"),
        (
            ".PEN_UP\n.DT 100\n\n.SEGMENT DIGIT    1",
            "\n.SEGMENT DIGIT    1",
            r"line 13: '.SEGMENT DIGIT .* is no point",
        ),
        ('? "8"', '? "x"', r"line 6: '.SEGMENT DIGIT 0 \? \"x\"' is no .SEGMENT"),
        ('? "8"', '? "12"', r"line 6: .* is no digit 0 to 9"),
        ("DIGIT    1-3", "DIGIT    3-1", r"line 15: .* of one stroke or more"),
        (".COMMENT 8 12", ".COMMENT 7 12", r"line 7: the comment says 7 where the segment's label is 8"),
        (".COMMENT 8 12  0", ".COMMENT 8", r"line 7: '.COMMENT 8' is no .COMMENT"),
        ("DIGIT    1-3", "DIGIT    1-2", r"'.PEN_DOWN' stands outside a digit"),
        ("DIGIT    1-3", "DIGIT    1-4", r"'.SEGMENT DIGIT 4 .*' where .PEN_DOWN is expected"),
        (" 100  100\n", "", r"a stroke without points"),
    ],
)
def test_damage_is_named_with_its_line(file, old, new, message):
    text = unipen(DIGITS)
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_unipen(file)
    assert str(error.value).startswith(f"{file}, line ")


def test_other_files_are_refused(file, monkeypatch):
    with pytest.raises(ValueError, match=r"pendigits-orig.tra is not the original file: it holds \(1, 0, 0, 0, 1"):
        pendigits(file.parent, "train")
    monkeypatch.setitem(module.COUNTS, "train", (1, 0, 0, 0, 1, 0, 0, 0, 1, 0))
    with pytest.raises(ValueError, match=r"is not the original file: its digits have md5 [0-9a-f]{32}, expected"):
        pendigits(file.parent, "train")
    with pytest.raises(FileNotFoundError):
        pendigits(file.parent, "test")
    file.write_text("nothing of the sort\n")
    with pytest.raises(ValueError, match="line 1: 'nothing of the sort' stands outside a digit"):
        read_unipen(file)


@pytest.mark.parametrize(("part", "writers", "most"), [("train", 30, 185), ("test", 14, 231)])
def test_real_files_have_the_documented_contents(data_root, part, writers, most):
    digits = pendigits(data_root / "pendigits", part)
    assert np.bincount([d.label for d in digits]).tolist() == list(COUNTS[part])
    assert {d.writer for d in digits} == set(range(1, writers + 1))
    points = [sum(map(len, d.strokes)) for d in digits]
    assert (min(points), max(points)) == (9, most)
    assert max(len(d.strokes) for d in digits) <= 4
