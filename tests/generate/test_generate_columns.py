"""Columns next to the prompts: what is written can be read, and what cannot is refused before anything is drawn."""

import json

import pytest

datasets = pytest.importorskip("datasets")

SMALL = ["--num-inference-steps", 2, "--batch-size", 4]
GAPS = [
    {"prompt": i % 10, "note": None if i < 7 else "late", "score": 1 if i < 6 else 0.5, "source_file_name": f"src/{i}.jpg"}
    | {"index": i, "hash": 2**63 - 1 - i, "empty": None, "mark": "ß\u2028"}
    for i in range(12)
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("format", ["imagefolder", "webdataset", "parquet"])
def test_datasets_loads_what_was_written_next_to_any_other_file(kts, tmp_path, format):
    write(tmp_path / "p.jsonl", GAPS)
    code, _, err = kts("generate", "--prompts", "p.jsonl", "--format", format, "--traces", "--output", "out", *SMALL)
    assert code == 0, err
    code, _, err = kts("evaluate", "out", "--reference", "out", "--metrics", "fd", "--output", "out")
    assert code == 0 and (tmp_path / "out/samples.parquet").exists(), err
    cache = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    loaded = datasets.load_dataset(str(tmp_path / "out"), **cache)
    rows = list(loaded["json"] if format == "webdataset" else loaded.remove_columns("image"))
    assert len(rows) == 12 and kts("verify", "out")[0] == 0
    for row, given in zip(rows, GAPS, strict=True):
        gap = None if format == "parquet" else ""
        expected = {"note": given["note"] or gap, "empty": gap, "score": float(given["score"]), "hash": given["hash"]}
        expected |= {"source_filename": given["source_file_name"], "prompts_index": given["index"], "mark": given["mark"]}
        assert {name: row[name] for name in expected} == expected
        assert "source_file_name" not in row and "source" not in row


def test_a_number_that_is_nan_is_missing(kts, tmp_path):
    write(tmp_path / "p.jsonl", [{"prompt": i, "score": float("nan") if i == 2 else 0.5} for i in range(4)])
    for format in ("imagefolder", "parquet"):
        assert kts("generate", "--prompts", "p.jsonl", "--format", format, "--output", format, *SMALL)[0] == 0
        rows = datasets.load_dataset(str(tmp_path / format), split="train", cache_dir=str(tmp_path / "cache"))
        assert rows["score"][:] == [0.5, 0.5, None, 0.5]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": 0}, {"prompt": 1, "x": float("inf")}], "line 2: x is inf"),
        ([{"prompt": 0, "x": 2**63}], "line 1: x is 9223372036854775808, which no 64-bit integer holds"),
        ([{"prompt": 0, "x": "\ud83d"}], "line 1: x holds half a character"),
        ([{"prompt": "\ud83d"}], "line 1: the prompt holds half a character"),
        ([{"prompt": 0, "\ud83d": 1}], "half a character"),
        ([{"prompt": 0, "index": 1, "prompts_index": 2}], "line 1 has two columns that are written as 'prompts_index'"),
        ([{"prompt": 0, "a_file_name": "x", "a_filename": "y"}], "two columns that are written as 'a_filename'"),
    ],
)
@pytest.mark.parametrize("more", [["--dry-run"], ["--output", "out"]])
def test_what_no_reader_could_load_is_refused_with_its_line(kts, tmp_path, rows, words, more):
    write(tmp_path / "p.jsonl", rows)
    code, _, err = kts("generate", "--prompts", "p.jsonl", *SMALL, *more)
    assert code == 2 and words in err and "Traceback" not in err and not (tmp_path / "out").exists()


def test_a_gap_in_a_column_of_numbers_is_refused_for_webdataset_only(kts, tmp_path):
    write(tmp_path / "p.jsonl", [{"prompt": 0, "x": 1}, {"prompt": 1}, {"prompt": 2, "x": 3}])
    code, _, err = kts("generate", "--prompts", "p.jsonl", *SMALL, "--format", "webdataset", "--dry-run")
    assert code == 2 and "column 'x' has no value at prompt 2" in err
    assert kts("generate", "--prompts", "p.jsonl", *SMALL, "--format", "parquet", "--output", "out")[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [("prompt,n\n1,a\n,b\n", "line 3: the prompt is empty"), ("prompt,n,n\n1,a,b\n", "two columns 'n'")],
)
def test_an_empty_cell_is_not_drawn(kts, tmp_path, text, words):
    (tmp_path / "p.csv").write_text(text)
    code, _, err = kts("generate", "--prompts", "p.csv", "--output", "out", *SMALL)
    assert code == 2 and words in err and not (tmp_path / "out").exists()
