"""Lines that are appended stay whole, also after one that was cut."""

from __future__ import annotations

from pathlib import Path

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
