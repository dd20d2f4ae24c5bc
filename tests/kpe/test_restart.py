"""Runs that go back and step again: each step counts its own interval."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from diffusers_kts import KPETrace, KTSFlowMatchScheduler
from diffusers_kts.kpe.recording import Session, attach, main_trace
from diffusers_kts.kpe.trace import quadrature_weights

RUNS = [[range(6)], [range(4), range(2, 6)], [range(4), range(3, 6)], [range(3), range(1, 4), range(2, 6)]]


def run(scheduler, parts):
    """A run in parts, and the energy of its steps by hand."""
    scheduler.set_timesteps(6)
    x, energy = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2)
    for part in parts:
        scheduler._step_index = None  # found again by the timestep, as in a second loop over a part of the timesteps
        for i in part:
            v = torch.sin(3 * x) + scheduler.sigmas[i]
            energy += 0.5 * v.flatten(1).square().sum(1) * (scheduler.sigmas[i + 1] - scheduler.sigmas[i]).abs()
            x = scheduler.step(v, scheduler.timesteps[i], x, return_dict=False)[0]
    return energy


@pytest.mark.parametrize("parts", RUNS)
@pytest.mark.parametrize("cls", [KTSFlowMatchScheduler, FlowMatchEulerDiscreteScheduler])
def test_energy_of_a_run_that_goes_back(cls, parts, tmp_path):
    scheduler, session = cls(shift=3.0, **({"alpha_0": 0.0, "beta_0": 0.0} if cls is KTSFlowMatchScheduler else {})), Session()
    undo = attach(scheduler, "scheduler", session)
    energy = run(scheduler, parts)
    trace = main_trace(session.traces())
    undo()
    torch.testing.assert_close(trace.path_energy.total, energy)
    assert (trace.ends is None) == (len(parts) == 1) and trace.num_steps == sum(map(len, parts))
    trace.save(tmp_path / "kpe.safetensors")
    torch.testing.assert_close(KPETrace.load(tmp_path / "kpe.safetensors").path_energy.total, energy)
    torch.testing.assert_close(KPETrace.cat([trace, trace]).path_energy.total, energy.repeat(2))


def test_a_second_order_run_in_two_parts_has_the_weights_of_both():
    first, second = torch.tensor([1.0, 0.6, 0.3]), torch.tensor([0.6, 0.3, 0.1, 0.0])
    sigmas, ends = torch.cat([first[:-1], second]), torch.cat([first[1:], second[1:]])
    weights = quadrature_weights(sigmas, "trapezoid", ends)
    parts = [quadrature_weights(part, "trapezoid") for part in (first, second)]
    torch.testing.assert_close(weights, torch.cat(parts))
