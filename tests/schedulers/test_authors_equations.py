"""The paper's sampler, stated once more in NumPy from its equations alone, against the schedulers, to 1e-6."""

import itertools

import numpy as np
import pytest
import torch

from diffusers_kts import KTSFlowMatchHeunScheduler, KTSFlowMatchScheduler

K = 3.0
SETTINGS = [(0.0, 0.0, 0.6), (0.01, 0.01, 0.6), (0.05, 0.0, 0.4), (0.0, 0.02, 0.8)]


def eta(t, alpha_0, beta_0, tau, early, late):
    if t < tau:
        u = 1 - t / tau
        return 1 + alpha_0 * {"linear": u, "constant": 1.0, "exponential": (np.exp(K * u) - 1) / (np.exp(K) - 1)}[early]
    r = (t - tau) / (1 - tau)
    return 1 - beta_0 * {"linear": r, "constant": 1.0, "exponential": np.exp(K * r) - 1}[late]


def grid(name, n):
    i = np.arange(n + 1) / n
    return i if name == "uniform" else 1 - np.cos(np.pi * i / 2) ** 2


def velocity(x, t):
    return np.cos(1.5 * x) - (1 - t) * x


def integrate(x, times, gain, heun):
    """The end, and the left sum of eta^2 ||v||^2 / 2 over the steps."""
    energy = 0.0
    for t, after in itertools.pairwise(times):
        dt, v = after - t, velocity(x, t)
        energy = energy + dt * (gain(t) ** 2 * v**2).sum(1) / 2
        if heun:
            there = velocity(x + dt * gain(t) * v, after)
            x = x + dt * (gain(t) + gain(after)) / 2 * (v + there) / 2
        else:
            x = x + dt * gain(t) * v
    return x, energy


@pytest.mark.parametrize("shape", list(itertools.product(("linear", "constant", "exponential"), repeat=2)))
@pytest.mark.parametrize("name", ["uniform", "cosine"])
@pytest.mark.parametrize("heun", [False, True])
def test_the_schedulers_take_the_papers_steps(heun, name, shape):
    n, noise = 17, np.random.default_rng(0).standard_normal((3, 5))
    for alpha_0, beta_0, tau in SETTINGS:
        times = grid(name, n)
        end, energy = integrate(noise, times, lambda t, s=(alpha_0, beta_0, tau, *shape): eta(t, *s), heun)
        settings = {
            "alpha_0": alpha_0,
            "beta_0": beta_0,
            "tau_split": tau,
            "early_schedule": shape[0],
            "late_schedule": shape[1],
        }
        kind = KTSFlowMatchHeunScheduler if heun else KTSFlowMatchScheduler
        scheduler = kind(**settings, **({"correct_last_step": True} if heun else {}))
        scheduler.set_timesteps(sigmas=(1 - times[:-1]).tolist())
        x = torch.from_numpy(noise)
        for i, timestep in enumerate(scheduler.timesteps):
            v = torch.from_numpy(velocity(x.numpy(), 1 - float(scheduler.sigmas[i])))
            x = scheduler.step(-v, timestep, x, return_dict=False)[0]
        np.testing.assert_allclose(x.numpy(), end, rtol=1e-6, atol=1e-6)
        trace = scheduler.kpe
        if not heun:
            np.testing.assert_allclose(trace.path_energy.total.numpy(), energy, rtol=1e-6)
