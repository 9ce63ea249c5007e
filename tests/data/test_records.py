"""Files of records: every format, and every way in which one can be damaged."""

from __future__ import annotations

import gzip
import sys

import pyarrow
import pytest
from pyarrow import parquet

from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.data.preferences import PreferencePair, read_preferences
from megatron_r1.data.problems import Problem
from megatron_r1.data.records import file_name, read_lines, read_records
from megatron_r1.data.safety_labels import LabelledResponse, read_labelled
from megatron_r1.data.samples import Sample, read_samples
from megatron_r1.errors import DataError


def test_json_lines_keep_their_numbers_and_bad_ones_say_why(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": \n"\xff"\n[1]\n{"a": 2}')
    lines = list(read_lines(path))
    assert [(line.number, line.record) for line in lines if not line.error] == [
        (1, {"a": 1}),
        (6, {"a": 2}),
    ]
    assert [(line.number, line.error) for line in lines if line.error] == [
        (3, "not JSON: Expecting value at column 6"),
        (4, "not UTF-8 at byte 2 of the line"),
        (5, "expected an object, got list"),
    ]
    with pytest.raises(DataError, match=r"a\.jsonl:3: not JSON.*The line starts '{\"a\": "):
        list(read_records(path))


def test_a_compressed_file_that_was_cut_short_is_named_with_its_last_good_line(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = "".join(f'{{"a": "{number * 7919 % 10007} and more"}}\n' for number in range(5000))
    whole = gzip.compress(lines.encode(), mtime=0)
    path.write_bytes(whole)
    assert len(list(read_lines(path))) == 5000
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged after line [1-9]\d+: .*Copy it again"):
        list(read_lines(path))
    path.write_bytes(b"no gzip")
    with pytest.raises(DataError, match="damaged after line 0"):
        list(read_lines(path))


def test_csv_rows_may_span_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('Question,Answer\n"two\nlines",4\nshort\n"x, y",5\n')
    first, bad, last = read_lines(path)
    assert (first.number, first.record) == (2, {"Question": "two\nlines", "Answer": "4"})
    assert (bad.number, bad.error) == (4, "1 columns under 2 headings")
    assert (last.number, last.record) == (5, {"Question": "x, y", "Answer": "5"})
    path.write_text("question,answer,question\na,b,c\n")
    with pytest.raises(DataError, match=r"a\.csv:1: two columns are called 'question'"):
        list(read_lines(path))
    path.write_text("question,,\na,,\n")  # columns without a heading, which spreadsheets add
    assert [row.record for row in read_lines(path)] == [{"question": "a"}]
    path.write_bytes(b"Question,Answer\na,b\n\xff,c\n")
    with pytest.raises(DataError, match=r"a\.csv:3: .*Save it as UTF-8"):
        list(read_lines(path))


def test_files_that_are_no_data_files(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl is empty"):
        list(read_records(tmp_path / "empty.jsonl"))
    with pytest.raises(DataError, match=r"none\.jsonl: No such file"):
        list(read_lines(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        list(read_lines(tmp_path / "a.txt"))


def test_parquet_rows_without_their_nulls(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [{"q": "1", "options": ["x", "y"]}, {"q": "2", "options": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert [(line.number, line.record) for line in read_lines(path)] == [
        (1, {"q": "1", "options": ["x", "y"]}),
        (2, {"q": "2"}),
    ]
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not readable as Parquet"):
        list(read_lines(path))


@pytest.mark.parametrize("text", ["question", "QQQQ"])
def test_a_parquet_file_with_a_byte_that_was_flipped_is_named(tmp_path, text):
    """Wherever the text stands in it: in pages, in statistics or in the schema."""
    table = pyarrow.table({"question": ["what is it? QQQQ", "why?"]})
    path = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "row_group_size": 1}
    parquet.write_table(table, path, write_statistics=False, **options)
    whole, errors = path.read_bytes(), []
    start = whole.find(text.encode())
    while start >= 0:
        path.write_bytes(whole[:start] + b"\xff" + whole[start + 1 :])
        try:
            list(read_lines(path))
        except DataError as error:
            errors.append(str(error))
        start = whole.find(text.encode(), start + 1)
    assert errors and all(error.startswith(f"{path}: ") for error in errors)
    if text == "QQQQ":
        assert "row group 1 of 2" in errors[0]


def test_without_pyarrow_the_message_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    with pytest.raises(DataError, match="pip install pyarrow"):
        list(read_lines(tmp_path / "a.parquet"))


def test_training_reads_parquet_and_sets_bad_rows_aside(tmp_path):
    path = tmp_path / "a.v2.parquet"
    rows = [
        {"question": "1 + 1 =", "answer": "2", "response": "two", "chosen": "2", "rejected": "3"},
        {"question": "2 + 2 =", "answer": None, "response": None, "chosen": "4", "rejected": "4"},
    ]
    rows = [{**row, "prompt": row["question"]} for row in rows]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    for read in (read_jsonl, read_samples, read_preferences):
        bad = []
        (found,) = read(path, bad_lines=bad)
        assert [str(error).split(":")[1] for error in bad] == ["2"]
        with pytest.raises(DataError, match=r"a\.v2\.parquet:2: .* The line starts"):
            read(path)
    assert (found.prompt, found.id) == ("1 + 1 =", "a.v2/1")


CSV = {
    read_jsonl: (
        'question,answer,id,grader,choices,language,dataset\nWhich?,B,,choice,"[""x"", ""y""]",,\n'
        "1 + 1 =,2,mine,,,en,sums\n",
        [
            Problem("a/2", "Which?", "B", "choice", {"choices": ["x", "y"]}),
            Problem("mine", "1 + 1 =", "2", "math", dataset="sums", language="en"),
        ],
    ),
    read_samples: (
        'prompt,response,lineage\n1 + 1 =,2,\n2 + 2 =,4,"{""model"": ""big""}"\n',
        [Sample("1 + 1 =", "2"), Sample("2 + 2 =", "4")],
    ),
    read_preferences: (
        "prompt,chosen,rejected,margin,id\n1 + 1 =,2,3,,\n2 + 2 =,4,5,1.5,mine\n",
        [
            PreferencePair("1 + 1 =", "2", "3", id="a/2"),
            PreferencePair("2 + 2 =", "4", "5", margin=1.5, id="mine"),
        ],
    ),
    read_labelled: (
        "prompt,response,safe,id\nHow?,So.,true,\nWhy?,No.,FALSE,why\n",
        [
            LabelledResponse("How?", "So.", safe=True, id="a/2"),
            LabelledResponse("Why?", "No.", safe=False, id="why"),
        ],
    ),
}
"""Reader -> a file with an empty cell in each optional column, and what is in it."""


@pytest.mark.parametrize("read", CSV, ids=lambda read: read.__name__)
def test_training_reads_csv(tmp_path, read):
    path = tmp_path / "a.csv"
    text, expected = CSV[read]
    path.write_text(text)
    assert read(path) == expected


def test_a_cell_that_is_not_of_its_columns_type_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response,safe\nHow?,So.,yes\n")
    with pytest.raises(DataError, match=r"a\.csv:2: 'safe' must be true or false, got 'yes'"):
        read_labelled(path)
    path.write_text("prompt,chosen,rejected,margin\nHow?,1,2,wide\n")
    with pytest.raises(DataError, match=r"a\.csv:2: 'margin' must be a number .* got 'wide'"):
        read_preferences(path)


def test_a_file_is_called_by_its_name_without_the_ending_of_its_format():
    names = ["d/math.v2.jsonl", "math.v2.jsonl.gz", "math.v2.csv", "math.v2.parquet", "math.v2.txt"]
    assert {file_name(name) for name in names} == {"math.v2"}
