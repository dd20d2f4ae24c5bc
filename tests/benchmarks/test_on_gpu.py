"""The GPU's benchmark in miniature, on the CPU: every part makes its rows, and a stop loses none that were made."""

import importlib
import json
import sys

import pytest

from benchmarks import on_gpu


def smoke(part, monkeypatch, folder, *more):
    path = folder / f"cuda_{part}.json"
    monkeypatch.setattr(sys, "argv", [part, "--smoke", "--output", str(path), *more])
    importlib.import_module(f"benchmarks.gpu.{part}").main()
    return json.loads(path.read_text())["rows"]


@pytest.mark.slow
def test_every_part_makes_its_rows(monkeypatch, tmp_path):
    rows = {part: smoke(part, monkeypatch, tmp_path) for part in on_gpu.PARTS}
    assert not [row for part in rows.values() for row in part.values() if "error" in row or "left_out" in row]
    (step,) = rows["step"].values()
    assert set(step["microseconds"]) == {"stock", "shaped", "off", "fused"} and not step["counted"]["stock"]["kernels"]
    assert all(row["same_neighbors_as_float64"] for name, row in rows["neighbors"].items() if "neighbors" in name)
    for name, row in rows["pipelines"].items():
        assert row["bit_equal_when_monitored"], name
    assert rows["pipelines"]["graph breaks, a small SD3"]["graph_breaks"] == {"plain": 0, "monitored": 0}
    assert all(row["same_bytes_in_another_order"] and row["pictures"] == 4 for row in rows["generate"].values())
    (training,) = rows["training"].values()
    assert training["updates"] == 3 and not training["stopped_at_the_limit"]
    page = on_gpu.page(tmp_path)
    assert all(f"## {part.capitalize()}" in page for part in on_gpu.PARTS) and page.count("CPU (smoke)") == len(rows)


def test_no_row_is_begun_once_the_time_is_up(monkeypatch, tmp_path):
    rows = smoke("neighbors", monkeypatch, tmp_path, "--seconds", "0")
    assert len(rows) == 3 and all(row["left_out"] == "no time was left" for row in rows.values())


def test_a_row_that_fails_says_why_and_the_next_is_made(monkeypatch, tmp_path):
    from benchmarks.gpu import neighbors

    monkeypatch.setattr(neighbors, "nearest_neighbors", lambda *args: 1 / 0)
    rows = list(smoke("neighbors", monkeypatch, tmp_path).values())
    assert [row.get("error", "")[:17] for row in rows] == ["ZeroDivisionError"] * 2 + [""]
    assert "ZeroDivisionError" in on_gpu.page(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "step,nothing"], "no part 'nothing'"),
        (["--smoke"], "give another folder with --output"),
        (["--data", "nowhere.npz"], "nowhere.npz does not exist"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["on_gpu", *arguments])
    with pytest.raises(SystemExit, match="2"):
        on_gpu.main()
    assert words in capsys.readouterr().err
