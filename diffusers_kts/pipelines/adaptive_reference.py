"""Reference runs of a class-conditional pipeline: an adaptive solver, to a tolerance, with the path energy along it."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch

from ..errors import install
from ..gain import Gain
from .pipeline_flow_class_conditional import ClassConditionalFlowPipeline, Labels


@dataclass(frozen=True, eq=False)
class ReferenceRun:
    """Where the solver ended: ``latents`` (B, C, H, W), ``path_energy`` (B,) and the network calls it took."""

    latents: torch.Tensor
    path_energy: torch.Tensor
    network_calls: int


@torch.no_grad()
def solve_to_tolerance(
    pipe: ClassConditionalFlowPipeline,
    class_labels: Labels,
    latents: torch.Tensor | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    gain: Gain | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
) -> ReferenceRun:
    """Solve ``dx/dt = eta(t) v(x, t)`` and ``dE/dt = ||eta v||^2 / 2`` together, without guidance, by ``torchdiffeq``.

    What a sampler of few steps is compared with. The step is chosen for the whole batch.

    Args:
        pipe (`ClassConditionalFlowPipeline`): its transformer is the velocity; its scheduler is not used.
        class_labels (`int`, `str`, a list of them, or `torch.Tensor`): one class per sample.
        latents (`torch.Tensor`, *optional*): (B, C, H, W) starting noise.
        generator (`torch.Generator` or list): for reproducible noise.
        gain (`Gain`, *optional*): of KTS; none by default. Its two phases are solved one after the other.
        rtol (`float`): relative tolerance of a step.
        atol (`float`): absolute tolerance of a step.
        method (`str`): an adaptive solver of torchdiffeq; "dopri5" is that of arXiv 2602.07928's code.

    Raises:
        ImportError: torchdiffeq is missing. ValueError: unknown classes, or latents of another shape.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(f"torchdiffeq is missing; install it: {install('solve')}", name="torchdiffeq") from error
    device, dtype = pipe.transformer.device, pipe.transformer.dtype
    labels = pipe.get_label_ids(class_labels).to(device)
    x = pipe.prepare_latents(len(labels), dtype, device, generator, latents)
    energy, calls, scale = x.new_zeros(len(x)), 0, pipe.scheduler.config.num_train_timesteps
    marks = [0.0, 1.0] if gain is None else [0.0, gain.tau_split, 1.0]
    for start, end in pairwise(marks):
        before_end = math.nextafter(end, start) if end < 1 else end  # the gain may jump at its end

        def field(t: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor], last: float = before_end) -> tuple:
            nonlocal calls
            calls += 1
            time = (scale * (1 - t)).to(dtype).expand(len(labels))
            v = -pipe.transformer(state[0], timestep=time, class_labels=labels, return_dict=False)[0]
            v = v if gain is None else float(gain(min(float(t), last))) * v
            return v, v.square().flatten(1).sum(1) / 2

        times = torch.tensor([start, end], dtype=torch.float64, device=device)
        states, energies = odeint(field, (x, energy), times, rtol=rtol, atol=atol, method=method)
        x, energy = states[-1], energies[-1]
    return ReferenceRun(x, energy, calls)
