"""JSON and JSONL files: found row by row exactly as json reads them whole, or refused by place."""

import gzip
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperllava_hf.data import json_rows
from hyperllava_hf.data.json_rows import JsonRowFile
from hyperllava_hf.data.row_faults import RowFault

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def read_file(path: Path) -> list[Any]:
    """Scan a file, and read every row again by its place."""
    file = JsonRowFile(str(path))
    scanned = [row.value for row in file.scan()]
    assert [row.value for row in file.stream()] == scanned
    copy = pickle.loads(pickle.dumps(file))
    assert [copy.read(i) for i in reversed(range(len(copy)))] == scanned[::-1]
    return scanned


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(VALUES, min_size=1, max_size=6),
    block=st.integers(1, 40),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    tail=st.sampled_from(["", "\n", " \r\n"]),
)
def test_any_array_is_read_as_json_reads_it_whatever_the_size_of_a_block(
    rows: list, block: int, ascii_only: bool, indent: int | None, tail: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / "any.json"
    text = json.dumps(rows, ensure_ascii=ascii_only, indent=indent) + tail
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK_BYTES", block)
        assert read_file(path) == rows


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz", "rows.JSONL.GZ"])
def test_every_kind_of_file_holds_the_same_rows(name: str, tmp_path: Path) -> None:
    rows = [{"id": i, "text": "\u00e9\U0001f600" * i} for i in range(5)]
    if "jsonl" in name.lower():
        text = "\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        text = "\ufeff" + json.dumps(rows, ensure_ascii=False)
    data = text.encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert read_file(path) == rows


def test_rows_of_json_lines_are_numbered_by_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n\n  \n{"a": 2}')
    assert [row.number for row in JsonRowFile(str(path)).scan()] == [2, 5]


BAD_LINES = {
    "cut off": (b'{"a": [1, 2', "no JSON: .* at character 11"),
    "not JSON": (b"hello", "Expecting value at character 0 of 'hello'"),
    "two objects": (b'{"a": 1} {"a": 2}', "Extra data at character 9"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 7 of the row is not UTF-8"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "too deep": (b"[[" * 60_000, "no JSON that can be read"),
    "a huge number": (b"9" * 10_000, "no JSON that can be read"),
    "a NUL": (b'{"a": "\x00"}', "Invalid control character"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_a_fault_of_its_row_alone(case: str, tmp_path: Path) -> None:
    line, pattern = BAD_LINES[case]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    first, bad, last = list(JsonRowFile(str(path)).scan())
    assert (first.value, last.value, bad.number) == ({"a": 1}, {"a": 2}, 2)
    assert isinstance(bad.value, RowFault)
    with pytest.raises(RowFault, match=pattern):
        raise bad.value


BAD_FILES = {
    "empty.json": (b"", "is empty; expected a JSON array"),
    "blank.json": (b" \n\t", "is empty"),
    "empty.jsonl": (b"", "holds no rows"),
    "blank.jsonl": (b"\n\n \n", "holds no rows"),
    "empty-array.json": (b"[]", "holds no rows"),
    "object.json": (b'{"rows": []}', "is a JSON object; expected an array"),
    "lines.json": (b'{"a": 1}\n{"a": 2}\n', "name the file .jsonl"),
    "array.jsonl": (b'[{"a": 1}]', r"Name it \.json"),
    "text.json": (b"hello", "begins with 'hello'; expected a JSON array"),
    "html.json": (b"<!DOCTYPE html>", "begins with '<!DOCTYPE"),
    "trailing.json": (b'[{"a": 1}] x', "goes on with 'x' at byte 11, behind the array of 1 rows"),
    "comma.json": (b'[{"a": 1},]', "is no JSON in row 2, byte 10"),
    "no-comma.json": (b'[{"a": 1} {"a": 2}]', "behind row 1, byte 10"),
    "middle.json": (b'[{"a": 1}, {"a" 2}, ' + b'{"a": 3}, ' * 90 + b"7]",
                    "is no JSON in row 2, byte 16"),
    "latin.json": (b'[{"a": "\xe9t\xe9"}]', "holds bytes that are not UTF-8"),
    "utf16.json": ("[1]".encode("utf-16"), "not UTF-8"),
    "deep.json": (b"[" * 100_000, "cannot be read in row 1"),
    "number.json": (b"[" + b"9" * 10_000 + b"]", "cannot be read in row 1"),
    "plain.json.gz": (b"[{}]", "not a whole gzip file"),
    "cut.json.gz": (gzip.compress(b'[{"a": 1}]')[:-9], "not a whole gzip file"),
    "broken.json.gz": (gzip.compress(b'[{"a": 1}]')[:12] + b"\xff" * 30, "not a whole gzip file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_no_list_of_rows_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    data, pattern = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=pattern) as caught:
        list(JsonRowFile(str(path)).scan())
    assert name in str(caught.value)


def test_an_array_cut_off_at_any_byte_is_refused_behind_its_whole_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_rows, "BLOCK_BYTES", 13)
    rows = [{"id": "\u00e9", "n": [1.5, None]}, {"id": 'a"\\b'}, [7, True]]
    data = json.dumps(rows, ensure_ascii=False).encode()
    path = tmp_path / "cut.json"
    for length in range(1, len(data)):
        path.write_bytes(data[:length])
        found: list[Any] = []
        with pytest.raises(ValueError, match=r"cut\.json") as caught:
            found.extend(row.value for row in JsonRowFile(str(path)).scan())
        assert found == rows[: len(found)]
        assert len(found) >= data[:length].count(b"}, ")
        message = str(caught.value)
        assert "cut off" in message or "not UTF-8" in message, message
        assert f"row {len(rows) + 1}" not in message


def test_a_file_that_changes_while_it_is_in_use_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"a": i} for i in range(9)]))
    file = JsonRowFile(str(path))
    list(file.scan())
    path.write_text(" " + path.read_text())
    with pytest.raises(ValueError, match=r"row 4.*the file changed while it was in use"):
        file.read(3)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    row = json.dumps({"id": 1, "text": "word " * 2000})
    between, around = ("\n", "{}") if name.endswith("l") else (",\n", "[{}]")
    path = tmp_path / name
    path.write_text(around.format(between.join([row] * 4000)))
    file = JsonRowFile(str(path))
    tracemalloc.start()
    try:
        assert sum(1 for _ in file.scan()) == 4000
        assert file.read(3999) == json.loads(row)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 40e6
    assert peak < 20e6


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no data file .*gone\.json"):
        JsonRowFile(str(tmp_path / "gone.json"))
