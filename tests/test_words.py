"""Numbers in sentences."""

from glot.words import counted, signed


def test_one_is_singular_and_zero_has_no_minus():
    assert [counted(count, "row") for count in (0, 1, 2767)] == ["0 rows", "1 row", "2,767 rows"]
    assert counted(1, "row", be=True) == "1 row is" and counted(2, "class", "classes", be=True) == "2 classes are"
    assert [signed(value) for value in (-0.00004, 0.0, -0.00006, 0.5)] == ["+0.0000", "+0.0000", "-0.0001", "+0.5000"]
