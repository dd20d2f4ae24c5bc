"""``kts fit``: weights with closed forms, threads that fit as one, what is chosen and said, stopped and resumed runs."""

import itertools
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file
from tiny_diffusion import DIFFUSION
from tiny_pipelines import call_kwargs, tiny_flux, tiny_sd3

from diffusers_kts import ClassConditionalFlowPipeline, KTSFittedFlowMatchScheduler, fit_sampler
from diffusers_kts.fit import FitSettings, run_fit
from diffusers_kts.fit.errors import FITTED, compared, distances, recommended, typical, verdict
from diffusers_kts.fit.grid import measured_grid
from diffusers_kts.fit.lockstep import Lockstep
from diffusers_kts.fit.runs import Runs
from diffusers_kts.fit.teacher import Teachers, solver
from diffusers_kts.fit.weights import Equations
from diffusers_kts.sampling.find import find_model
from diffusers_kts.sampling.prompts import Prompt
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.sampling.settings import SamplingSettings

SMALL = ["--num-inference-steps", "4,6", "--num-trajectories", "4", "--num-held-out", "8", "--teacher-steps", "20"]
GRID = [0.0, 0.2, 0.5, 1.0]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipe():
    """Three classes, 4x4 pixels."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=1, attention_head_dim=4, in_channels=1, out_channels=1, num_layers=1, sample_size=4, patch_size=2,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    pipe = ClassConditionalFlowPipeline(network.eval(), FlowMatchEulerDiscreteScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def runs_of(pipe, fitted):
    return Runs(Sampler(pipe, SamplingSettings(), None), [Prompt(0), Prompt(1)], [Prompt(2)], fitted)


def taught(pipe, folder, batches):
    runs = runs_of(pipe, batches[-1].stop)
    teachers = Teachers(folder, batches, 20)
    for batch in batches:
        teachers.draw(runs, batch)
    return runs, teachers


# the grid


def test_the_grid_has_quantiles_of_the_power_of_the_acceleration():
    times = np.linspace(0, 1, 1001)
    t = (times[1:] + times[:-1]) / 2
    grid = measured_grid(times, t**2 + 0.1, 5, 0.5)
    density = np.sqrt(t**2 + 0.1)
    shares = [density[(t > a) & (t < b)].sum() for a, b in itertools.pairwise(grid)]
    np.testing.assert_allclose(shares, density.sum() / 5, rtol=5e-3)
    assert grid[0] == 0 and grid[-1] == 1


def test_without_acceleration_or_exponent_the_grid_is_even():
    for acceleration, exponent in (([0.0] * 10, 0.5), ([3.0] * 10, 0.5), ([1.0, *[9.0] * 9], 0.0)):
        np.testing.assert_allclose(
            measured_grid(np.linspace(0, 1, 11), acceleration, 4, exponent), [0, 0.25, 0.5, 0.75, 1], atol=1e-6
        )


# the weights


@pytest.mark.parametrize("rate", [-3.0, 0.7])
def test_the_gain_of_a_linear_field_is_the_exponential_one(rate):
    h, x = 0.3, noise(5, 7).double()
    equations = Equations.of(x, [rate * x], h, math.exp(rate * h) * x, [1.0])
    assert equations.weights([1.0], 0.0) == pytest.approx([(math.exp(rate * h) - 1) / (rate * h)])


def test_weights_that_explain_the_target_are_found_and_shrunk():
    x, vs, prior = noise(4, 30), [noise(4, 30, seed=i) for i in (1, 2, 3)], [1.2, -0.2, 0.0]
    target = x + 0.25 * (1.4 * vs[0] - 0.5 * vs[1] + 0.1 * vs[2])
    equations = Equations.of(x, vs, 0.25, target, prior)
    assert equations.weights(prior, 0.0) == pytest.approx([1.4, -0.5, 0.1], abs=1e-5)
    assert equations.weights(prior, 1e9) == pytest.approx(prior, abs=1e-6)
    assert equations.weights(prior, math.inf) == prior
    between = np.array(equations.weights(prior, 1.0)) - prior
    assert np.all(np.abs(between) < np.abs(np.array([1.4, -0.5, 0.1]) - prior)) and np.all(np.abs(between) > 0)


def test_a_trajectory_that_goes_astray_does_not_outweigh_the_others():
    x, vs = noise(12, 30), [noise(12, 30, seed=i) for i in (1, 2)]
    target = x + 0.25 * (1.4 * vs[0] - 0.5 * vs[1]) + 1e-3 * noise(12, 30, seed=5)
    target[0] = 5 * noise(30, seed=4)
    weights = Equations.of(x, vs, 0.25, target, [1.5, -0.5]).weights([1.5, -0.5], 0.0)
    assert weights == pytest.approx([1.4, -0.5], abs=0.02)


def test_velocities_that_do_not_change_leave_the_weights_at_their_prior():
    x, v = noise(3, 8), noise(3, 8, seed=1)
    weights = Equations.of(x, [v, v], 0.5, x + 0.5 * v, [1.3, -0.3]).weights([1.3, -0.3], 0.0)
    assert weights == pytest.approx([1.3, -0.3], abs=1e-6)


# threads


def test_batches_in_lockstep_fit_as_one_batch(pipe, tmp_path):
    """Up to the network, which rounds by the size of the batch."""
    rows = []
    for name, batches in {"one": [range(6)], "three": [range(2), range(2, 3), range(3, 6)]}.items():
        runs, teachers = taught(pipe, tmp_path / name, batches)
        rows.append(Lockstep(teachers, GRID, None, 1e-3).fit(runs))
    assert [len(row) for row in rows[0]] == [1, 2, 3]
    for one, three in zip(*rows, strict=True):
        assert one == pytest.approx(three, abs=1e-3)


def test_students_reach_the_teacher_where_its_steps_are_theirs(pipe, tmp_path):
    """On the teacher's own grid its weights leave nothing to fit."""
    runs, teachers = taught(pipe, tmp_path, [range(3), range(3, 5)])
    rows = Lockstep(teachers, teachers.times, 2, 1e-3).fit(runs)
    plain = solver(pipe.scheduler, teachers.times).fits[0]["weights"]
    for row, expected in zip(rows, plain, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)


