"""`.Z` files: decoded against an encoder written from the format's description, and against files written by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_mm.data.lzw import unlzw


def packed(data, limit=16, clear_at=()):
    """What `compress` writes: codes of growing width, in groups of eight that are filled up when the width changes."""
    out, bits, group = bytearray(), 9, []

    def flush(fill):
        number = sum(code << (bits * i) for i, code in enumerate(group))
        out.extend(number.to_bytes(bits if fill else -(-len(group) * bits // 8), "little"))
        group.clear()

    def emit(code):
        group.append(code)
        if len(group) == 8:
            flush(True)

    def turn(new):
        nonlocal bits
        if group:
            flush(True)
        bits = new

    table, size, word = {bytes([i]): i for i in range(256)}, 257, b""
    codes = 0  # since the last clear: the decoder's table lags one behind
    for i, byte in enumerate(data):
        longer = word + bytes([byte])
        if longer in table:
            word = longer
            continue
        emit(table[word])
        codes += 1
        known = 257 + codes - 1
        if known >= 1 << bits and bits < limit:
            turn(bits + 1)
        if size < 1 << limit:
            table[longer] = size
            size += 1
        if i in clear_at:
            emit(256)
            turn(9)
            table, size, codes = {bytes([j]): j for j in range(256)}, 257, 0
        word = bytes([byte])
    if word:
        emit(table[word])
    if group:
        flush(False)
    return bytes([0x1F, 0x9D, 0x80 | limit]) + bytes(out)


@settings(max_examples=60)
@given(st.lists(st.sampled_from([b"0", b"1", b"ab", b"\n 271  330", bytes(range(256))]), max_size=60))
def test_round_trip(parts):
    data = b"".join(parts)
    assert unlzw(packed(data)) == data


@pytest.mark.parametrize("limit", [10, 12, 16])
def test_round_trip_through_every_width_and_a_full_table(limit):
    rng = random.Random(limit)
    data = bytes(rng.choice(b"0123456789 \n") for _ in range(200_000))
    assert unlzw(packed(data, limit)) == data
    assert unlzw(packed(data, limit, clear_at=range(5_000, 200_000, 35_000))) == data


def test_a_code_used_before_it_is_whole():
    # "aaaa": a, then code 257 ("aa"), which the decoder is about to define, then a.
    body = (97 | 257 << 9 | 97 << 18).to_bytes(4, "little")
    assert unlzw(bytes([0x1F, 0x9D, 0x90]) + body) == b"aaaa"


def test_a_file_written_by_hand():
    # h e l l o _, each of which defines a pair with its successor (257 "he" to 262 " h"), then the longest known words.
    codes = [104, 101, 108, 108, 111, 32, 257, 259, 261, 263, 260, 10]
    assert unlzw(bytes([0x1F, 0x9D, 0x90]) + _nine_bits(codes)) == b"hello hello hello\n"


def test_damage_is_refused():
    for start in (b"", b"\x1f\x8b\x08", b"PK\x03"):
        with pytest.raises(ValueError, match="not in compress format"):
            unlzw(start)
    with pytest.raises(ValueError, match="codes of up to 31 bits"):
        unlzw(b"\x1f\x9d\x9f")
    with pytest.raises(ValueError, match="corrupt: code 300 where only 257 are known"):
        unlzw(b"\x1f\x9d\x90" + _nine_bits([97, 300]))
    with pytest.raises(ValueError, match="more than 10 bytes"):
        unlzw(packed(b"a" * 100), most=10)


def _nine_bits(codes):
    number = sum(code << (9 * i) for i, code in enumerate(codes))
    return number.to_bytes(-(-len(codes) * 9 // 8), "little")
