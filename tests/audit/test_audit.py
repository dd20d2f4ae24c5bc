"""``kts audit`` as a person runs it: what the report says is what was drawn, stopped or not; controls; refusals."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_pipelines import tiny_sd3
from typer.main import get_command

from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.audit import job
from diffusers_kts.audit.copies import CopyMeasures
from diffusers_kts.audit.job import FILES, run_audit
from diffusers_kts.audit.measures import Findings, separate
from diffusers_kts.audit.sampling import SAMPLERS, AuditSampler
from diffusers_kts.audit.settings import AuditSettings
from diffusers_kts.audit.store import BLOCKS, MANIFEST, begin
from diffusers_kts.audit.training import TrainingImages
from diffusers_kts.audit.verdict import verdict
from diffusers_kts.cli.app import app as commands
from diffusers_kts.features.feature_space import FeatureSpace
from diffusers_kts.features.frechet import DensityCoverage, PrecisionRecall
from diffusers_kts.gain import Gain
from diffusers_kts.kpe.trace import KPETrace
from diffusers_kts.memorization import MemorizationDetector, detector_fit
from diffusers_kts.memorization.fraction import Memorization, paired_difference
from diffusers_kts.memorization.neighbors import nearest_neighbors
from diffusers_kts.sampling.prompts import Prompt
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.shaping import Shaping


def pooled(images):
    """A feature network for the tests: 7x7 means."""
    return torch.nn.functional.avg_pool2d(images, 4)


def small(output, **changes):
    changes = {"num_samples": 10, "num_inference_steps": 10, "batch_size": 4, "features": "test_audit:pooled"} | changes
    return AuditSettings(output=output, **{"tau_split": 0.5} | changes)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """The folder of a finished audit, and what it returned."""
    folder = tmp_path_factory.mktemp("audit") / "out"
    return folder, run_audit(small(folder), show_progress=False)


def test_a_detector_is_fitted_where_there_are_enough_of_both_kinds(audited, monkeypatch, tmp_path):
    _, result = audited
    assert result.report["detector"] is None and any("No detector of memorized samples" in note for note in result.notes)
    monkeypatch.setattr(detector_fit, "FEWEST", 5)
    result = run_audit(small(tmp_path / "out", num_samples=30, batch_size=30), show_progress=False)
    fitted = MemorizationDetector.load(tmp_path / "out" / "detector.safetensors")
    assert (
        result.report["detector"]["scores"] == fitted.scores
        and "false alarms" in (tmp_path / "out" / "report.html").read_text()
    )
    plain = KPETrace.load(tmp_path / "out" / BLOCKS / "000000" / "euler.kpe.safetensors")
    digest = result.report["audit"]["sha256"]["model"]
    predicted = fitted.probability(plain, model=digest, guidance_scale=1.0)
    hits = result.findings["euler"].memorization.is_memorized
    assert predicted[hits].mean() > predicted[~hits].mean()
    with pytest.raises(ValueError, match=r"guidance_scale 1\.0, this run has 2\.0"):
        fitted.probability(plain, guidance_scale=2.0)


def test_the_report_says_what_was_drawn(audited):
    folder, result = audited
    report, rows = json.loads((folder / "report.json").read_text()), pd.read_parquet(folder / "samples.parquet")
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST, BLOCKS} and report == result.report
    jsonschema.validate(report, json.loads(Path(job.__file__).with_name("report.schema.json").read_text()))
    assert len(rows) == 10 * len(SAMPLERS) and rows["subject"].iloc[1] == "Trouser"
    for name, sampler in report["samplers"].items():
        own = rows[rows["sampler"] == name]
        assert sampler["f_mem"]["count"] == own["memorized"].sum() == (own["d1"] < own["d2"] / 3).sum()
        assert 0 <= sampler["precision"] <= 1 and sampler["frechet_distance"] > 0
        assert own["path_energy_total"].isna().all() == (name in ("noise", "finished"))
    plain, kts, even = (report["samplers"][name] for name in ("euler", "kts", "even"))
    for found in result.findings.values():  # what tells a late from an early energy is the same for all
        assert found.trace is None or found.trace.tau_split == 0.5
    assert plain["net_displacement"] == pytest.approx(1) and plain["against_plain"] is None
    assert (
        kts["net_displacement"] == pytest.approx(even["net_displacement"], abs=1e-6)
        and abs(kts["net_displacement"] - 1) > 1e-3
    )
    assert report["samplers"]["touchdown"]["network_calls"] < plain["network_calls"] == 10
    assert report["neighbor_space"] == "pixels" and report["frechet_space"] == "test_audit:pooled"
    assert any("held-out" in note for note in report["notes"]) and any("biased" in note for note in report["notes"])

    # one sample drawn again by hand, from what its row says, and measured
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.01, beta_0=0.01, tau_split=0.5)
    row = rows[(rows["sampler"] == "kts") & (rows["sample"] == 7)].iloc[0]
    noise = torch.Generator().manual_seed(int(row["generator_seed"]))
    image = pipe(row["subject"], generator=noise, num_inference_steps=10, output_type="pt").images
    assert float(pipe.scheduler.kpe.path_energy.total) == pytest.approx(row["path_energy_total"], rel=1e-5)
    with np.load(embedded_model() / "training_images.npz") as archive:
        training = torch.from_numpy(archive["images"]).float()[:, None] / 255
    distances, indices = nearest_neighbors(image, training)
    assert distances[0].tolist() == pytest.approx([row["d1"], row["d2"]], abs=0.1)  # samples are kept in 8 bits
    assert int(indices[0, 0]) == row["training_image_1"]


def test_the_page_opens_offline_with_all_pictures_inside(audited):
    folder, result = audited
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and page.count("<svg") == 4
    loads = re.findall(r"(?:src|xlink:href|href)=\"([^\"]+)\"", page) + re.findall(r"url\(([^)]+)\)", page)
    assert all(address.startswith(("data:", "#")) for address in loads) and "<script" not in page
    for sentence in result.verdict:
        assert sentence.replace("'", "&#39;") in page
    for name in SAMPLERS:
        assert result.findings[name].heading in page


def test_controls_are_made_of_the_plain_and_the_shaped_sample(tmp_path):
    settings = small(tmp_path, seed=3, alpha_0=0.0, beta_0=0.03, tau_split=0.6, num_inference_steps=16)
    sampler = Sampler(embedded_model(), settings, torch.device("cpu"))
    model = AuditSampler(sampler, [Prompt(i) for i in range(10)])
    calls = []
    batches = model.draw(range(5), settings.samplers(), (28, 28), lambda name, steps: calls.append((name, steps)))
    assert {name: sum(steps for n, steps in calls if n == name) for name, _ in calls} == dict.fromkeys(
        ("euler", "kts", "touchdown", "even"), 16
    )
    plain, shaped, noisy, ended = (batches[name].images for name in ("euler", "kts", "noise", "finished"))

    def rms(x):
        return x.square().mean().sqrt()

    assert 0.4 < rms(noisy - plain) / rms(shaped - plain) < 1.3  # clipping takes some away
    assert rms(ended - plain) < 0.5 * rms(shaped - plain)
    assert torch.cosine_similarity((noisy - plain).flatten(), (shaped - plain).flatten(), 0).abs() < 0.5
    again = model.draw(range(3, 5), settings.samplers(), (28, 28), lambda name, steps: None)
    for name in SAMPLERS:
        torch.testing.assert_close(again[name].images, batches[name].images[3:], atol=1e-3, rtol=1e-3)


def test_a_pipeline_decodes_what_it_is_given(tmp_path):
    """SD3 with a VAE: the latents of a run, handed back, give its images."""
    tiny_sd3().save_pretrained(tmp_path)
    settings = small(tmp_path, model=str(tmp_path), height=32, width=32, num_inference_steps=3)
    model = AuditSampler(Sampler(tmp_path, settings, torch.device("cpu")), [Prompt("a fox"), Prompt("a bear")])
    drawn = model.run(range(3), Shaping(alpha_0=0.0, beta_0=0.0))
    assert drawn.images.shape == (3, 3, 32, 32)
    torch.testing.assert_close(model.decode(range(3), drawn.latents), drawn.images)
    assert not torch.allclose(model.decode(range(3), drawn.latents + 1), drawn.images)


def test_a_text_pipeline_against_a_folder_of_pictures(tmp_path, kts):
    tiny_sd3().save_pretrained(tmp_path / "model")
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / ("more" if i % 2 else ".") / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("a fox\n\na bear\n")
    args = (
        "--model model --training-images pictures --prompts prompts.txt --num-samples 8 --num-inference-steps 3 --batch-size 8"
    )
    args += " --num-inference-steps 3 --height 32 --width 32 --image-size 8 --neighbors features --features pixels"
    code, out, err = kts("audit", *args.split())
    assert code == 0, err
    assert "Plain sampling repeats" in out and "Traceback" not in err
    rows = pd.read_parquet(tmp_path / "kts-audit" / "samples.parquet")
    report = json.loads((tmp_path / "kts-audit" / "report.json").read_text())
    assert rows["subject"].iloc[:3].tolist() == ["a fox", "a bear", "a fox"]
    assert (report["training_images"]["count"], report["training_images"]["distinct"]) == (9, 9)
    assert report["audit"]["settings"]["image_size"] == 8
    assert any("Training images were cropped to the middle and scaled to 8x8" in note for note in report["notes"])


def contents(folder):
    return (folder / "report.json").read_bytes(), pd.read_parquet(folder / "samples.parquet")


def same(a, b):
    return contents(a)[0] == contents(b)[0] and contents(a)[1].equals(contents(b)[1])


def test_stopped_and_started_again_it_ends_where_an_uninterrupted_audit_does(audited, tmp_path, monkeypatch):
    folder, draw, drawn = tmp_path / "out", AuditSampler.draw, []

    def stop_at_the_second(self, block, *args):
        if drawn:
            raise KeyboardInterrupt
        drawn.append(block)
        return draw(self, block, *args)

    monkeypatch.setattr(AuditSampler, "draw", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_audit(small(folder), show_progress=False)
    assert not (folder / "report.json").exists()
    (folder / BLOCKS / ".partial-000001").mkdir()  # of a kill while a block was written

    def note(self, block, *args):
        drawn.append(block)
        return draw(self, block, *args)

    monkeypatch.setattr(AuditSampler, "draw", note)
    run_audit(small(folder), show_progress=False)
    assert drawn == [range(0, 4), range(4, 8), range(8, 10)] and same(folder, audited[0])
    assert not list((folder / BLOCKS).glob(".*"))

    damaged = folder / BLOCKS / "000001" / "images.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    run_audit(small(folder), show_progress=False)
    assert drawn[3:] == [range(4, 8)] and same(folder, audited[0])


def test_killed_in_a_process_of_its_own_it_goes_on(audited, tmp_path):
    args = "--output out --num-samples 10 --num-inference-steps 10 --batch-size 4 --tau-split 0.5 --features test_audit:pooled"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusers_kts", "audit", *args.split()],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 600
        while not (tmp_path / "out" / BLOCKS / "000000").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out" / "report.json").exists()
    run_audit(small(tmp_path / "out"), show_progress=False)
    assert same(tmp_path / "out", audited[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_inference_steps": 5}, "num_inference_steps 10, not 5"),
        ({"beta_0": 0.02}, r"shaping .*'beta_0': 0.01.*not .*'beta_0': 0.02"),
        ({"model": "generalizing", "training_images": embedded_model() / "training_images.npz"}, "another model"),
        ({"training_images": "other"}, "another training_images"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(audited, tmp_path, changes, words):
    folder, before = audited[0], contents(audited[0])
    if "other" in changes.values():
        np.savez(tmp_path / "other.npz", images=np.random.default_rng(0).integers(0, 256, (9, 28, 28), np.uint8))
        changes = {"training_images": tmp_path / "other.npz"}
    with pytest.raises(ValueError, match=words):
        run_audit(small(folder, **changes), show_progress=False)
    assert contents(folder)[0] == before[0]


def test_a_digest_that_an_earlier_version_did_not_note_is_not_compared(tmp_path):
    settings, now = small(tmp_path / "out"), {"model": "a", "features": "b"}
    begin(settings, {"settings": {"seed": 0}, "sha256": {"model": "a"}})
    before = (tmp_path / "out" / MANIFEST).read_bytes()
    begin(settings, {"settings": {"seed": 0}, "sha256": now})
    assert (tmp_path / "out" / MANIFEST).read_bytes() == before
    with pytest.raises(ValueError, match="another model"):
        begin(settings, {"settings": {"seed": 0}, "sha256": now | {"model": "c"}})
    begin(small(tmp_path / "new"), {"sha256": now})
    with pytest.raises(ValueError, match="another features"):
        begin(small(tmp_path / "new"), {"sha256": now | {"features": "c"}})


def test_a_damaged_manifest_is_named(audited, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_text("[1]")
    with pytest.raises(ValueError, match="audit.json is damaged"):
        run_audit(small(tmp_path / "out"), show_progress=False)


def test_overwrite_throws_an_audit_away_and_nothing_else(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="it holds mine.txt"):
        run_audit(small(folder), show_progress=False)
    run_audit(small(folder, num_samples=8, num_inference_steps=2, overwrite=True), show_progress=False)
    first = contents(folder)[0]
    run_audit(small(folder, num_samples=8, num_inference_steps=2, seed=1, overwrite=True), show_progress=False)
    assert contents(folder)[0] != first and (folder / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--num-samples", "3"], "num_samples is 3; give at least 8"),
        (["--num-inference-steps", "1"], "num_inference_steps is 1"),
        (["--beta-0", "0.2"], "at most 0.0524"),
        (["--threshold", "0"], "threshold is 0"),
        (["--neighbors", "words"], "pixels or features"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--model", "no-such-folder"], "is no folder"),
        (["--model", "generalizing"], "--training-images"),
        (["--model", "sd3", "--training-images", "pictures"], "--prompts"),
        (["--prompts", "class.txt"], "there is no class 'no class'"),
        (["--prompts", "pictures"], "give a .txt, .jsonl, .csv or .parquet file"),
        (["--height", "28"], "takes no height"),
        (["--guidance-scale", "3"], "use guidance_scale=1"),
        (["--training-images", "file"], "cannot be read"),
        (["--training-images", "pictures"], "holds no pictures"),
        (["--training-images", "small.npy"], "the model draws"),
        (["--reference", "small.npy"], "the model draws"),
        (["--reference", "few.npy"], "3 reference images"),
        (["--training-images", "same.npy"], "1 are distinct"),
        (["--features", "no_such_module:f"], "cannot be loaded"),
        (["--features", "file"], "neither TorchScript nor .pt2; give a file of torch.jit.save"),
        (["--features", "state.pt"], "weights alone are no network"),
        (["--limit", "5"], "limit is 5.0; give a share between 0 and 1"),
        (["--training-images", "animated"], "1 pictures in animated are of a format that is not read, such as b.gif"),
        (["--features", "inception"], "torch-fidelity"),
        (["--features", "math:sqrt"], "fails on"),
        (["--output", "file"], "is a file"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_code_2(kts, tmp_path, args, words):
    (tmp_path / "file").write_text("some text")
    (tmp_path / "class.txt").write_text("no class")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "animated").mkdir()
    (tmp_path / "animated" / "b.gif").touch()
    torch.save({}, tmp_path / "state.pt")
    for name, shape in (("small", (5, 14, 14)), ("few", (3, 28, 28)), ("same", (5, 28, 28))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape, np.uint8))
    if "sd3" in args:
        tiny_sd3().save_pretrained(tmp_path / "sd3")
    code, _, err = kts("audit", "--num-samples", 8, "--num-inference-steps", 2, *args)
    assert code == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "kts-audit").exists()


def test_a_diverging_sample_spoils_no_other(tmp_path):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            if "embedding_table" in name:
                weight[1] = torch.nan
    pipe.save_pretrained(tmp_path / "model")
    images = embedded_model() / "training_images.npz"
    with pytest.warns(RuntimeWarning, match="not finite"):
        settings = small(tmp_path / "out", model=str(tmp_path / "model"), num_samples=8, training_images=images)
        result = run_audit(settings, show_progress=False)
    assert any("1 samples of plain Euler diverged" in note for note in result.notes)
    rows = pd.read_parquet(tmp_path / "out" / "samples.parquet")
    assert rows["nonfinite_step"].iloc[:3].tolist() == [-1, 0, -1] and rows["d1"].notna().all()


def test_authpct_of_every_call_is_that_of_all_distances(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (31, 8, 8), np.uint8)
    pixels[30] = pixels[4]  # not distinct
    np.save(tmp_path / "images.npy", pixels)
    training = TrainingImages.load(tmp_path / "images.npy", (1, 8, 8), False)
    known = training.images[:30].flatten(1)
    spacing = (torch.cdist(known, known) + torch.diag(torch.full((30,), torch.inf))).amin(1)
    measures = CopyMeasures(training, training.images.flatten(1), FeatureSpace("pixels", lambda x: x), 1 / 3)
    for seed in range(3):
        samples = training.images[seed:30:2]
        noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(seed))
        samples = (samples + torch.linspace(0.1, 1, len(samples)).view(-1, 1, 1, 1) * noise).clamp(0, 1)
        apart = torch.cdist(samples.flatten(1), known).min(1)
        expected = int((apart.values > spacing[apart.indices]).sum())
        found = measures(samples, samples.flatten(1))["pixels"]["authpct"]["samples"]
        assert found["count"] == expected and 0 < expected < found["n"] == len(samples)


def test_separation_is_the_share_of_pairs_in_order():
    g = torch.Generator().manual_seed(0)
    values, memorized = torch.rand(60, generator=g), torch.rand(60, generator=g) < 0.3
    values[5] = values[6] = 0.5  # a tie counts half
    values[9] = torch.nan
    kept = values.isfinite()
    a, b = values[kept & memorized], values[kept & ~memorized]
    pairs = (a[:, None] > b).float() + 0.5 * (a[:, None] == b)
    found = separate(values, memorized)
    assert found.auc == pytest.approx(pairs.mean().item()) and found.interval()[0] < found.auc < found.interval()[1]
    assert separate(values, memorized & False) is None


def findings(counts):
    """Findings of 200 samples per sampler; the first ``counts[name]`` are memorized."""
    found = {}
    for name in SAMPLERS:
        is_memorized = torch.arange(200) < counts[name]
        distances = torch.stack([torch.where(is_memorized, 0.1, 0.9), torch.ones(200)], 1)
        memory = Memorization(distances, torch.zeros(200, 2, dtype=torch.int64), "pixels", 1 / 3, 50, 50)
        change = paired_difference(is_memorized, found["euler"].memorization.is_memorized) if found else None
        quality = PrecisionRecall(1.0, 1.0, 3), DensityCoverage(1.0, 1.0, 3)
        found[name] = Findings(name, torch.zeros(200, 1, 2, 2), None, memory, (0, 1), change, 7.0, *quality, {}, {})
    return found


def test_the_verdict_claims_no_more_than_the_controls_allow():
    counts = dict.fromkeys(SAMPLERS, 100)
    assert "KTS shows no significant difference" in verdict(findings(counts), "pixels")[1]
    assert "KTS shows no significant difference" in verdict(findings(counts | {"kts": 96}), "pixels")[1]
    assert "KTS raises that share to 65.0%" in verdict(findings(counts | {"kts": 130}), "pixels")[1]
    lowered = verdict(findings(counts | {"kts": 40}), "pixels")
    assert "KTS lowers that share to 20.0%" in lowered[1] and "its shape counts" in lowered[2]
    assert "does not explain it all" in lowered[3] and "may be all of the fall" in lowered[4]
    explained = verdict(findings(counts | {"kts": 40, "even": 42, "noise": 35, "finished": 60, "touchdown": 10}), "pixels")
    assert (
        "evenly leaves 21.0%; KTS is not significantly below it" in explained[2] and "noise may explain it all" in explained[3]
    )
    assert "not all of the fall comes from stopping early" in explained[4]
    assert "Touchdown lowers that share to 5.0%" in explained[5] and "Frechet distance in pixels" in explained[6]


def test_every_setting_has_an_option():
    options = {parameter.name for parameter in get_command(commands).commands["audit"].params}
    assert set(vars(AuditSettings())) | set(vars(Gain())) <= options
