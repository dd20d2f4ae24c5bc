"""``kts demo`` as a person runs it: files, numbers, refusals."""

import json
import subprocess
import sys

import pandas as pd
import pytest
import torch
from tiny_pipelines import tiny_sd3

from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, __version__, embedded_model
from diffusers_kts.demo import DemoSettings, run_demo
from diffusers_kts.demo.job import FILES
from diffusers_kts.seeding import sample_seed

SMALL = ["--num-samples", "3", "--num-inference-steps", "5", "--model", "memorizing"]


def test_demo_writes_what_it_measured(kts, tmp_path):
    code, out, _ = kts("demo", *SMALL, "--seed", 5)
    assert code == 0 and "plain Euler" in out and "touchdown 0.7" in out
    folder = tmp_path / "kts-demo"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    rows, summary = pd.read_parquet(folder / "kpe.parquet"), json.loads((folder / "summary.json").read_text())
    assert len(rows) == 9 and rows["seed"].eq(5).all()
    assert rows["label"].tolist() == [0, 1, 2] * 3 and rows["class_name"].iloc[1] == "Trouser"
    needed = {f"{e}_energy_{part}" for e in ("path", "model") for part in ("total", "early", "late")} | {"per_dim", "d1", "d2"}
    assert needed <= set(rows.columns)
    for name, sampler in summary["samplers"].items():
        own = rows[rows["sampler"] == name]
        assert sampler["energy"]["path_energy_total"]["mean"] == pytest.approx(own["path_energy_total"].mean())
        assert sampler["f_mem"]["count"] == own["memorized"].sum() == (own["d1"] < own["d2"] / 3).sum()
    assert summary["samplers"]["touchdown"]["network_calls"] < summary["samplers"]["euler"]["network_calls"] == 5
    assert summary["versions"]["diffusers_kts"] == __version__

    # one sample drawn again by hand, from what its row says
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.01, beta_0=0.01)
    row = rows[rows["sampler"] == "kts"].iloc[2]
    noise = torch.Generator().manual_seed(int(row["generator_seed"]))
    pipe(int(row["label"]), generator=noise, num_inference_steps=5)
    assert float(pipe.scheduler.kpe.path_energy.total) == pytest.approx(row["path_energy_total"], rel=1e-5)


def test_options_do_what_they_say(kts, tmp_path):
    shaping = ["--alpha-0", 0.2, "--beta-0", 0.03, "--tau-split", 0.5, "--k", 2, "--late-schedule", "linear"]
    code, out, _ = kts("demo", *SMALL, *shaping, "--touchdown", 0.4, "--output", "here", "--model", "generalizing")
    assert code == 0 and "KTS 0.2 / 0.03" in out and "training images of this model are not known" in out
    summary = json.loads((tmp_path / "here" / "summary.json").read_text())
    used = summary["samplers"]["kts"]["shaping"]
    assert (used["alpha_0"], used["beta_0"], used["tau_split"], used["k"], used["late_schedule"]) == (
        0.2,
        0.03,
        0.5,
        2,
        "linear",
    )
    assert summary["samplers"]["touchdown"]["shaping"]["touchdown"] == 0.4
    assert summary["samplers"]["kts"]["f_mem"] is None and not (tmp_path / "here" / "neighbors.png").exists()


def test_noise_depends_on_seed_and_number_alone(tmp_path):
    def energies(folder, **settings):
        run_demo(DemoSettings(output=tmp_path / folder, num_inference_steps=2, **settings), show_progress=False)
        rows = pd.read_parquet(tmp_path / folder / "kpe.parquet")
        return rows[rows["sampler"] == "euler"]["path_energy_total"].tolist()

    few, many, other = energies("a", num_samples=2), energies("b", num_samples=4), energies("c", num_samples=2, seed=1)
    assert few == pytest.approx(many[:2], rel=1e-5) and few[0] != pytest.approx(other[0], rel=1e-4)
    assert len({sample_seed(seed, i) for seed in range(3) for i in range(1000)}) == 3000


def test_what_is_there_stays_there_unless_told(kts, tmp_path):
    folder = tmp_path / "kts-demo"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    code, _, err = kts("demo", *SMALL)
    assert code == 2 and "--overwrite" in err and "Traceback" not in err
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]
    assert kts("demo", *SMALL, "--overwrite")[0] == 0
    first = (folder / "summary.json").read_text()
    assert kts("demo", *SMALL, "--overwrite", "--guidance-scale", 3)[0] == 2  # fails once it draws
    assert (folder / "summary.json").read_text() == first and (folder / "mine.txt").read_text() == "keep"
    assert {path.name for path in folder.iterdir()} == {*FILES, "mine.txt"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--beta-0", "0.2"], "at most 0.0524"),
        (["--alpha-0", "nan"], "alpha_0 is nan"),
        (["--num-inference-steps", "0"], "num_inference_steps is 0"),
        (["--num-samples", "-1"], "num_samples is -1"),
        (["--early-schedule", "cosine"], "choose one of"),
        (["--touchdown", "1.5"], "touchdown is 1.5"),
        (["--model", "no-such-folder"], "is no folder"),
        (["--model", "empty"], "is no pipeline folder: model_index.json is missing"),
        (["--model", "broken"], "cannot be loaded"),
        (["--model", "sd3"], "there are no prompts"),
        (["--output", "file"], "is a file"),
        (["--output", "file/below"], "cannot write"),
        (["--training-images", "file"], "cannot be read"),
        (["--alpha0", "1"], "there is no option --alpha0; did you mean --alpha-0?"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_code_2(kts, tmp_path, args, words):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "empty").mkdir()
    if "sd3" in args:
        tiny_sd3().save_pretrained(tmp_path / "sd3")
    if "broken" in args:
        ClassConditionalFlowPipeline.from_pretrained(embedded_model()).save_pretrained(tmp_path / "broken")
        weights = next((tmp_path / "broken").glob("transformer/*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = kts("demo", *SMALL, *args)
    assert code == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "kts-demo").exists()


def test_a_diverging_sample_spoils_no_other(tmp_path):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if "embedding_table" in name:
                weight[1] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    images = embedded_model() / "training_images.npz"
    settings = DemoSettings(
        model=str(tmp_path / "model"), output=tmp_path / "out", num_samples=3, num_inference_steps=2, training_images=images
    )
    with pytest.warns(RuntimeWarning, match="not finite for sample 1 from step 0"):
        result = run_demo(settings, show_progress=False)
    rows = pd.read_parquet(tmp_path / "out" / "kpe.parquet")
    assert rows["nonfinite_step"].tolist() == [-1, 0, -1] * 3
    total = result.summary["samplers"]["euler"]["energy"]["path_energy_total"]
    assert total["mean"] == pytest.approx(rows["path_energy_total"].iloc[[0, 2]].mean())


@pytest.mark.parametrize("package", ["typer", "pyarrow"])
def test_a_missing_package_names_the_extra(package):
    code = f"import sys; sys.modules[{package!r}] = None; from diffusers_kts.cli import main; sys.argv[1:] = ['demo']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and f"{package} is missing" in done.stderr
    assert "diffusers-kts[demo]" in done.stderr
    assert "Traceback" not in done.stderr


def test_stopping_leaves_nothing(kts, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffusers_kts.demo.job._draw", stop)
    code, _, err = kts("demo")
    assert code == 130 and "Traceback" not in err and not (tmp_path / "kts-demo").exists()


def test_command_is_installed():
    for command in (["-m", "diffusers_kts"], ["-m", "diffusers_kts.cli"]):
        done = subprocess.run([sys.executable, *command, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == f"kts {__version__}"
