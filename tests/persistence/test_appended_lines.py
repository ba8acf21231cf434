"""Lines that are appended stay whole, also after one that was cut."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fixbn_flwr.persistence.appended_lines import append_lines


def test_a_cut_line_is_ended_before_the_next_and_only_the_owner_reads_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.jsonl"
    append_lines(path, b"1\n2\n")
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("ab") as file:
        file.write(b'{"cut')
    append_lines(path, b"3\n")
    assert path.read_bytes() == b'1\n2\n{"cut\n3\n'


def test_lines_that_only_fit_in_part_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))  # a write takes what still fits
    try:
        with pytest.raises(OSError, match="File too large"):
            append_lines(path, b"12\n45\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_lines(path, b"12\n45\n")
    assert path.read_bytes() == b"12\n4\n12\n45\n"
