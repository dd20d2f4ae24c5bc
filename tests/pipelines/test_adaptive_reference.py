"""Reference runs on Gaussian data, for which end and energy are known, and the cosine grid by name."""

import sys

import pytest
import torch
from scipy.integrate import quad
from torch import nn

from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.gain import Gain
from diffusers_kts.models.empirical import EmpiricalVelocity
from diffusers_kts.pipelines.adaptive_reference import solve_to_tolerance
from diffusers_kts.pipelines.pipeline_flow_class_conditional import cosine_sigmas

SPREAD = 0.5


def rate(t):
    """v = rate(t) x for data N(0, SPREAD^2 I)."""
    return (t * SPREAD**2 - (1 - t)) / (t**2 * SPREAD**2 + (1 - t) ** 2)


class Gaussian(EmpiricalVelocity):
    def forward(self, x, timestep, class_labels=None, return_dict=True):
        return (-rate(1 - timestep / 1000).reshape(-1, 1, 1, 1) * x,)


@pytest.fixture
def pipe():
    network: nn.Module = Gaussian(torch.zeros(1, 1, 4, 4), dtype=torch.float64)
    return ClassConditionalFlowPipeline(network, KTSFlowMatchScheduler())


@pytest.mark.parametrize(
    "gain", [None, Gain(0.2, 0.02), Gain(0.1, 0.3, 0.4, early_schedule="constant", late_schedule="constant")]
)
def test_end_and_energy_are_those_of_the_equation(pipe, gain):
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    eta = gain or (lambda t: 1.0)
    marks = {"points": [gain.tau_split]} if gain else {}

    def factor(t):
        inner = {"points": [gain.tau_split]} if gain and t > gain.tau_split else {}
        return torch.tensor(quad(lambda s: eta(s) * rate(s), 0, t, **inner)[0]).exp().item()

    energy = quad(lambda t: (eta(t) * rate(t) * factor(t)) ** 2 / 2, 0, 1, **marks)[0]
    run = solve_to_tolerance(pipe, [0, 0, 0], latents=x, gain=gain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run.latents, factor(1.0) * x, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(run.path_energy, energy * x.square().flatten(1).sum(1), rtol=1e-6, atol=1e-7)
    rough = solve_to_tolerance(pipe, [0, 0, 0], latents=x, gain=gain, rtol=1e-3, atol=1e-3)
    assert 6 < rough.network_calls < run.network_calls


def test_a_missing_package_is_named_with_its_remedy(pipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"diffusers-kts\[solve\]"):
        solve_to_tolerance(pipe, 0)


def test_the_cosine_grid_by_name():
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    call = {"latents": noise, "num_inference_steps": 4, "output_type": "latent"}
    by_name = pipe([0, 1], sigmas="cosine", **call).images
    assert torch.equal(by_name, pipe([0, 1], sigmas=cosine_sigmas(4), **call).images)
    assert cosine_sigmas(4) == pytest.approx([1, 0.853553, 0.5, 0.146447], abs=1e-6)
    with pytest.raises(ValueError, match="sigmas is 'cosin'; give noise levels"):
        pipe(0, sigmas="cosin")