def test_a_thread_that_fails_ends_all(pipe, tmp_path):
    runs, teachers = taught(pipe, tmp_path, [range(2), range(2, 4)])
    teachers.path(teachers.fitted[1]).unlink()
    with pytest.raises(FileNotFoundError):
        Lockstep(teachers, GRID, 2, 0.0).fit(runs)


def test_fitting_helps_on_the_trajectories_fitted_to(pipe, tmp_path):
    runs, teachers = taught(pipe, tmp_path, [range(8)])

    def error(weights):
        end, _ = runs.run(range(8), solver(pipe.scheduler, GRID, weights), 3)
        return typical(distances(end, teachers.states(range(8), 1.0)))

    fitted = error(Lockstep(teachers, GRID, None, 0.0).fit(runs))
    assert fitted < 0.7 * error(2) < error(1)


# teachers


def test_teachers_keep_the_states_of_their_run(pipe, tmp_path):
    runs, teachers = taught(pipe, tmp_path, [range(3)])
    seen = []
    runs.run(range(3), solver(pipe.scheduler, teachers.times), 20, lambda scheduler, x, v, after: seen.append((x, v)))
    states, a = load_file(teachers.path(range(3)))["states"], teachers.acceleration()
    for k, (x, _) in enumerate(seen):
        assert torch.equal(states[k], x)
    torch.testing.assert_close(teachers.states(range(3), 0.3), states[6])
    torch.testing.assert_close(teachers.states(range(3), 0.325), (states[6] + states[7]) / 2)
    assert torch.equal(teachers.states(range(3), 1.0), states[20])
    turn = (seen[7][1] - seen[6][1]).square().mean().sqrt() * 20
    assert a[6] == pytest.approx(float(turn), rel=1e-4) and len(a) == 20 and a[19] == a[18]


def test_a_damaged_teacher_counts_as_missing(pipe, tmp_path):
    _, teachers = taught(pipe, tmp_path, [range(2)])
    assert teachers.is_there(range(2))
    path = teachers.path(range(2))
    path.write_bytes(path.read_bytes()[:-100])
    assert not teachers.is_there(range(2)) and not teachers.is_there(range(5, 7))


# what is said


def errors_of(**means):
    generator = torch.Generator().manual_seed(0)
    spread = 0.2 * torch.randn(40, generator=generator)
    return {
        name.replace("_", " "): mean * (spread + 0.02 * torch.randn(40, generator=generator)).exp()
        for name, mean in means.items()
    }


