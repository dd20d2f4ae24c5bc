"""A slice of every benchmark, and the oracles of what they compute."""

import importlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
from diffusers_kts.memorization import detector_fit
from diffusers_kts.memorization.controls import net_displacement

SLICE = Path(__file__).parents[1] / "data" / "fashion_mnist_slice.npz"
SCIENCE = ("fashion_mnist", "laboratory", "judge", "paper_tables", "frontier", "memorization_score", "tuning", "adaptive")
ALSO = ("acting", "recoding", "significance", "controlled", "energies", "along_training", "trainings")
ON_EMOJI = ("detector", "energy_and_judge")
SCRIPTS = (
    "report",
    "cost.step_cost",
    "science.excess",
    "science.planted_copies",
    "science.fitted_sampling",
    "science.matched_launch",
    *(f"science.{name}" for name in (*SCIENCE, *ALSO, *ON_EMOJI)),
)


@pytest.fixture(scope="module")
def bench():
    return type("Bench", (), {name.split(".")[-1]: importlib.import_module(f"benchmarks.{name}") for name in SCRIPTS})


@pytest.fixture(scope="module")
def model(bench):
    return bench.laboratory.load_model("memorizing", bench.fashion_mnist.load_data(SLICE))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(script, monkeypatch, folder, cache, *more):
    name = script.__name__.split(".")[-1]
    args = ["--data", SLICE, "--seeds", 0, 1, "--epochs", 1, "--output", folder, "--cache", cache, *more]
    monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
    script.main()
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_a_draw_is_the_pipelines(bench, model, tmp_path):
    sampler = bench.laboratory.Sampler(steps=5, beta_0=0.02)
    laboratory = bench.laboratory.Laboratory(model, 4, tmp_path)
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = sampler.scheduler()
    latents = laboratory.noise(7, range(4))
    expected = pipe(list(range(4)), sigmas=sampler.sigmas(), latents=latents, output_type="pt").images
    drawn = laboratory.draw(sampler, 7)
    assert torch.equal(drawn.images, expected)
    pipe.scheduler.record_turn = True
    pipe(list(range(4)), sigmas=sampler.sigmas(), latents=latents, output_type="latent")
    assert torch.equal(drawn.turn, pipe.scheduler.kpe.turn)
    assert torch.equal(drawn.trace(sampler).path_energy.total, pipe.scheduler.kpe.path_energy.total)
    assert torch.equal(laboratory.noise(7, range(2, 4)), latents[2:])
    assert torch.equal(laboratory.draw(sampler, 7).x, drawn.x)  # from the cache


def test_touchdowns_read_off_a_run_are_runs_of_their_own(bench, model, tmp_path):
    lab = bench.laboratory
    laboratory, sampler = lab.Laboratory(model, 2, tmp_path), lab.Sampler(alpha_0=0.02, touchdown=0.7)
    start = lab.Draw.start(laboratory.noise(0, range(2)))
    own = lab.integrate(model.network, sampler, torch.arange(2), start)
    assert torch.equal(laboratory.draw(sampler, 0).x, own.x)
    assert not (laboratory.cache / sampler.key).exists()
    assert sampler.network_calls == own.power.shape[1] == 71


@pytest.mark.parametrize("grid", ["uniform", "cosine"])
def test_heuns_gains_are_those_of_its_steps(bench, grid):
    sampler = bench.laboratory.Sampler(steps=12, grid=grid, solver="heun", beta_0=0.02)
    assert sampler.network_calls == 12 and len(sampler.gains) == 6 and len(sampler.levels) == 7
    gain = sampler.scheduler().gain(1 - sampler.levels.double())
    torch.testing.assert_close(sampler.gains, (gain[:-1] + gain[1:]) / 2, rtol=1e-6, atol=1e-6)
    share = net_displacement(sampler.gains, sampler.levels)
    assert share == pytest.approx(sampler.scheduler().net_displacement(), abs=5e-3)


def test_lowest_f_mem_is_read_off_the_broken_line(bench):
    lowest = bench.frontier.lowest
    curve = [(10.0, 0.4), (11.0, 0.3), (13.0, 0.1)]
    assert lowest(curve, 12.0) == pytest.approx(0.2)
    assert lowest(curve, 13.0) == 0.1 and lowest(curve, 10.0) == 0.4
    assert lowest(curve, 9.0) is None


