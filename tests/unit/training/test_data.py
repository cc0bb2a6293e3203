from pathlib import Path

import pytest

from training import tune
from training.data import DataError, Table, describe, read_csv


def read(tmp_path: Path, content: bytes, delimiter: str = ",") -> Table:
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    return read_csv(path, "text", "label", delimiter)


def lines_of(table: Table) -> dict[int, str]:
    return {problem.line: problem.reason for problem in table.problems}


def test_good_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    table = read(tmp_path, b'id,label,text\n1,a,first\n2,b,"over\ntwo lines, quoted ""so"""\n\n3,a,last\n')
    assert [(row.text, row.label, row.line) for row in table.rows] == [
        ("first", "a", 2),
        ('over\ntwo lines, quoted "so"', "b", 3),
        ("last", "a", 6),
    ]
    assert not table.problems


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_newlines_of_every_system(tmp_path: Path, newline: bytes) -> None:
    table = read(tmp_path, newline.join([b"\xef\xbb\xbftext,label", b"one,a", b"two,b"]))
    assert [(row.text, row.line) for row in table.rows] == [("one", 2), ("two", 3)]


def test_unicode_line_separators_are_part_of_a_text(tmp_path: Path) -> None:
    table = read(tmp_path, "text,label\nan\u2028other\x0bline\x85,a\n".encode())
    assert [row.text for row in table.rows] == ["an\u2028other\x0bline"]  # \x85 is stripped as a space


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b",a", "empty text"),
        (b"  \t,a", "empty text"),
        (b"text,", "missing label"),
        (b"text, ", "missing label"),
        (b"caf\xe9,a", "not valid UTF-8"),
        (b"text,\xff", "not valid UTF-8"),
        (b"a\0b,a", "NUL character"),
        (b"text", "wrong number of columns"),
        (b"text,a,more", "wrong number of columns"),
        (b'"text"quoted,a', "malformed quoting: ',' expected after '\"'"),
        (b"first,a", "duplicate text"),
        (b"first,b", "duplicate text with another label"),
    ],
)
def test_a_bad_row_is_reported_and_the_others_are_kept(tmp_path: Path, row: bytes, reason: str) -> None:
    table = read(tmp_path, b"text,label\nfirst,a\n" + row + b"\nlast,b\n")
    assert lines_of(table) == {3: reason}
    assert [found.line for found in table.rows] == [2, 4]


def test_a_quote_that_is_never_closed_says_what_it_swallows(tmp_path: Path) -> None:
    table = read(tmp_path, b'text,label\nfirst,a\n"open,b\n' + b"more,a\n" * 3)
    assert [row.text for row in table.rows] == ["first"]
    assert lines_of(table)[3].startswith("malformed quoting: unexpected end of data (takes up ")


def test_texts_over_the_csv_modules_own_limit(tmp_path: Path) -> None:
    table = read(tmp_path, b"text,label\n" + b"long " * 100_000 + b",a\n")
    assert len(table.rows[0].text) == 499_999


def test_another_delimiter(tmp_path: Path) -> None:
    assert read(tmp_path, b"text\tlabel\na, b\tx\n", "\t").rows[0].text == "a, b"


def test_a_search_reads_with_the_delimiter_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.csv").write_text("text;label\none;a\ntwo;a\n")
    given = ["--csv", str(tmp_path / "data.csv"), "--table", str(tmp_path / "t.csv"), "--delimiter", ";"]
    assert tune.main(given) == 1
    assert "every row to train on has the label 'a'" in capsys.readouterr().err


def test_missing_columns_and_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'text'; it has: 'body', 'label'"):
        read(tmp_path, b"body,label\n")
    with pytest.raises(DataError, match="it has: none"):
        read(tmp_path, b"")
    with pytest.raises(DataError, match="No such file"):
        read_csv(tmp_path / "absent.csv", "text", "label")


def test_problems_are_counted_and_located(tmp_path: Path) -> None:
    table = read(tmp_path, b"text,label\n" + b",a\n" * 7 + b"x,\ny,a\n")
    assert describe(table.problems) == [
        "empty text: 7 rows left out (line 2, 3, 4, 5, 6, …)",
        "missing label: 1 row left out (line 9)",
    ]
