"""`kts theory` by its oracles: one training point, Gaussian data, and what must hold of any data."""

import json
import math

import numpy as np
import pytest
import torch

from diffusers_kts.models.empirical import EmpiricalVelocity
from diffusers_kts.theory import TheorySettings, measure_at, measure_paths, run_theory
from diffusers_kts.theory.measures import DOMINANT

FLOAT64 = {"dtype": torch.float64}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("t", [0.0, 0.5, 0.99])
def test_with_one_training_point_everything_is_closed(t):
    point, noise = normal(1, 1, 4, 4), normal(300, 1, 4, 4, seed=1)
    model = EmpiricalVelocity(point, **FLOAT64)
    found = measure_at(model, t, torch.zeros(300, dtype=torch.long), noise)
    straight = (point - noise).flatten(1)
    assert found.dominant == found.inside == found.inside_dominant == found.inside_gap == 1
    assert found.power == pytest.approx(float(straight.square().sum(1).mean()) / 16)
    half = noise.flatten(1).square().sum(1) / 2
    density = half + 16 * math.log(1 - t) + 8 * math.log(2 * math.pi)  # up to log n = 0
    slope, intercept = np.polyfit(density / 16, straight.square().sum(1) / 32, 1)
    assert (found.slope, found.intercept) == (pytest.approx(slope), pytest.approx(intercept, rel=1e-6))
    assert found.expected_r2 == pytest.approx(8 / (8 + float(point.square().sum())))
    assert found.r2 == pytest.approx(found.expected_r2, abs=0.12)
    paths = measure_paths(model, noise, 7)
    assert paths.closed == pytest.approx([found.power] * 7) and paths.late(paths.closed) == pytest.approx(1)


def test_at_the_origin_energy_is_the_density_itself():
    found = measure_at(EmpiricalVelocity(torch.zeros(1, 5), **FLOAT64), 0.3, torch.zeros(50, dtype=torch.long), normal(50, 5))
    assert (found.slope, found.r2, found.expected_r2) == (pytest.approx(1), pytest.approx(1), 1)


@pytest.mark.parametrize(("scale", "t"), [(0.1, 0.2), (0.5, 0.6), (1.0, 0.4), (3.0, 0.3), (1.0, 0.95)])
def test_what_must_hold_of_any_data(scale, t):
    data, noise = scale * normal(60, 8), normal(200, 8, seed=1)
    model, indices = EmpiricalVelocity(data, **FLOAT64), torch.arange(200) % 60
    found = measure_at(model, t, indices, noise)
    own = model.posterior_weights(t * data[indices] + (1 - t) * noise, t)[torch.arange(200), indices]
    assert found.dominant == pytest.approx(float((own > DOMINANT).double().mean()))
    assert found.inside_gap == 1 and found.low <= found.power <= found.high


def test_at_t_0_centered_data_have_the_energy_of_gaussian_data():
    data = normal(20, 6)
    found = measure_at(EmpiricalVelocity(data - data.mean(0), **FLOAT64), 0.0, torch.arange(20), normal(20, 6, seed=1))
    assert (found.slope, found.r2) == (pytest.approx(1), pytest.approx(1))


def test_a_network_is_walked_with_its_own_velocity():
    """Data N(0, s^2): power ((t s^2 - (1 - t)) x_0)^2 / (t^2 s^2 + (1 - t)^2)."""
    s, noise = 0.5, normal(40, 3)
    spread = lambda t: t**2 * s**2 + (1 - t) ** 2  # noqa: E731
    paths = measure_paths(
        EmpiricalVelocity(torch.zeros(1, 3), **FLOAT64), noise, 400, lambda x, t: x * (t * s**2 - (1 - t)) / spread(t)
    )
    exact = [(t * s**2 - (1 - t)) ** 2 / spread(t) * float(noise.square().mean()) for t in paths.t]
    np.testing.assert_allclose(paths.net, exact, rtol=0.02, atol=1e-4)
    at_net = [spread(t) / (1 - t) ** 2 * float(noise.square().mean()) for t in paths.t]  # ||x / (1 - t)||^2
    np.testing.assert_allclose(paths.closed_at_net, at_net, rtol=0.02)
    assert paths.late(paths.closed_at_net) > 1000


@pytest.fixture
def images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=np.concatenate([pixels, pixels[:2]]))
    return tmp_path / "images.npz"


def test_the_job_writes_what_it_found(images, tmp_path):
    settings = TheorySettings(
        training_images=images, model="memorizing", num_samples=20, num_inference_steps=6, output=tmp_path / "out"
    )
    result = run_theory(settings, show_progress=False)
    report = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert report["training_images"] == 12 and "2 images are copies" in report["notes"][0]
    for coding, rows in report["codings"].items():
        assert [row["t"] for row in rows] == [row.t for row in result.found[coding]]
        assert rows[-1]["dominant"] == 1 and all(row["inside_gap"] == 1 for row in rows)
    pixels, centered = report["codings"].values()
    assert centered[4]["expected_r2"] > pixels[4]["expected_r2"]  # shorter points leave less that is not density
    assert len(report["paths"]["net"]) == 6 and report["paths"]["closed_at_net"][-1] > report["paths"]["net"][-1]
    assert (tmp_path / "out" / "theory.png").stat().st_size > 20_000
    with pytest.raises(FileExistsError, match="--overwrite"):
        run_theory(settings, show_progress=False)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "emoji"}, "takes prompts"),
        ({"model": "memorizing", "image_size": 14}, r"images are \(1, 14, 14\)"),
        ({"training_images": "no.npz"}, "there are no images"),
        ({}, "training_images is missing"),
    ],
)
def test_unsuitable_input_is_refused_before_anything_is_written(given, words, images, tmp_path):
    given = {"training_images": images, **given} if given else {}
    with pytest.raises(ValueError, match=words):
        run_theory(TheorySettings(**given, output=tmp_path / "out"), show_progress=False)
    assert not (tmp_path / "out").exists()
