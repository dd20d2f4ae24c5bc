"""``kts tune``: known optima are found, noise is not recommended, studies outlive interruptions and are shared."""

import contextlib
import hashlib
import json
import multiprocessing
import shutil
import sqlite3
import time

import numpy as np
import optuna
import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import TINY, tiny_sd3

from diffusers_kts import PRESETS, ClassConditionalFlowPipeline, KTSFlowMatchScheduler, load_preset
from diffusers_kts.features.frechet import FeatureStatistics
from diffusers_kts.gain import SCHEDULES, Gain
from diffusers_kts.presets import Preset
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.tune.halving import batches, beaten_twice, dominates, halves, rungs
from diffusers_kts.tune.job import tune
from diffusers_kts.tune.objectives import Frechet, MemorizedShare, Objective
from diffusers_kts.tune.recommend import candidate, compare, front, is_recommended
from diffusers_kts.tune.settings import TuneSettings
from diffusers_kts.tune.space import NUMBERS, Space, active

optuna.logging.set_verbosity(optuna.logging.WARNING)
LAUNCH = {"beta_0": 0.0, "touchdown": None, "early_schedule": "linear", "late_schedule": "linear"}  # leaves alpha_0, tau_split


def launch_off(images, trace):
    """Best at alpha_0 = 0.03."""
    return -((trace.settings["alpha_0"] - 0.03) ** 2)


def launch(images, trace):
    return torch.full((len(images),), trace.settings["alpha_0"])


def noise(images, trace):
    """A number per sample that any change of the image, however small, draws anew."""
    seeds = [int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:4], "big") for image in images]
    return torch.tensor([np.random.default_rng(seed).standard_normal() for seed in seeds])


def spread(images, trace):
    return images.flatten(1).std(1)


def broken(images, trace):
    raise RuntimeError("no idea")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A pipeline of three classes and 4x4 pixels."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=1, sample_size=4, patch_size=2,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tune") / "model"
    ClassConditionalFlowPipeline(network, FlowMatchEulerDiscreteScheduler()).save_pretrained(folder)
    images = np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8)
    np.savez(folder / "training_images.npz", images=images)
    return folder


def small(model, output, **changes):
    given = {
        "objectives": (launch_off,),
        "trials": 4,
        "num_samples": 32,
        "fresh_samples": 40,
        "num_inference_steps": 2,
        "features": "pixels",
    }
    return TuneSettings(model=str(model), output=output, **given | changes)


def run(*args, **changes):
    return tune(small(*args, **changes), show_progress=False)


@pytest.fixture(scope="module")
def tuned(model, tmp_path_factory):
    """The folder of a finished study of `launch_off`, and what it returned."""
    folder = tmp_path_factory.mktemp("tuned") / "out"
    return folder, run(model, folder, trials=16, fixed=LAUNCH)


# the space


class Chosen:
    """A trial whose numbers hypothesis chooses, the ends of their ranges among them."""

    def __init__(self, data):
        self.data = data

    def suggest_float(self, name, low, high):
        return self.data.draw(st.floats(low, high), name)

    def suggest_int(self, name, low, high, log):
        return self.data.draw(st.integers(low, high), name)

    def suggest_categorical(self, name, choices):
        return self.data.draw(st.sampled_from(choices), name)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_nothing_is_proposed_that_the_scheduler_or_the_user_refuses(data):
    limits = NUMBERS | {"beta_0": (0.0, 0.06)}
    chosen = {name: sorted(data.draw(st.tuples(st.floats(*ends), st.floats(*ends)), name)) for name, ends in limits.items()}
    how = {name: data.draw(st.sampled_from(["free", "fixed", "range"]), name) for name in limits}
    fixed = {name: ends[0] for name, ends in chosen.items() if how[name] == "fixed"}
    ranges = {name: ends for name, ends in chosen.items() if how[name] == "range"}
    ranges["late_schedule"] = data.draw(st.lists(st.sampled_from(SCHEDULES), min_size=1, unique=True))
    try:
        space = Space(7, fixed, ranges)
    except ValueError as error:  # a landing that the largest k does not allow
        low = 0 if how["beta_0"] == "free" else chosen["beta_0"][0]
        k = {"free": NUMBERS["k"][1], "fixed": chosen["k"][0], "range": chosen["k"][1]}[how["k"]]
        assert "give at most" in str(error) and "exponential" in ranges["late_schedule"]
        assert low > Gain(beta_0=0.0, k=k).largest_beta_0
        return
    setting = space.propose(Chosen(data))
    KTSFlowMatchScheduler(**setting.shaping)
    parts = {name: setting.shaping[name] for name in active(setting.shaping)}
    for name, value in parts.items():
        if name in fixed:
            assert value == fixed[name]
        elif name == "late_schedule":
            assert value in ranges[name]
        elif name in ranges and value not in (0, None):
            assert ranges[name][0] <= value <= ranges[name][1]


