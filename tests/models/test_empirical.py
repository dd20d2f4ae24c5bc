"""EmpiricalVelocity against the definition, against autograd, and at its limits."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.memorization.fraction import measure_memorization
from diffusers_kts.models.empirical import EmpiricalVelocity


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definition(x, data, t):
    """Velocity and weights as the paper writes them, by differences."""
    x, data = x.flatten(1), data.flatten(1)
    weights = (-(x[:, None] - t * data).square().sum(2) / (2 * (1 - t) ** 2)).softmax(1)
    return (weights[:, :, None] * (data - x[:, None])).sum(1) / (1 - t), weights


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30),
    chunk_size=st.integers(1, 31),
    t=st.floats(0, 0.999),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
def test_velocity_is_the_definition_for_any_chunk(n, chunk_size, t, dtype, seed):
    data, x = normal(n, 2, 3, 3, seed=seed), normal(4, 2, 3, 3, seed=seed + 100)
    data = data.to(dtype).double()
    x = (t * data[:1] + (1 - t) * x).to(dtype)  # on the way to the first point
    model = EmpiricalVelocity(data, dtype=dtype, chunk_size=chunk_size)
    velocity, weights = definition(x.double(), data, t)
    precision = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-7, "atol": 1e-8}
    torch.testing.assert_close(model.velocity(x, t), velocity.reshape(x.shape).to(dtype), **precision)
    torch.testing.assert_close(model.posterior_weights(x, t), weights, rtol=1e-6, atol=1e-9)


def test_call_of_a_transformer_gives_minus_the_velocity_at_the_noise_level_told():
    model, x = EmpiricalVelocity(normal(9, 1, 4, 4)), normal(3, 1, 4, 4, seed=1).float()
    sigmas = torch.tensor([0.9, 0.5, 0.1])
    told = model(x, timestep=1000 * sigmas, class_labels=torch.zeros(3, dtype=torch.int64), encoder_hidden_states=None)
    expected = torch.cat([-model.velocity(x[i : i + 1], 1 - float(sigmas[i])) for i in range(3)])
    torch.testing.assert_close(told.sample, expected)
    (alone,) = model(x, timestep=torch.tensor(500.0), return_dict=False)
    torch.testing.assert_close(alone[1], told.sample[1])


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8, 0.97])
def test_gradient_of_the_log_density_is_the_velocity(t):
    model = EmpiricalVelocity(normal(20, 3, 2, 2), dtype=torch.float64, chunk_size=7)
    x = normal(5, 3, 2, 2, seed=1).requires_grad_()
    (gradient,) = torch.autograd.grad(-model.neg_log_density(x, t).sum(), x)
    torch.testing.assert_close(gradient, (t * model.velocity(x, t) - x) / (1 - t))


def test_density_is_that_of_the_mixture():
    data, x, t = normal(6, 5), normal(4, 5, seed=1), 0.4
    points = torch.distributions.Independent(torch.distributions.Normal(t * data, 1 - t), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(6)), points)
    torch.testing.assert_close(EmpiricalVelocity(data, dtype=torch.float64).neg_log_density(x, t), -mixture.log_prob(x))


@pytest.mark.parametrize("t", [0.9, 0.99, 0.999])
def test_energy_bounds_under_posterior_dominance(t):
    data, eps = normal(40, 64), normal(40, 64, seed=1)
    model = EmpiricalVelocity(data, dtype=torch.float64)
    x = t * data + (1 - t) * eps
    dominant = model.posterior_weights(x, t).diagonal()
    assert dominant.min() > 1 - 1e-6
    speed, noise, radius = model.velocity(x, t).norm(dim=1), eps.norm(dim=1), data.norm(dim=1).max()
    assert ((noise - radius).abs() - 1e-4 <= speed).all() and (speed <= noise + radius + 1e-4).all()
    torch.testing.assert_close(model.velocity(x, t), data - eps, atol=1e-3, rtol=0)
    # energy as an affine proxy of the density, exact up to the dominance gap -log w
    affine = noise.square() / 2 + 64 * math.log(1 - t) + 32 * math.log(2 * math.pi) + math.log(40)
    torch.testing.assert_close(model.neg_log_density(x, t), affine + dominant.log(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stable_as_t_goes_to_one(dtype):
    data = normal(10, 1, 4, 4).to(dtype)
    model = EmpiricalVelocity(data, dtype=dtype)
    for sigma in (1e-3, 1e-6, 1e-12, 0.0):
        on_data = model(data, timestep=torch.tensor(1000 * sigma)).sample
        assert torch.isfinite(on_data).all()
        weights = model.posterior_weights(data + 0.1, 1 - sigma)
        assert torch.isfinite(weights).all()
        torch.testing.assert_close(weights, torch.eye(10, dtype=torch.float64), atol=1e-6, rtol=0)
        assert sigma == 0 or torch.isfinite(model.neg_log_density(data + 0.1, 1 - sigma)).all()
    assert not model(data, timestep=torch.tensor(0.0)).sample.any()


@pytest.fixture(scope="module")
def training():
    with np.load(embedded_model() / "training_images.npz") as archive:
        return torch.from_numpy(archive["images"][:60]).float()[:, None] / 255, torch.from_numpy(archive["labels"][:60]).long()


def draw(model, count, num_steps=25, **shaping):
    pipe = ClassConditionalFlowPipeline(model, KTSFlowMatchScheduler(**({"alpha_0": 0.0, "beta_0": 0.0} | shaping)))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    labels = [i % pipe.num_classes for i in range(count)]
    images = pipe(labels, num_inference_steps=num_steps, generator=generator, output_type="latent").images
    return images, pipe.scheduler.kpe


def test_every_path_ends_on_a_training_image_and_kts_leaves_f_mem_at_one(training):
    data = 2 * training[0] - 1
    model = EmpiricalVelocity(data)
    plain = measure_memorization(draw(model, 30)[0], data)
    assert plain.f_mem.fraction == 1 and plain.distances[:, 0].max() < 1e-3
    assert plain.indices[:, 0].unique().numel() > 5
    for alpha_0, beta_0 in ((0.01, 0.01), (0.05, 0.0), (0.0, 0.02)):
        shaped = measure_memorization(draw(model, 30, alpha_0=alpha_0, beta_0=beta_0)[0], data)
        assert shaped.f_mem.fraction == 1
        # an unfinished landing leaves noise around the same images
        assert (shaped.distances[:, 0].min() > 0.03) == (beta_0 > 0)


@pytest.mark.parametrize("num_steps", [1, 7])
def test_one_point_has_a_straight_field_with_its_energy_on_any_grid(num_steps):
    point = normal(1, 1, 4, 4)
    end, trace = draw(EmpiricalVelocity(point, dtype=torch.float64), 5, num_steps)
    noise = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(end, point.expand_as(end), atol=1e-6, rtol=0)
    torch.testing.assert_close(trace.path_energy.total, (point - noise).square().flatten(1).sum(1) / 2, rtol=1e-5, atol=0)


def test_a_class_is_its_own_data_and_the_number_behind_the_last_all(training):
    data, labels = 2 * training[0] - 1, training[1]
    model, x = EmpiricalVelocity(data, labels, chunk_size=16), normal(4, 1, 28, 28).float()
    assert model.config.num_embeds_ada_norm == 10
    wanted = torch.tensor([2, 2, 7, 10])
    got, density = model.velocity(x, 0.3, wanted), model.neg_log_density(x, 0.3, wanted)
    for i, own in enumerate([labels == 2, labels == 2, labels == 7, labels >= 0]):
        alone = EmpiricalVelocity(data[own])
        torch.testing.assert_close(got[i : i + 1], alone.velocity(x[i : i + 1], 0.3))
        torch.testing.assert_close(density[i : i + 1], alone.neg_log_density(x[i : i + 1], 0.3))
    assert not model.posterior_weights(x, 0.3, wanted)[0, labels != 2].any()
    nearest = measure_memorization(draw(model, 20)[0], data).indices[:, 0]
    assert labels[nearest].tolist() == [i % 10 for i in range(20)]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x: EmpiricalVelocity((255 * x).byte()), TypeError, "uint8"),
        (lambda x: EmpiricalVelocity(x[:0]), ValueError, "at least one point"),
        (lambda x: EmpiricalVelocity(x / 0), ValueError, "NaN or infinity"),
        (lambda x: EmpiricalVelocity(x, chunk_size=0), ValueError, "chunk_size is 0"),
        (lambda x: EmpiricalVelocity(x, torch.zeros(2, dtype=torch.int64)), ValueError, "one whole number per point"),
        (lambda x: EmpiricalVelocity(x, torch.tensor([0, 2, 2])), ValueError, "class 1 has no data"),
        (lambda x: EmpiricalVelocity(x, torch.tensor([0, 1, -1])), ValueError, "from -1 to 1"),
        (lambda x: EmpiricalVelocity(x).velocity(x[:, :2], 0.5), ValueError, "same shape"),
        (lambda x: EmpiricalVelocity(x, torch.arange(3)).velocity(x, 0, torch.tensor([4, 0, 0])), ValueError, "give 0 to 3"),
    ],
)
def test_bad_input_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call(torch.rand(3, 4, 4, 4))
