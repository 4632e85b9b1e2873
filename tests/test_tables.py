"""Tables of text."""

from pyro_mm.tables import aligned, markdown


def test_the_first_column_is_to_the_left_and_the_others_to_the_right() -> None:
    assert aligned([["", "mean"], ["long name", "1.0"], ["b", "-12.25"]]) == [
        "             mean",
        "long name     1.0",
        "b          -12.25",
    ]


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown([["log p(x | y)", "n"], ["1", "2"]]) == ["| log p(x \\| y) | n |", "| --- | --- |", "| 1 | 2 |"]
