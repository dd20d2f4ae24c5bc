"""A fine solution of the shaped equation, by classical Runge-Kutta in float64 and in two parts, since eta has a kink."""

import functools

import numpy as np
import torch


def field(x, t):
    """Some smooth velocity field that couples space and time; ``dx/dsigma``."""
    return torch.sin(2 * x + t) - 0.5 * x


def noise(seed=0, dtype=torch.float64):
    return torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@functools.cache
def solve(gain, seed, t_start, t_end, n=80):
    """End of ``dx/dt = -eta(t) field(x, t)`` and path energy ``1/2 int ||eta v||^2 dt``, both to about 1e-9."""
    x = noise(seed)
    energy = torch.zeros(len(x), dtype=torch.float64)
    for a, b in ((t_start, gain.tau_split), (gain.tau_split, t_end)):
        h = (b - a) / n

        def speed(x, t, a=a, b=b):
            return -gain(min(max(t, a), b - 1e-12)) * field(x, t)

        def power(v):
            return v.square().flatten(1).sum(1)

        for t in np.arange(n) * h + a:
            k1 = speed(x, t)
            k2 = speed(x + h / 2 * k1, t + h / 2)
            k3 = speed(x + h / 2 * k2, t + h / 2)
            k4 = speed(x + h * k3, t + h)
            after = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            k5 = speed(after, t + h)
            middle = speed((x + after) / 2 + h / 8 * (k1 - k5), t + h / 2)
            energy += h / 12 * (power(k1) + 4 * power(middle) + power(k5))  # Simpson
            x = after
    return x, energy


def run(scheduler, x, v=field):
    """The sampler loop of every pipeline; the network is told the honest flow time."""
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(v(x, 1 - scheduler.sigmas[i].double()), timestep, x, return_dict=False)[0]
    return x


def order(errors, steps):
    """Slope of the error against the step, both on logarithmic axes."""
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]
