"""A recoded network moves recoded data: the closed form in both codings, and Gaussian data at both ends."""

import pytest
import torch
from torch import nn

from benchmarks.science.recoding import RecodedVelocity
from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler
from diffusers_kts.models.empirical import EmpiricalVelocity


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("s", [0.0, 0.2, 0.7, 0.99])
def test_the_closed_form_of_recoded_data(scale, s):
    data, y = normal(30, 1, 4, 4), normal(8, 1, 4, 4, seed=1)
    mean = data.mean(0)
    recoded = RecodedVelocity(EmpiricalVelocity(data, dtype=torch.float64), mean, scale)
    exact = EmpiricalVelocity((data - mean) / scale, dtype=torch.float64)
    time = torch.full((8,), 1000 * (1 - s), dtype=torch.float64)
    torch.testing.assert_close(recoded(y, time).sample, exact(y, time).sample, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recoded.decode((data - mean) / scale), data)


class Gaussian(nn.Module):
    """Of data N(mean, spread^2 I)."""

    dtype = torch.float64

    def __init__(self, mean, spread):
        super().__init__()
        self.mean, self.spread = mean, spread

    def forward(self, x, timestep, return_dict=True, class_labels=None):
        t = (1 - timestep / 1000).reshape(-1, 1)
        state = x - t * self.mean
        velocity = self.mean + state * (t * self.spread**2 - (1 - t)) / (t**2 * self.spread**2 + (1 - t) ** 2)
        return (-velocity,)


def test_gaussian_data_from_end_to_end():
    mean, y = normal(3), normal(5, 3, seed=1)
    time = torch.linspace(0, 1000, 5, dtype=torch.float64)
    recoded = RecodedVelocity(Gaussian(mean, 1.4), mean, 2.0)
    exact = Gaussian(torch.zeros(3, dtype=torch.float64), 0.7)
    torch.testing.assert_close(recoded(y, time, return_dict=False)[0], exact(y, time)[0], rtol=1e-9, atol=1e-9)


def test_a_pipeline_takes_it_and_ends_on_recoded_training_points():
    data = normal(6, 1, 4, 4)
    mean = data.mean(0)
    network = RecodedVelocity(EmpiricalVelocity(data, dtype=torch.float64), mean)
    pipe = ClassConditionalFlowPipeline(network, KTSFlowMatchScheduler(alpha_0=0.0, beta_0=0.0))
    pipe.set_progress_bar_config(disable=True)
    ends = network.decode(
        pipe([0] * 5, num_inference_steps=60, latents=normal(5, 1, 4, 4, seed=1), output_type="latent").images
    )
    assert torch.cdist(ends.flatten(1).double(), data.flatten(1)).min(1).values.max() < 1e-4