def test_a_study_begins_with_the_presets_of_its_space():
    study, space = optuna.create_study(), Space(30, {}, {"num_inference_steps": (10, 40)})
    for start in space.starts():
        study.enqueue_trial(start)
    proposed = [space.propose(study.ask()) for _ in space.starts()]
    assert [setting.shaping for setting in proposed] == [preset for name, preset in PRESETS.items() if name != "off"]
    assert {setting.num_inference_steps for setting in proposed} == {30}
    assert len(Space(30, {"touchdown": 0.7}, {}).starts()) == len(Space(30, {"tau_split": 0.5}, {}).starts()) == 1


@pytest.mark.parametrize(
    ("fixed", "ranges", "words"),
    [
        ({"alpha0": 0}, {}, "did you mean 'alpha_0'"),
        ({"k": 3.0}, {"k": (1, 2)}, "k is fixed and has a range"),
        ({}, {"alpha_0": (0.1, 0.0)}, "lowest and highest"),
        ({}, {"early_schedule": ["cosine"]}, "has 'cosine'"),
        ({}, {"late_schedule": []}, "is empty"),
        ({}, {"num_inference_steps": (0, 5)}, "num_inference_steps is 0 to 5"),
        ({"tau_split": 1.5}, {}, "tau_split is 1.5"),
        ({"touchdown": 2.0}, {}, "touchdown"),
        ({"beta_0": 0.05}, {}, "beta_0 is 0.05.*give at most 0.002485"),
        ({"alpha_0": "much"}, {}, "alpha_0 is 'much'"),
    ],
)
def test_a_space_that_cannot_be_is_refused(fixed, ranges, words):
    with pytest.raises(ValueError, match=words):
        Space(10, fixed, ranges)


# halving and the rule


@given(st.integers(2, 9), st.integers(1, 40))
def test_batches_cover_every_sample_once_and_cross_no_rung(sixteenths, batch_size):
    n = 16 * sixteenths
    ends = [0, *rungs(n)]
    found = [batches(a, b, n, batch_size) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    assert [i for rung in found for batch in rung for i in batch] == list(range(n))
    assert all(len(batch) <= batch_size for rung in found for batch in rung)
    assert n // 16 in {batch.stop for batch in found[0]}


rows = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=12)