def test_density_is_higher_where_the_training_images_are(bench):
    g = torch.Generator().manual_seed(0)
    training = torch.randn(300, 1, 2, 2, generator=g)
    samples = torch.randn(50, 1, 2, 2, generator=g) * torch.linspace(0.1, 3, 50).reshape(-1, 1, 1, 1)
    exact = -samples.flatten(1).square().sum(1) / 2
    for value in bench.energies.density(samples, training).values():
        assert bench.significance.rank_correlation("", value, exact).change > 0.9


def test_the_scripts_write_their_sections_and_draw_nothing_twice(bench, monkeypatch, tmp_path, cache, capsys):
    monkeypatch.setattr(bench.frontier, "RESAMPLES", 4)
    plain = ("--num-samples", 30, "--num-inference-steps", 10)
    score = run(bench.memorization_score, monkeypatch, tmp_path, cache, *plain)
    assert score["chosen"] in score["models"][0]["scores"] and 0 < score["models"][0]["memorized"] < 1
    few = ("--families", "touchdown, equal calls", "plain Euler, fewer steps")
    frontier = run(bench.frontier, monkeypatch, tmp_path, cache, *plain, *few)
    points = {(p["family"], p["setting"]): p for p in frontier["models"][0]["points"]}
    assert points["touchdown", "t_d 0.5"]["network_calls"] == 6
    assert points["touchdown, equal calls", "t_d 0.7"]["network_calls"] == 10
    assert points["touchdown", "t_d 0.2"]["f_mem"]["count"] < points["touchdown", "plain"]["f_mem"]["count"]
    assert (tmp_path / "results" / "frontier.png").stat().st_size > 10_000
    monkeypatch.setattr(bench.adaptive, "RESAMPLES", 4)
    by_sample = run(bench.adaptive, monkeypatch, tmp_path, cache, *plain, "--families", "KTS, landing", "budget, cap")
    places = {(p["family"], p["setting"]): p for p in by_sample["models"][0]["points"]}
    assert points_of(by_sample, "plain", "") == points_of(frontier, "touchdown", "plain")
    capped, known = places["budget, cap", "0.7"], places["touchdown of the memorized, known afterwards", "t_d 0.5"]
    assert capped["f_mem"]["count"] < places["plain", ""]["f_mem"]["count"]
    assert places["KTS, landing", "0 / 0.03"]["difference"]["value"] > 0
    assert known["f_mem"]["count"] <= places["touchdown", "t_d 0.5"]["f_mem"]["count"]
    assert [row["t"] for row in by_sample["models"][0]["known_at"]] == [0.3, 0.4, 0.5, 0.6, 0.7]
    for script, verdicts in (("frontier", 1), ("memorization_score", 1), ("adaptive", 1)):
        assert (tmp_path / "results" / f"{script}.md").read_text().count("Verdict") == verdicts
    text = (tmp_path / "results" / "memorization_score.md").read_text()
    capsys.readouterr()
    again = run(bench.memorization_score, monkeypatch, tmp_path, cache, *plain)
    assert "seed=" not in capsys.readouterr().out
    assert again["models"] == score["models"]
    assert (tmp_path / "results" / "memorization_score.md").read_text() == text


def test_the_papers_tables_say_which_claim_agrees(bench, monkeypatch, tmp_path, cache):
    few = ("--tau-samples", 20, "--shape-samples", 10, "--solver-samples", 10, "--energy-samples", 40, "--network-calls", 4)
    result = run(bench.paper_tables, monkeypatch, tmp_path, cache, "--num-samples", 40, "--num-inference-steps", 10, *few)
    tables, tests = result["tables"], result["tests"]
    assert list(tables["main"]) == ["KTS 0.01 / 0.01", "KTS 0.02 / 0", "KTS 0 / 0.02", "touchdown 0.7", "touchdown 0.82"]
    for row in tables["main"].values():
        assert set(row["controls"]) == {"equal noise", "equal blur", "finished"} and 0.9 <= row["kept"] <= 1
        quarter, third, half = row["sampler"]["f_mem"].values()
        assert quarter <= third <= half and row["plain"] == tables["main"]["KTS 0 / 0.02"]["plain"]
    assert len(tables["tau_split"]) == 4 and len(tables["shapes"]) == 9 and len(tables["solvers"]) == 4
    assert len(tests) == 5 * 5 + 3 + 4 + 4 * 3 + 2
    assert all(test["p_value"] <= test["adjusted"] <= 1 for test in tests.values())
    claims = {claim: verdict for claim, _, _, verdict in result["claims"]}
    assert claims["KPE falls with density (kNN, pixels)"].startswith(("agrees", "undecided", "disagrees"))
    assert "agrees" in claims["KPE falls with density (kNN, pixels)"]  # of its excess
    assert claims["KTS 0.02 / 0 changes F_mem"] == "undecided"
    assert "Not run" not in (tmp_path / "results" / "paper_tables.md").read_text()


