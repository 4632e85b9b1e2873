"""The IDX reader: what it reads, and above all what it refuses."""

import gzip
import hashlib
import struct

import pytest
import torch

from pyro_mm.data.idx import decoded_md5, read_idx

DATA = torch.randint(0, 256, (7, 3, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
BYTES = b"\0\0\x08\x03" + struct.pack(">3I", 7, 3, 2) + DATA.numpy().tobytes()
ZIPPED = gzip.compress(BYTES, mtime=0)


def written(tmp_path, content):
    path = tmp_path / "digits-idx3-ubyte"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", [BYTES, ZIPPED])
def test_reads_plain_and_gzipped_whatever_the_name(tmp_path, content):
    path = written(tmp_path, content)
    digest = hashlib.md5(DATA.numpy().tobytes()).hexdigest()
    assert torch.equal(read_idx(path), DATA)
    assert torch.equal(read_idx(str(path), (7, 3, 2), digest), DATA)
    assert decoded_md5(DATA) == digest


def test_reads_one_axis_and_no_rows(tmp_path):
    labels = written(tmp_path, b"\0\0\x08\x01" + struct.pack(">I", 3) + bytes([5, 0, 9]))
    assert read_idx(labels).tolist() == [5, 0, 9]
    empty = written(tmp_path, b"\0\0\x08\x02" + struct.pack(">2I", 0, 4))
    assert read_idx(empty).shape == (0, 4)


def test_every_truncation_is_refused(tmp_path):
    for content in (BYTES, ZIPPED):
        for length in range(len(content)):
            with pytest.raises(ValueError, match=r"digits-idx3-ubyte (is truncated|is no IDX)"):
                read_idx(written(tmp_path, content[:length]))


def test_every_flipped_byte_of_an_archive_is_refused_or_harmless(tmp_path):
    """gzip's checksum covers the data; its first 10 bytes hold a time stamp and flags that do not matter."""
    for place in range(10, len(ZIPPED)):
        broken = bytearray(ZIPPED)
        broken[place] ^= 0xFF
        with pytest.raises(ValueError, match="digits-idx3-ubyte"):
            read_idx(written(tmp_path, bytes(broken)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no IDX file of unsigned bytes: it starts with nothing"),
        (b"<!DOCTYPE html>", "no IDX file.*3c 21 44 4f"),
        (b"\0\0\x0d\x01" + struct.pack(">I", 0), "no IDX file.*00 00 0d 01"),
        (b"\0\0\x08\0", "no IDX file"),
        (BYTES + b"x", "corrupt: it holds more than 42 of 42 bytes"),
        (gzip.compress(BYTES + b"x", mtime=0), "corrupt: it holds more than 42"),
        (ZIPPED + b"rest", "truncated or corrupt"),
        (BYTES[:-5], "truncated: it holds only 37 of 42"),
        (gzip.compress(BYTES[:-5], mtime=0), "truncated: it holds only 37 of 42"),
        (BYTES[:9], "truncated: its header ends after 9 bytes"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 1 << 31, 1 << 31, 9), "header claims shape"),
    ],
)
def test_refuses_naming_the_file(tmp_path, content, words):
    with pytest.raises(ValueError, match=words) as error:
        read_idx(written(tmp_path, content))
    assert str(tmp_path / "digits-idx3-ubyte") in str(error.value)


def test_refuses_another_shape_or_content(tmp_path):
    path = written(tmp_path, ZIPPED)
    with pytest.raises(ValueError, match=r"holds shape \(7, 3, 2\), expected \(7, 6\)"):
        read_idx(path, (7, 6))
    with pytest.raises(ValueError, match=f"md5 {decoded_md5(DATA)}, expected 0000"):
        read_idx(path, md5="0000")
    with pytest.raises(FileNotFoundError, match="absent"):
        read_idx(tmp_path / "absent")