@given(rows, st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_the_front_dominates_all_others_and_nothing_dominates_it(values, signs):
    best = front(values, signs)
    for i, row in enumerate(values):
        assert any(dominates(other, row, signs) for other in values) == (i not in best)
        if i not in best:
            assert any(dominates(values[j], row, signs) for j in best)


def test_a_setting_stops_when_another_beats_it_in_both_halves():
    own = [[1.0, 5.0], [1.0, 5.0]]
    better = [[0.9, 4.0], [0.5, 4.9]]
    assert beaten_twice(own, [own, better], [1, 1]) and not beaten_twice(own, [better], [1, -1])
    assert not beaten_twice(own, [[[0.9, 4.0], [1.5, 4.0]], [[0.0, 6.0], [0.0, 6.0]], [[0.9, 4.0], [0.9, 5.0]]], [1, 1])


def test_halves_see_as_many_samples_as_plain_sampling_has():
    g = torch.Generator().manual_seed(0)
    frechet = Frechet("frechet", "minimize", lambda s: s, reference=FeatureStatistics.of(torch.randn(99, 3, generator=g)))
    objectives = [Objective("mean", "minimize", lambda s: s), frechet]
    plain, own = ([torch.randn(n, generator=g), torch.randn(n, 3, generator=g)] for n in (16, 8))
    first, second = halves(objectives, own, plain)
    assert first[0] == pytest.approx(float((own[0][:4].sum() + plain[0][4:].sum()) / 16), rel=1e-5)
    assert second[1] == pytest.approx(frechet.value(torch.cat([plain[1][:4], own[1][4:], plain[1][8:]])))
    values = [o.value(p) for o, p in zip(objectives, plain, strict=True)]
    assert halves(objectives, [p[:8] for p in plain], plain) == [values, values]


def test_the_candidate_costs_nothing_and_is_best_in_the_second_objective():
    plain, values = [10.0, 0.4], [[9.0, 0.39], [10.0, 0.3], [10.3, 0.1], [9.5, 0.3], [9.0, 0.41]]
    assert candidate(values, plain, [1, 1]) == 3
    assert candidate(values, plain, [1, 1], tolerance=0.04) == 2
    assert candidate([[10.0, 0.4], [9.0, 0.5]], plain, [1, 1]) is None
    assert candidate([[8.0], [7.0], [11.0]], [10.0], [1]) == 1 and candidate([[8.0], [7.0], [11.0]], [10.0], [-1]) == 2


def test_differences_are_those_of_the_means_and_of_the_distances():
    g = torch.Generator().manual_seed(0)
    plain = torch.randn(400, 3, generator=g, dtype=torch.float64)
    frechet = Frechet("frechet", "minimize", lambda s: s, reference=FeatureStatistics.of(torch.randn(4000, 3, generator=g)))
    moved = frechet.difference(plain + torch.tensor([0.5, 0.0, 0.0]), plain, 0.05, 0)
    shift = (plain.mean(0) - torch.from_numpy(frechet.reference.mean))[0]
    assert moved.difference == pytest.approx(0.25 + float(shift), abs=1e-6) and moved.significant
    assert moved.low < 0.25 + float(shift) < moved.high and moved.low > 0
    same = frechet.difference(plain, plain, 0.05, 0)
    assert (same.difference, same.low, same.high, same.significant) == (0, 0, 0, False)
    hits = torch.arange(100) < 40
    few = MemorizedShare("f_mem", "minimize", lambda s: s).difference(hits & (torch.arange(100) > 3), hits, 0.05, 0)
    assert few.difference == pytest.approx(-0.04) and few.high < 0 and not few.significant  # 4 of 4: p = 1/8


def test_noise_is_found_better_as_rarely_as_the_level_says():
    objectives = [Objective(name, "minimize", lambda s: s) for name in "ab"]
    g, found = torch.Generator().manual_seed(0), 0
    for seed in range(40):
        own, plain = ([torch.randn(40, generator=g) for _ in objectives] for _ in range(2))
        found += is_recommended(compare(objectives, own, plain, 0.0, seed))
    assert found <= 5  # at 2.5 % of the studies, more than 5 of 40 happen once in 1000 times
    better = [torch.randn(40, generator=g) - 2, plain[1]]
    assert is_recommended(compare(objectives, better, plain, 0.0, 0))
    assert not is_recommended(compare(objectives, [better[0], plain[1] + 2], plain, 0.0, 0))
    costly = ([plain[0] + 10.2, better[0]], [plain[0] + 10, plain[1]])
    for tolerance, finding in ((0.0, "worse"), (0.05, "worse, within the tolerance")):
        found = compare(objectives, *costly, tolerance, 0)
        assert [c.finding for c in found] == [finding, "better"] and is_recommended(found) == (tolerance > 0)


# whole studies


def test_a_known_optimum_is_found_and_confirmed_on_fresh_samples(tuned):
    result = tuned[1]
    assert result.recommended and result.preset["alpha_0"] == pytest.approx(0.03, abs=0.01)
    (compared,) = result.report["comparisons"]
    expected = 0.03**2 - (result.preset["alpha_0"] - 0.03) ** 2
    assert compared["difference"] == pytest.approx(expected) and compared["low"] == pytest.approx(expected)
    assert result.report["first_sample"] == 32 and result.report["samples_drawn"] < 16 * 32 * 0.7  # many stopped early
    assert result.preset.num_inference_steps == 2 and "against plain sampling" in result.preset.source


def test_noise_leads_to_no_recommendation(model, tmp_path):
    results = [run(model, tmp_path / str(seed), objectives=(noise,), seed=seed) for seed in range(3)]
    assert all(result.report["candidate"] for result in results)  # on the samples used for tuning something wins
    assert not any(result.recommended for result in results)
    assert "Nothing beats plain sampling significantly" in results[0].report["verdict"][0]
    assert results[0].preset == PRESETS["off"] == load_preset(tmp_path / "0" / "preset.json")


def test_the_rule_picks_the_known_end_of_the_known_front(model, tmp_path):
    """The first objective is that of plain sampling again at alpha_0 = 0.06; the second grows with alpha_0."""
    result = run(model, tmp_path / "out", objectives=(launch_off, launch), trials=16, fixed=LAUNCH)
    launches = [row["setting"]["shaping"]["alpha_0"] for row in result.report["front"]]
    assert sum(alpha_0 < 0.03 for alpha_0 in launches) <= 1 and max(launches) > 0.07
    assert result.recommended and 0.04 < result.preset["alpha_0"] <= 0.06
    assert result.preset["alpha_0"] == max(alpha_0 for alpha_0 in launches if alpha_0 <= 0.06)
    assert result.report["settings_drawn_whole"] < result.report["settings_tried"] == 16
    assert (tmp_path / "out" / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_the_preset_draws_what_the_study_drew(model, tuned):
    preset = load_preset(tuned[0] / "preset.json")
    assert isinstance(preset, Preset) and preset["alpha_0"] > 0 and preset.num_inference_steps == 2
    pipe = ClassConditionalFlowPipeline.from_pretrained(model)
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **preset)
    pipe([0, 1], num_inference_steps=preset.num_inference_steps, output_type="pt")
    assert pipe.scheduler.kpe.settings == dict(preset) | {"scheduler": "KTSFlowMatchScheduler"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.clear(), "is not a preset"),
        (lambda c: c.update(format="other"), "is not a preset .*'other'"),
        (lambda c: c.update(version=2), "format version 2"),
        (lambda c: c["settings"].pop("k"), "is missing k"),
        (lambda c: c["settings"].update(alpha0=1), "unknown setting alpha0"),
        (lambda c: c["settings"].update(beta_0=1.0), "at most 0.0524"),
        (lambda c: c.update(settings=3), "is not a preset"),
    ],
)
def test_a_damaged_preset_is_refused_by_name(tmp_path, change, words):
    path = tmp_path / "preset.json"
    PRESETS["balanced"].save(path)
    assert load_preset(path) == PRESETS["balanced"] and vars(load_preset(path)) == vars(PRESETS["balanced"])
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        load_preset(path)
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        load_preset(tmp_path / "nothing.json")