def test_claims_are_asked_of_every_training(bench, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(bench.trainings, "STEPS", 10)
    models = run(bench.trainings, monkeypatch, tmp_path, cache, "--num-samples", 40, "--models", "memorizing", "generalizing")
    memorizing, generalizing = models["models"].values()
    assert set(memorizing["auc_memorized"]) == {"path energy", "displacement", "excess"} and not generalizing["auc_memorized"]
    of_both = {claim for claim, *_ in generalizing["claims"]}
    assert of_both < {claim for claim, *_ in memorizing["claims"]} and not any("F_mem" in claim for claim in of_both)
    page = (tmp_path / "results" / "trainings.md").read_text()
    assert page.count("KPE falls with density") == 4 and "| KTS 0 / 0.02 changes F_mem | -17.98 points |" in page
    together = bench.trainings.together
    assert together(["agrees, in size too", "holds"]) == "holds on all" and together([]) == "not asked"
    assert together(["disagrees; agrees after removing displacement", "does not hold"]) == "fails on all"
    assert together(["agrees", "undecided"]) == "mixed" and together(["undecided"]) == "undecided"


def test_a_model_along_its_training(bench, monkeypatch, tmp_path, cache):
    weights = embedded_model() / "transformer" / "diffusion_pytorch_model.safetensors"
    few = ("--num-samples", 10, "--num-inference-steps", 10, "--num-images", 20, "--snapshots", weights)
    (row,) = run(bench.along_training, monkeypatch, tmp_path, cache, *few)["snapshots"]
    assert row["f_mem"]["n"] == 20 and len(row["f_mem_by_seed"]) == 2 and 0.5 < row["energy_per_dim"] < 1.5


def test_acting_is_held_against_a_touchdown_of_all(bench, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(bench.acting, "RESAMPLES", 3)
    monkeypatch.setattr(detector_fit, "FEWEST", 10)
    found = run(bench.acting, monkeypatch, tmp_path, cache, "--num-samples", 100, "--num-inference-steps", 10)
    rows = {(row["family"], row["setting"]): row for row in found["models"][0]["rows"]}
    plain, truth = rows["plain", ""], rows["truth", "touchdown, t = 0.5"]
    uniform, ours = rows["touchdown of all", "t = 0.5"], rows["detector, touchdown", "t = 0.6, from 0.5"]
    assert truth["f_mem"] == pytest.approx(uniform["f_mem"]) and truth["changed"] == pytest.approx(plain["f_mem"])
    assert rows["touchdown of as many at random", "t = 0.6"]["changed"] == ours["changed"] < 1
    assert rows["truth", "redraw"]["f_mem"] < rows["detector, redraw", "from 0.5"]["f_mem"] < plain["f_mem"]
    assert (tmp_path / "results" / "acting.md").read_text().count("Verdict") == 1
    lower, higher = {"value": -0.1, "low": -0.2, "high": -0.05}, {"value": 0.1, "low": -0.1, "high": 0.2}
    for less, won in ((lower, True), (higher, False)):
        row = {"family": "detector, redraw", "counts": True, "less_than_curve": less, "less_than_chance": lower}
        assert bench.acting.verdict([{"model": "a", "rows": [row]}])[1] == (["detector, redraw"] if won else [])


def test_the_excess_of_an_embedded_model_is_measured(bench, monkeypatch, tmp_path):
    small = ("--num-samples", 60, "--seeds", 3, "--num-inference-steps", 10, "--output", tmp_path)
    monkeypatch.setattr(sys, "argv", ["excess", *map(str, small)])
    bench.excess.main()
    result = json.loads((tmp_path / "results" / "excess.json").read_text())
    assert 0 < result["excess_share"] < 0.1 and 0 < result["memorized"] < 1
    assert result["scores"]["displacement"]["spearman_with_path_energy"]["value"] > 0.9
    assert result["scores"]["excess"]["spearman_with_density"]["high"] < 0


def test_a_launch_is_matched_to_the_speed_on_noised_data(bench, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(bench.matched_launch, "PLAIN", bench.laboratory.Sampler(steps=10))
    few = ("--models", "memorizing", "--num-samples", 40)
    found = run(bench.matched_launch, monkeypatch, tmp_path, cache, *few)["models"]["memorizing"]
    assert len(found["gains"]) == 10 and all(0.7 < gain < 1.1 for gain in found["gains"])
    rows = {row["sampler"]: row for row in found["rows"]}
    assert not rows["plain"]["tests"] and all(len(row["tests"]) == 2 for name, row in rows.items() if name != "plain")
    assert "| matched, launch |" in (tmp_path / "results" / "matched_launch.md").read_text()


def test_planted_copies_are_counted(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench.planted_copies, "NUM_TRAINING", 20)
    monkeypatch.setattr(bench.planted_copies, "NUM_HELD_OUT", 10)
    emoji = SLICE.with_name("emoji_slice.npz")
    args = ["--fashion-mnist", SLICE, "--emoji", emoji, "--num-copies", 8, "--output", tmp_path]
    monkeypatch.setattr(sys, "argv", ["planted_copies", *map(str, args)])
    bench.planted_copies.main()
    sets = json.loads((tmp_path / "results" / "planted_copies.json").read_text())["sets"]
    for found in sets.values():
        assert found["recall"]["equal"]["pixels"]["third"] == found["recall"]["flipped"]["transformed"]["third"] == 1
    assert "| flipped |" in (tmp_path / "results" / "planted_copies.md").read_text()


def test_tuning_writes_its_section(bench, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(bench.tuning, "STUDIES", dict([*bench.tuning.STUDIES.items()][:1]))
    small = ("--num-samples", 32, "--fresh-samples", 20, "--num-inference-steps", 2, "--trials", 1)
    result = run(bench.tuning, monkeypatch, tmp_path, cache, *small)
    (report,) = result["studies"].values()
    assert report["settings_tried"] == 1 and report["objectives"][0]["label"] == "Frechet distance, classifier.pt2"
    assert (
        "Verdict" in (tmp_path / "results" / "tuning.md").read_text()
        and (tmp_path / "results" / "tuning-memorizing.png").exists()
    )


def test_a_rule_wins_where_its_interval_is_below_0_on_every_model(bench):
    def model(*highs):
        found = [{"value": high - 0.1, "low": high - 0.2, "high": high} for high in highs]
        return {
            "points": [
                {"family": "turning from .5", "setting": str(i), "difference": difference}
                for i, difference in enumerate([*found, None])
            ]
        }

    text, wins = bench.adaptive.verdict([model(-0.01, -0.01, 0.4), model(-0.02, 0.01, 0.4)])
    assert wins == ["turning from .5 0"] and "turning from .5 0" in text
    text, wins = bench.adaptive.verdict([model(-0.01, 0.1, 0.4), model(0.01, 0.1, 0.4)])
    assert wins == [] and "no setting" in text and "lower in 1 and higher in 2" in text


def points_of(frontier, family, setting):
    point = next(p for p in frontier["models"][0]["points"] if (p["family"], p["setting"]) == (family, setting))
    return {name: point[name] for name in ("f_mem", "f_mem_by_seed", "frechet_by_seed", "accuracy", "frechet")}


def test_scripts_refuse_before_they_work(bench, monkeypatch, tmp_path, cache):
    monkeypatch.setattr(sys, "argv", ["memorization_score", "--data", str(SLICE), "--seeds", "0"])
    with pytest.raises(SystemExit, match="at least two"):
        bench.memorization_score.main()
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_a_model_of_the_first_images(bench, model, tmp_path):
    data = bench.fashion_mnist.load_data(SLICE)
    weights = embedded_model() / "transformer" / "diffusion_pytorch_model.safetensors"
    snapshot = bench.laboratory.load_model(weights, data, 20)
    assert snapshot.digest == model.digest and torch.equal(snapshot.training, data.x_train[:20])
    other = replace(model, training=data.x_train)
    assert other.digest == model.digest


def test_costs_of_a_step_are_told_beside_the_stock_one(bench):
    row = bench.step_cost.steps((2, 4, 8, 8), torch.bfloat16, "cpu", rounds=6, fused=False)
    assert set(row["ratio_to_stock"]) == {"shaped and measured", "off, measured", "stock, measured"}
    for name, ratio in row["ratio_to_stock"].items():
        assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and row["microseconds"][name] > 0
    assert row["least_bytes"] == 3 * 2 * 4 * 8 * 8 * 2


def test_the_planned_grid_is_the_cheapest_of_all(bench):
    cost = np.random.default_rng(0).random((8, 8))
    cost = np.where(np.arange(8)[None] > np.arange(8)[:, None], cost, np.inf)
    paths = [[0, *middle, 7] for middle in itertools.combinations(range(1, 7), 3)]
    best = min(paths, key=lambda path: sum(cost[a, b] for a, b in itertools.pairwise(path)))
    assert bench.fitted_sampling.cheapest(cost, 4) == best


def test_a_step_of_euler_costs_what_it_misses(bench, tmp_path):
    """Teachers with velocities 1 - 2 t: the chord from s to t misses by (t - s)^2."""
    from safetensors.torch import save_file

    teachers = bench.fitted_sampling.Teachers(tmp_path, [range(2)], 40)
    t = torch.tensor(teachers.times, dtype=torch.float64)
    v = 1 - 2 * t[:-1]
    moves = torch.cat([v[:1], 1.5 * v[1:] - 0.5 * v[:-1]]) / 40  # of Adams-Bashforth steps
    states = torch.cat([torch.zeros(1), moves.cumsum(0)]).float()[:, None, None].expand(41, 2, 3)
    save_file({"states": states.contiguous()}, teachers.path(range(2)))
    cost = bench.fitted_sampling.step_costs(teachers)
    assert cost[10, 30] == pytest.approx(0.25, rel=1e-3) and cost[4, 8] == pytest.approx(0.01, rel=1e-2)
    assert np.isinf(cost[30, 10])


@pytest.mark.slow
def test_fitted_sampling_writes_its_page(bench, monkeypatch, tmp_path, cache):
    few = ["--small", "--cases", 1, "--counts", 8, "--judged", 10, "--epochs", 0]
    result = run(bench.fitted_sampling, monkeypatch, tmp_path, cache, *few)
    (bar,), (case,) = result["bars"], result["cases"]
    errors = case["fits"]["8"]["errors"]
    assert bar["value"] == pytest.approx(errors["fitted"]["mean"] / errors["UniPC 2"]["mean"], rel=1e-4)
    assert bar["reached"] == (bar["value"] <= 0.6)
    assert len(case["gains"]) == 20 and [row["of"] for row in case["few"]] == [2, 4]
    page = (tmp_path / "results" / "fitted_sampling.md").read_text()
    assert f"Verdict: {int(bar['reached'])} of 1 bars" in page and "fitted to classes 0 to 4" in page


def test_energies_are_correlated_within_prompts(bench):
    """Prompts differ in both numbers; within each, one is the other reversed, or has nothing to do with it."""
    prompts, noise = torch.arange(60).repeat_interleave(10), torch.randn(600, generator=torch.Generator().manual_seed(0))
    score = noise + 10 * prompts
    found = {"path energy": 20 * prompts - noise, "excess": 10 * prompts + noise.flip(0)}
    energy, excess = bench.energy_and_judge.correlations(found, {"judge": score}, prompts)
    assert energy.change == pytest.approx(-1) and energy.p_value < 1e-9
    assert excess.low < 0 < excess.high and excess.p_value > 0.05
    tests = {name: vars(test) for name, test in bench.significance.holm([energy, excess]).items()}
    cells = [{"model": "emoji", "guidance": 1.0, "mean_log_probability": -2.0, "tests": tests}]
    page = bench.energy_and_judge.page(cells, 20)
    assert "| emoji | 1 | judge | -2.0 | -1.00" in page and page.count("disagrees") == 1
    assert "path energy - in 1 of 1; excess none of 1." in page


def test_the_detectors_page_keeps_what_other_runs_measured(bench):
    """The numbers of the repository make its page."""
    results = Path(bench.report.HERE) / "results"
    models = json.loads((results / "detector.json").read_text())["models"]
    page = (results / "detector.md").read_text()
    assert page.endswith(bench.detector.page(models) + "\n") and page.count("\n## ") == len(models)
