"""What ``kts generate`` takes, and what it refuses before it writes anything."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import datasets
import pandas as pd
import pytest
import yaml
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from diffusers import PNDMScheduler
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from tiny_pipelines import tiny_sd3

from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
from diffusers_kts.generate import progress
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.presets import PRESETS, Preset
from diffusers_kts.sampling.find import find_model, fingerprint
from diffusers_kts.sampling.prompts import Prompt, column_types, read_prompts

SMALL = ["--num-prompts", 4, "--num-inference-steps", 2]


def read(path, **settings):
    return read_prompts(GenerateSettings("out", prompts=str(path), **settings), None)


def test_all_kinds_of_files_give_the_same_prompts(tmp_path):
    rows = [{"prompt": "a fox, red", "id": 1, "style": "ink"}, {"prompt": 'a "tree"\nat night', "id": 2, "style": None}]
    table = pd.DataFrame(rows)
    table.to_parquet(tmp_path / "p.parquet")
    table.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train.parquet")
    expected = [Prompt(row["prompt"], {"id": row["id"], "style": row["style"]}) for row in rows]
    assert read(tmp_path / "p.jsonl") == read(tmp_path / "p.parquet") == expected
    assert read_prompts(GenerateSettings("out", dataset=str(tmp_path / "set")), None) == expected
    assert [p.text for p in read(tmp_path / "p.csv")] == [p.text for p in expected]
    assert read(tmp_path / "p.csv")[1].columns == {"id": "2", "style": ""}  # CSV knows text only
    assert [p.text for p in read(tmp_path / "p.jsonl", prompt_column="style", num_prompts=1)] == ["ink"]
    (tmp_path / "p.txt").write_bytes("\ufeff a fox \r\n\r\n \nein Löwe".encode())
    assert read(tmp_path / "p.txt") == [Prompt("a fox"), Prompt("ein Löwe")]


def test_labels_are_names_or_numbers_and_go_round(tmp_path):
    (tmp_path / "p.txt").write_text("3\nBag\n")
    assert [p.text for p in read_prompts(GenerateSettings("o", prompts=str(tmp_path / "p.txt")), 10)] == [3, "Bag"]
    for given_labels, expected in ((None, [0, 1, 2, 0, 1]), ("2, Bag", [2, "Bag", 2, "Bag", 2])):
        settings = GenerateSettings("o", class_labels=given_labels, num_prompts=5)
        assert [p.text for p in read_prompts(settings, 3)] == expected


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False), st.text(), st.none(), st.booleans()), max_size=6))
def test_a_column_is_of_one_kind_or_refused(values):
    prompts = [Prompt("x", {"c": value}) for value in values]
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 or kinds == {int, float}:
        expected = float if float in kinds else next(iter(kinds), str)
        assert column_types(prompts) == ({"c": expected} if values else {})
    else:
        with pytest.raises(ValueError, match="column 'c' is"):
            column_types(prompts)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", b"ok\n\xff\xfe\n", "p.txt, line 2 is not UTF-8"),
        ("p.txt", b"\n  \n", "holds no prompts"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl, line 2 is not JSON"),
        ("p.jsonl", b'"a"\n', "line 1 is not JSON of one object (it holds a str"),
        ("p.jsonl", b'{"text": "a", "n": 1}\n', "no column 'prompt'; its columns: text, n"),
        ("p.jsonl", b'{"prompt": null}\n', "line 1: the prompt is None"),
        ("p.jsonl", b'{"prompt": "a", "x": 1}\n{"prompt": "b", "x": "y"}\n', "column 'x' is int"),
        ("p.csv", b'prompt,n\na,1\n"b",2,3\n', "p.csv, line 3 has 3 fields, the header 2"),
        ("p.csv", b'prompt\n"a\n', "is not CSV"),
        ("p.csv", b"", "holds no prompts"),
        ("p.parquet", b"PAR1 no", "not readable Parquet"),
        ("p.doc", b"a", "has another ending; give a .txt"),
    ],
)
def test_unreadable_prompts_are_refused_with_the_line(kts, tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    code, _, err = kts("generate", "--prompts", name, "--output", "out", *SMALL)
    assert code == 2 and words in err and "Traceback" not in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "no output"),
        (["--output", "out", "--num-inference-steps", "0"], "steps is 0"),
        (["--output", "out", "--seed", "-1"], "seed is -1"),
        (["--output", "out", "--batch-size", "0"], "batch_size is 0"),
        (["--output", "out", "--format", "zip"], "choose one of imagefolder"),
        (["--output", "out", "--preset", "best"], "choose one of off"),
        (["--output", "out", "--beta-0", "0.2"], "at most 0.0524"),
        (["--output", "out", "--keep-top", "2"], "keep_top is 2 of 1"),
        (["--output", "out", "--screen-steps", "2"], "needs keep_top"),
        (["--output", "out", "--screen-keep", "2"], "needs screen_steps"),
        (["--output", "out", "--shard", "2/2"], "shard is '2/2'"),
        (["--output", "out", "--prompts", "none.txt"], "none.txt is no file"),
        (["--output", "out", "--prompts", "a.txt", "--class-labels", "1"], "both given"),
        (["--output", "out", "--class-labels", "0,Sneeker"], "prompt 2: there is no class 'Sneeker'; did you mean 'Sneaker'"),
        (["--output", "out", "--class-labels", "11"], "from 0 to 9"),
        (["--output", "out", "--height", "64"], "takes no height"),
        (["--output", "out", "--pipeline-args", "{sigma: [1]}"], "did you mean 'sigmas'"),
        (["--output", "out", "--pipeline-args", "{latents: 1}"], "pipeline_args sets 'latents'"),
        (["--output", "out", "--pipeline-args", "[1]"], "holds a list"),
        (["--output", "out", "--pipeline-args", "{sigmas: 2026-01-01}"], "give what JSON knows"),
        (["--output", "out", "--pipeline-args", "{sigmas: [x]}"], "does not run with these settings"),
        (["--output", "out", "--model", "nowhere"], "model 'nowhere' is no folder"),
        (["--output", "out", "--model", "no/where"], "cannot be downloaded"),
        (["--output", "out", "--model", "empty"], "is no pipeline folder"),
        (["--output", "out", "--model", "memorizing", "--guidance-scale", "2"], "does not run with these settings"),
        (["--output", "out", "--offload", "model"], "runs on the CPU"),
        (["--output", "out", "--log-with", "nothing"], "log_with is 'nothing'"),
        (["--output", "out", "--push-to-hub", "a/b/c"], "give owner/name"),
        (["--output", "memory://x", "--push-to-hub", "a/b"], "needs a local output"),
        (["--output", "nope://x"], "cannot be opened"),
        (["--output", "full"], "is not empty (it holds mine.txt)"),
        (
            ["--output", "out", "--config", "bad.yaml"],
            "a setting 'step', which does not exist; did you mean 'num_inference_steps'",
        ),
        (["--output", "out", "--config", "none.yaml"], "none.yaml cannot be read"),
        (["--output", "out", "--images-per-prompt", "4", "--keep-top", "1", "--screen-steps", "2"], "has 2 steps"),
        (["--output", "out", "--num-inference-steps", "many"], "valid integer"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(kts, tmp_path, args, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    (tmp_path / "bad.yaml").write_text("step: 3\n")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = kts("generate", *SMALL, *args)
    assert code == 2 and words in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_models_that_are_no_flow_or_too_large_are_refused(kts, tmp_path, monkeypatch):
    pipe = tiny_sd3()
    pipe.save_pretrained(tmp_path / "flow")
    pipe.scheduler = PNDMScheduler()
    pipe.save_pretrained(tmp_path / "pndm")
    broken = tmp_path / "broken"
    ClassConditionalFlowPipeline.from_pretrained(embedded_model()).save_pretrained(broken)
    weights = next(broken.glob("transformer/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "p.txt").write_text("a fox")
    prompts = [
        "--prompts",
        "p.txt",
        "--output",
        "out",
        "--num-inference-steps",
        2,
        "--pipeline-args",
        "{max_sequence_length: 32}",
    ]
    for model, more, words in (
        ("pndm", prompts, "not flow matching"),
        ("flow", [*prompts, "--height", 33], "divisible by"),
        ("flow", [*prompts, "--height", 10**7, "--width", 10**7], "does not run with these settings"),
        ("flow", ["--output", "out"], "there are no prompts"),
        ("broken", ["--output", "out"], "cannot be loaded"),
    ):
        code, _, err = kts("generate", "--model", model, *more)
        assert code == 2 and words in err and "Traceback" not in err and not (tmp_path / "out").exists()
    monkeypatch.setattr("diffusers_kts.generate.storage.shutil.disk_usage", lambda path: type("", (), {"free": 1000}))
    code, _, err = kts("generate", "--output", "out", "--num-prompts", 10)
    assert code == 2 and "10 samples need about" in err and not (tmp_path / "out").exists()


def test_a_model_of_the_hub_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    local, cached = tmp_path / "local", tmp_path / "models--some--flow"
    tiny_sd3().save_pretrained(local)
    snapshot = cached / "snapshots" / ("0" * 40)
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "blobs").mkdir()
    for path in filter(Path.is_file, local.rglob("*")):  # as the Hub's cache lies on the disk
        blob = cached / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(local)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    assert find_model("some/flow") == snapshot and fingerprint(snapshot) == fingerprint(local)
    weights = next(local.glob("transformer/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fingerprint(snapshot) != fingerprint(local)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--seed", 1], "seed is 0 there, 1 now"),
        (["--num-inference-steps", 3], "steps is 2 there, 3 now"),
        (["--model", "memorizing"], "weights is"),
        (["--class-labels", "1,2,3,4"], "prompt 1 is [0, {}] there, [1, {}] now"),
        (["--batch-size", 2], "batch_size is 8 there, 2 now"),
        (["--touchdown", 0.5], "touchdown is None there, 0.5 now"),
        (["--pipeline-args", "{sigmas: [1.0, 0.5]}"], "pipeline_args is"),
        (["--format", "parquet"], "format is"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(kts, tmp_path, change, words):
    base = {"--output": "out", "--class-labels": "0,1,2,3", "--num-inference-steps": 2}
    assert kts("generate", *(x for pair in base.items() for x in pair))[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    changed = base | {change[0]: change[1]}
    code, _, err = kts("generate", *(x for pair in changed.items() for x in pair))
    assert code == 2 and words in err and "Traceback" not in err
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


def test_saved_settings_make_the_same_again(kts, tmp_path):
    (tmp_path / "c.yaml").write_text("steps: 9\nbeta-0: 1e-2\nnum_prompts: 3\npipeline_args: {sigmas: [1.0, 0.5]}\n")
    assert kts("generate", "--config", "c.yaml", "--output", "a", "--seed", 4, "--num-inference-steps", 2)[0] == 0
    saved = yaml.safe_load((tmp_path / "a/config.yaml").read_text())
    assert (saved["num_inference_steps"], saved["seed"], saved["beta_0"]) == (2, 4, 0.01)
    assert set(saved) == {field.name for field in dataclasses.fields(GenerateSettings)}
    assert kts("generate", "--config", "a/config.yaml", "--output", "b")[0] == 0
    assert (tmp_path / "a/metadata.jsonl").read_bytes() == (tmp_path / "b/metadata.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_inference_steps": 2.5}, "steps is 2.5; give a whole number or nothing"),
        ({"num_inference_steps": True}, "steps is True"),
        ({"beta_0": "x"}, "beta_0 is 'x'; give a finite number or nothing"),
        ({"beta_0": float("nan")}, "beta_0 is nan"),
        ({"traces": "yes"}, "traces is 'yes'; give true or false"),
        ({"model": None}, "model is None; give text"),
        ({"pipeline_args": [1]}, "give a mapping"),
    ],
)
def test_values_of_the_wrong_kind(values, words):
    with pytest.raises(ValueError, match=words):
        GenerateSettings("out", **values)


@pytest.mark.parametrize(("package", "args"), [("pyarrow", ["--format", "parquet"]), ("pandas", ["--traces"])])
def test_a_missing_package_is_named_before_anything_is_written(kts, tmp_path, monkeypatch, package, args):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else found(name, *more))
    code, _, err = kts("generate", *SMALL, "--output", "out", *args)
    assert code == 2 and f"{package} is missing" in err and "diffusers-kts[generate]" in err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_tells_and_writes_nothing(kts, tmp_path):
    job = [
        "--class-labels",
        "Bag,Coat",
        "--images-per-prompt",
        6,
        "--keep-top",
        2,
        "--batch-size",
        4,
        "--num-inference-steps",
        2,
    ]
    code, out, _ = kts("generate", *job, "--dry-run", "--output", "out")
    assert code == 0 and not (tmp_path / "out").exists()
    assert "12 samples of 28 x 28 pixels: 2 prompts, 6 each, 2 kept." in out and "2 blocks of 6 samples, 4 in a call." in out
    assert kts("generate", *job, "--output", "out")[0] == 0
    assert "2 blocks are there already" in kts("generate", *job, "--dry-run", "--output", "out")[1]


def test_verify_refuses_what_is_no_output(kts, tmp_path):
    (tmp_path / "out/.kts").mkdir(parents=True)
    for name, words in (("nowhere", "holds no output"), ("out", "holds no output")):
        code, _, err = kts("verify", name)
        assert code == 2 and words in err
    (tmp_path / "out/.kts/manifest.json").write_text("{")
    code, _, err = kts("verify", "out")
    assert code == 2 and "cannot be read" in err and "Traceback" not in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    for file in (io.StringIO(), Terminal()):
        shown = progress.Progress(100, 20, Accelerator(cpu=True), file)
        shown.began -= 10
        shown.drew([0.5, 1.0])
        shown.update(60)
        shown.close()
        text = file.getvalue()
        assert "60/100" in text and "mean KPE/dim 0.75" in text and ("\r" in text) == file.isatty()
        if not file.isatty():
            assert text.splitlines()[0].startswith("60/100 images, 4 images/s, 00:10 left")


def test_trackers_get_the_course_of_the_job(kts, tmp_path):
    code, _, _ = kts("generate", *SMALL, "--output", "out", "--log-with", "tensorboard")
    events = b"".join(path.read_bytes() for path in (tmp_path / "out/.kts/logs").rglob("events*"))
    assert code == 0 and all(name in events for name in (b"images_per_second", b"kpe_per_dim"))
    assert kts("verify", "out")[0] == 0


def test_help_lists_every_setting(kts, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = kts("generate", "--help")
    assert code == 0 and "Default: imagefolder." in out
    assert all(f"--{field.name.replace('_', '-')}" in out for field in dataclasses.fields(GenerateSettings))


def test_options_can_be_listed_without_loading_diffusers():
    code = "import sys; from diffusers_kts.cli import generate, verify; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_examples_are_readable():
    folder = Path(__file__).parents[2] / "examples" / "generate"
    assert GenerateSettings.load(folder / "flux.yaml").batch_size == 4
    config = load_config_from_file(str(folder / "two_nodes.yaml"))
    assert (config.num_machines, config.num_processes) == (2, 16)
    subprocess.run(["bash", "-n", folder / "slurm_array.sh"], check=True)


def test_a_tuned_preset_is_taken_from_its_file(tmp_path):
    path = tmp_path / "preset.json"
    Preset("tuned", "kts tune", 12, alpha_0=0.02, touchdown=0.9).save(path)
    taken = GenerateSettings(output="out", preset=str(path), beta_0=0.01)
    assert taken.num_inference_steps == 12 and taken.preset is None
    assert taken.shaping.to_dict() == PRESETS["off"] | {"alpha_0": 0.02, "touchdown": 0.9, "beta_0": 0.01}
    assert GenerateSettings(output="out", preset=str(path), num_inference_steps=7).num_inference_steps == 7
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not a preset"):
        GenerateSettings(output="out", preset=str(path))
    with pytest.raises(FileNotFoundError, match=r"gone.json does not exist"):
        GenerateSettings(output="out", preset="gone.json")