# interruptions, several processes, refusals


def test_a_study_that_was_stopped_ends_where_another_does(model, tmp_path, monkeypatch):
    study = {"objectives": (launch_off, spread), "trials": 3}
    whole = run(model, tmp_path / "whole", **study)
    draw, calls = Sampler.draw, []

    def stop(self, *args, **kwargs):
        calls.append(args)
        if len(calls) in (9, 30, 60, 100):  # in the middle of plain sampling, of trials and of the fresh samples
            raise KeyboardInterrupt
        return draw(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "draw", stop)
    stops = 0
    while not (tmp_path / "out" / "tuning.json").exists():
        try:
            resumed = run(model, tmp_path / "out", **study)
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 2 and resumed.report == whole.report
    calls.clear()
    again = run(model, tmp_path / "out", **study)
    assert again.report == whole.report and len(calls) == 1  # the short call before everything


def test_more_trials_are_judged_on_samples_of_their_own(model, tuned, tmp_path):
    shutil.copytree(tuned[0], tmp_path / "out")
    more = run(model, tmp_path / "out", trials=18, fixed=LAUNCH, fresh_samples=60)
    assert (tuned[1].report["first_sample"], more.report["first_sample"]) == (32, 72)
    assert more.report["settings_tried"] == 18 and "look 2" in more.report["verdict"][-1]


