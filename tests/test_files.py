"""Files written whole, and names as text."""

from __future__ import annotations

import itertools
import json
import os
import sys

import pytest

from densekit.files import printable, read_names, remove_leftovers, whole_file, write_text


@pytest.mark.skipif(sys.platform != "linux", reason="backslashes separate folders elsewhere")
def test_distinct_names_stay_distinct_and_common_ones_stay_as_they_are():
    pieces = [b"a", b"\\", b"\xe9", b"\\xe9", b"\n", b"x0a", b"\x1b", "\u00e9".encode(), b" ", b"%20", b"\\udc41"]
    names = {os.fsdecode(b"".join(some)) for n in range(1, 5) for some in itertools.product(pieces, repeat=n)}
    texts = {name: printable(name) for name in names}
    assert len(set(texts.values())) == len(names)
    for name, text in texts.items():
        text.encode()
        assert text.isprintable()
        assert json.loads(json.dumps(text)) == text
        if name.isprintable() and "\\" not in name:
            assert text == name
    assert printable(os.fsdecode(b"caf\xe9.jpg")) == r"caf\xe9.jpg"
    assert printable("images\\a.jpg") == "images\\a.jpg"
    assert printable("\ud83d") == r"\ud83d"


def test_a_name_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    for name in ("x" * 255, "\u00e9" * 127):
        write_text(tmp_path / name, "text")
        assert (tmp_path / name).read_text() == "text"


def test_text_that_utf_8_does_not_hold_is_written_escaped(tmp_path):
    write_text(tmp_path / "a", "cat \ud83d")
    assert (tmp_path / "a").read_bytes() == rb"cat \ud83d"


def test_leftovers_of_other_files_are_left_alone(tmp_path):
    for name in (".mine.json.abc.tmp", ".other.abc.tmp", "mine.json.tmp"):
        (tmp_path / name).write_text("")
    remove_leftovers(tmp_path, "mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.abc.tmp", "mine.json.tmp"]


def test_an_error_within_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a", "old")

    def fail():
        with whole_file(tmp_path / "a", "w") as file:
            file.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_names_are_read_as_the_file_system_has_them(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\ncaf\xe9.png\n")
    assert read_names(tmp_path / "list.txt") == ["a.png", os.fsdecode(b"caf\xe9.png")]
    (tmp_path / "list.txt").write_text("a.png", encoding="utf-16")
    with pytest.raises(ValueError, match="UTF-8"):
        read_names(tmp_path / "list.txt")