@pytest.mark.parametrize(
    "errors, best, words",
    [
        (errors_of(fitted=0.02, Euler=0.1, UniPC_2=0.04), FITTED, "0.50 times that of UniPC 2.*Use the fitted sampler"),
        (errors_of(fitted=0.05, Euler=0.1, UniPC_2=0.04), "UniPC 2", r"1\.2\d times that of UniPC 2.*is better. Use UniPC 2"),
        (errors_of(fitted=0.04, UniPC_2=0.04), None, "no significant difference"),
    ],
)
def test_the_better_sampler_is_recommended(errors, best, words):
    found = compared(errors)
    assert best in (None, recommended(found))
    assert re.search(words, verdict(8, found))


def test_a_fit_that_diverges_is_not_recommended():
    errors = errors_of(fitted=0.02, Euler=0.1) | {FITTED: torch.tensor([math.inf] * 40)}
    assert "diverged" in verdict(8, compared(errors)) and recommended(compared(errors)) == "Euler"
    assert distances(torch.full((1, 2), math.nan), torch.zeros(1, 2)).isinf().all()


# the job


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A small fit of the embedded model: its folder."""
    folder = tmp_path_factory.mktemp("fit") / "out"
    settings = {"num_inference_steps": [4, 6], "num_trajectories": 4, "num_held_out": 8, "teacher_steps": 20}
    run_fit(FitSettings(model="generalizing", output=folder, **settings), show_progress=False)
    return folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_report_says_what_the_scheduler_does(fitted):
    report, classes = report_of(fitted), [Prompt(label) for label in range(10)]
    assert KTSFittedFlowMatchScheduler.from_pretrained(fitted / "scheduler").fitted_steps == [4, 6]
    sampler = Sampler(find_model("generalizing"), SamplingSettings(model="generalizing"), torch.device("cpu"))
    runs = Runs(sampler, [], classes[3::4], 4)  # every fourth prompt is held out
    teacher, check = Teachers(fitted / "teacher", [range(4)], 20), range(8, 12)
    for fit in report["fits"]:
        scheduler = KTSFittedFlowMatchScheduler.from_pretrained(fitted / "scheduler")
        end, _ = runs.run(check, scheduler, fit["num_inference_steps"])
        error = float(distances(end, teacher.states(check, 1.0)).mean())
        assert fit["errors"]["fitted"]["mean"] == pytest.approx(error, rel=1e-4)
        assert fit["errors"]["fitted"]["low"] <= error <= fit["errors"]["fitted"]["high"]
        tried = [value for _, value in fit["shrinkages"]]
        assert min(tried) <= min(value for _, value in fit["exponents"])  # plain weights on the chosen grid are among them
    page = (fitted / "report.html").read_text()
    assert all(sentence.split(";")[0] in page for sentence in report["verdict"]) and page.count("data:image/png") == 2


def test_a_stopped_fit_resumes_with_the_same_report(fitted, tmp_path, kts):
    folder = tmp_path / "out"
    shutil.copytree(fitted, folder)
    whole = (folder / "report.json").read_text()
    for gone in ("report.json", "report.html", "scheduler/scheduler_config.json", "fits/006-4.json"):
        (folder / gone).unlink()
    damaged = folder / "teacher" / "000000-000004.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    code, out, _ = kts("fit", "--model", "generalizing", *SMALL, "--output", folder)
    assert code == 0 and (folder / "report.json").read_text() == whole
    assert (folder / "scheduler" / "scheduler_config.json").read_bytes() == (
        fitted / "scheduler" / "scheduler_config.json"
    ).read_bytes()
    assert "4 steps: error" in out and "6 steps: error" in out and "Written" in out


def test_a_fit_with_other_settings_is_refused_and_left_alone(fitted, tmp_path, kts):
    before = sorted((path, path.stat().st_mtime_ns) for path in fitted.rglob("*"))
    for option in (["--seed", 1], ["--num-trajectories", 6], ["--prompts", "p.txt"]):
        (tmp_path / "p.txt").write_text("0\n1\n")
        code, _, err = kts("fit", "--model", "generalizing", *SMALL, *option, "--output", fitted)
        assert code == 2 and "holds a fit whose" in err
    assert sorted((path, path.stat().st_mtime_ns) for path in fitted.rglob("*")) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    code, _, err = kts("fit", "--model", "generalizing", *SMALL, "--overwrite", "--output", tmp_path / "mine")
    assert code == 2 and "is not empty" in err and (tmp_path / "mine" / "notes.txt").exists()


def test_a_dry_run_says_the_costs_and_writes_nothing(tmp_path, kts):
    code, out, _ = kts("fit", "--model", "generalizing", *SMALL, "--output", "out", "--dry-run")
    assert code == 0 and list(tmp_path.iterdir()) == []
    # three batches of 20; per step: 4 grids, 3 strengths to fit and choose, 5 samplers to check
    assert "12 trajectories of 20 network calls, 60 calls" in out
    assert "4 steps: 60 calls" in out and "6 steps: 90 calls" in out and "Together 210 calls" in out


@pytest.mark.parametrize("build, name, guidance", [(tiny_sd3, "sd3", 4.0), (tiny_flux, "flux", None)])
def test_text_pipelines_are_fitted_and_left_as_they_are(build, name, guidance, tmp_path):
    pipe = build()
    own, (width, height) = pipe.scheduler, (32, 32)
    more = {} if guidance is None else {"guidance_scale": guidance}
    result = fit_sampler(
        pipe, ["a fox", "a bear", "a hare", "a wolf"], 3, tmp_path / "out", False, num_trajectories=2, num_held_out=4,
        teacher_steps=20, height=height, width=width, pipeline_args={"max_sequence_length": 16}, batch_size=2, **more,
    )  # fmt: skip
    assert pipe.scheduler is own and result.scheduler.fitted_steps == [3]
    errors = result.report["fits"][0]["errors"]
    assert {"fitted", "Euler", "UniPC 2"} <= set(errors)
    assert (result.scheduler.fits[0]["mu"] is None) == (name == "sd3")
    pipe.scheduler = result.scheduler
    pipe(**call_kwargs(name, num_inference_steps=3))


def test_without_a_folder_nothing_is_kept(pipe):
    result = fit_sampler(pipe, [0, 1], [2], None, False, num_trajectories=2, num_held_out=4, teacher_steps=20, history="all")
    assert result.files == [] and result.scheduler.fitted_steps == [2]
    assert any("other noises, not on other prompts" in note for note in result.verdict)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_inference_steps": [1]}, "at least 2"),
        ({"num_inference_steps": []}, "at least 2"),
        ({"num_inference_steps": [8, 8]}, "different whole numbers"),
        ({"num_inference_steps": [300]}, "the teacher needs more"),
        ({"num_trajectories": 1}, "num_trajectories is 1; give at least 2"),
        ({"num_held_out": 5}, "give an even number"),
        ({"history": "0"}, "history is '0'"),
        ({"history": "some"}, "history is 'some'"),
        ({"teacher_steps": 10}, "give at least 20"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**changes)


def test_bad_input_ends_with_a_sentence(kts, tmp_path):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "file").write_text("")
    for options, words in [
        (["--model", "generalizing", "--num-inference-steps", "eight"], "give whole numbers, such as 8 or 6,8,12"),
        (["--model", "emoji"], "there are no prompts"),
        (["--model", "emoji", "--prompts", "empty.txt"], "holds no prompts"),
        (["--model", "generalizing", "--output", "file"], "is a file"),
        (["--model", "nowhere/at-all"], "cannot be downloaded"),
    ]:
        code, _, err = kts("fit", *options)
        assert code == 2 and words in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "file"]


def test_what_cannot_be_fitted_is_refused_before_any_work(pipe, tmp_path):
    with pytest.raises(ValueError, match="there are no prompts"):
        fit_sampler(pipe, [], output=tmp_path / "out")
    with pytest.raises(ValueError, match="class label 7"):
        fit_sampler(pipe, [7], output=tmp_path / "out")
    with pytest.raises(ValueError, match="takes no height"):
        fit_sampler(pipe, [0], output=tmp_path / "out", height=8)
    with pytest.raises(ValueError, match="not flow matching"):
        fit_sampler(DIFFUSION["sd15"](), ["a fox"], output=tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError):
        fit_sampler(pipe, [0], output=tmp_path / "full")
    assert not (tmp_path / "out").exists()