@pytest.mark.slow
def test_two_processes_share_a_study_and_one_may_die(model, tmp_path):
    study = {"objectives": (launch_off, spread), "trials": 14, "num_inference_steps": 20}

    def work():
        torch.set_num_threads(1)  # OpenMP's threads do not live on in a fork
        run(model, tmp_path / "out", **study)

    one, two = (multiprocessing.get_context("fork").Process(target=work) for _ in range(2))
    one.start()
    two.start()
    try:
        deadline = time.monotonic() + 300
        while workers(tmp_path / "out" / "study.db") < 2:
            assert time.monotonic() < deadline and one.is_alive() and two.is_alive()
            time.sleep(0.02)
        one.kill()
        two.join(300)
    finally:
        one.kill()
        two.kill()
    assert two.exitcode == 0
    report = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert report["settings_tried"] == 14 and run(model, tmp_path / "out", **study).report == report
    trials = optuna.load_study(study_name="kts", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}").get_trials()
    done = [str(t.user_attrs["setting"]) for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(set(done)) == len(done) == 14 and {t.state.name for t in trials} <= {"COMPLETE", "PRUNED", "FAIL"}


def workers(path):
    """How many processes have taken a trial."""
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            query = "select count(distinct value_json) from trial_user_attributes where key = 'worker'"
            return connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:  # not there yet
        return 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 1}, "seed is 0, not 1"),
        ({"objectives": (launch,)}, "objectives is .*launch_off.*not .*launch"),
        ({"directions": {"test_tune:launch_off": "minimize"}}, "objectives is .*'maximize'.*not .*'minimize'"),
        ({"num_inference_steps": 3}, "num_inference_steps is 2, not 3"),
        ({"fixed": {"alpha_0": 0.1}}, "fixed is {.*touchdown.*, not {'alpha_0': 0.1}"),
        ({"model": "memorizing"}, "whose model is"),
    ],
)
def test_a_study_with_other_settings_is_not_gone_on_with(model, tuned, changes, words):
    before = (tuned[0] / "tuning.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        run(**{"model": model, "output": tuned[0], "fixed": LAUNCH} | changes)
    assert (tuned[0] / "tuning.json").read_bytes() == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--num-samples", "40"], "multiple of 16"),
        (["--objective", "beauty"], "no objective 'beauty'"),
        (["--objective", "test_tune:nothing"], "cannot be loaded"),
        (["--objective", "score.py:score"], "cannot be loaded"),
        (["--objective", "test_tune:broken"], "no idea"),
        (["--objective", "test_tune:launch_off", "--batch-size", "4", "--fresh-samples", "30"], "too few for an interval"),
        (["--objective", "energy", "--objective", "energy"], "three different ones"),
        (["--objective", "energy", "--direction", "calls=minimize"], "no objective"),
        (["--objective", "energy", "--direction", "energy=up"], "choose minimize or maximize"),
        (["--objective", "settling", "--fix", "touchdown=0.7"], "has no settling"),
        (["--fix", "alpha_0"], "give NAME=VALUE"),
        (["--fix", "beta_0=0.5", "--fix", "late_schedule=exponential"], "at most"),
        (["--range", "alpha_0=1"], "lowest and highest"),
        (["--tolerance", "-1"], "tolerance is -1"),
        (["--reference", "missing"], "no images at missing"),
        (["--model", "no-such-folder"], "is no folder"),
        (["--output", "file"], "is a file"),
        (["--output", "full"], "is not empty"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_code_2(kts, model, tmp_path, args, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    code, _, err = kts(
        "tune", "--model", model, "--trials", 1, "--num-samples", 64, "--num-inference-steps", 2, "--features", "pixels", *args
    )
    assert code == 2 and words in err and "Traceback" not in err
    assert not (tmp_path / "kts-tune").exists()


def test_a_damaged_study_is_refused(model, tuned, tmp_path):
    shutil.copytree(tuned[0], tmp_path / "out")
    (tmp_path / "out" / "study.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(ValueError, match="study.db cannot be read"):
        run(model, tmp_path / "out", trials=2)


# every pipeline, every objective


def test_a_text_pipeline_by_the_command(kts, tmp_path):
    tiny_sd3().save_pretrained(tmp_path / "sd3")
    (tmp_path / "prompts.txt").write_text("a fox\na bear\n")
    (tmp_path / "score.py").write_text("def brightness(images, trace):\n    return images.flatten(1).mean(1)\n")
    np.save(tmp_path / "real.npy", np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8))
    args = "--model sd3 --prompts prompts.txt --height 32 --width 32 --num-inference-steps 3 --trials 1 --num-samples 32"
    args += (
        " --fresh-samples 20 --objective score.py:brightness --objective calls --objective f_mem --training-images real.npy"
    )
    args += " --direction score.py:brightness=minimize --range num_inference_steps=2:3 --range touchdown=.5:.6"
    code, out, err = kts("tune", *args.split())
    assert code == 0, err
    assert "1 settings tried" in out and "network calls" in out and "plain sampling" in out
    assert load_preset(tmp_path / "kts-tune" / "preset.json").num_inference_steps in (2, 3)


def test_videos_of_another_solver_are_scored_by_a_function(tmp_path):
    TINY["wan"]().save_pretrained(tmp_path / "wan")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    shapes = set()

    def motion(clips, trace):
        shapes.add(tuple(clips.shape[1:]))
        return clips.diff(dim=1).abs().flatten(1).mean(1)

    size = {"height": 16, "width": 16, "num_frames": 5, "prompts": str(tmp_path / "prompts.txt")}
    result = run(tmp_path / "wan", tmp_path / "out", objectives=(motion,), trials=1, fresh_samples=20, **size)
    assert shapes == {(5, 3, 16, 16)} and result.report["settings_tried"] == 1
    with pytest.raises(ValueError, match="draws videos, which f_mem cannot judge"):
        run(tmp_path / "wan", tmp_path / "other", objectives=("f_mem",), **size)


def test_the_named_objectives_on_a_memorizing_model(model, tmp_path):
    result = run(model, tmp_path / "out", objectives=("frechet", "settling", "energy"), trials=1, num_inference_steps=10)
    assert [o["label"] for o in result.report["objectives"]] == ["Frechet distance, pixels", "settling", "path energy per dim"]
    assert all(row["setting"]["shaping"]["touchdown"] is None for row in result.report["front"])
    assert any("held-out" in note for note in result.report["notes"])
