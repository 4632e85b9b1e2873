"""Files are the old ones or the new ones, and what cannot be read says why."""

import errno
import os
import stat

import pytest

from pyro_mm import files
from pyro_mm.files import BadFile, read_json, write_atomic, write_json


@pytest.mark.parametrize("content", [b"new", "new", lambda file: file.write(b"new")])
def test_it_writes_bytes_text_and_what_a_function_writes(tmp_path, content):
    path = write_atomic(tmp_path / "deep" / "file", content)
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file"]  # no temporary file is left


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(tmp_path, failure):
    path = write_atomic(tmp_path / "file", "old")

    def half(file):
        file.write(b"ne")
        raise failure

    with pytest.raises(type(failure)) as caught:
        write_atomic(path, half)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    if isinstance(failure, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)  # not the temporary file's name


def test_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    """The order that makes a power cut harmless: write, sync, rename."""
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (order.append("sync"), fsync(fd)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    write_atomic(tmp_path / "file", b"x")
    assert order[:2] == ["sync", "rename"]


def test_others_may_read_what_the_umask_allows(tmp_path):
    old = os.umask(0o022)
    try:
        path = write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        write_atomic(tmp_path / "file" / "inner", b"x")


def test_json_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, True], "b": {"é": "text"}}
    assert read_json(write_json(tmp_path / "x.json", value)) == value


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"\0" * 40, "is empty"),  # what some file systems leave after a power cut
        (b'{"a": 1', "truncated or corrupt"),
        (b"\xff\xfe{", "truncated or corrupt"),
        (b"[1, 2]", "holds a JSON list"),
    ],
)
def test_a_bad_json_file_says_what_is_wrong(tmp_path, raw, message):
    path = tmp_path / "x.json"
    path.write_bytes(raw)
    with pytest.raises(BadFile, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)
