"""What a shaped sample must be compared with before its F_mem means anything: the controls of KTS (ours).

KTS changes three things at once: it moves less in all, when it moves, and how much noise is left in the image. Each control
keeps one of them and gives up the others, from the same noise:

* `spread_evenly`: the same net displacement, with a constant gain. What is left of an effect is due to the shape.
* `with_equal_noise`: the plain sample, with noise as strong as shaping changed it. What is left is more than blur.
* `finished`: the shaped sample moved on by its missing displacement. What is left does not come from stopping early.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..gain import Gain


def net_displacement(gains: torch.Tensor, sigmas: torch.Tensor) -> float:
    """What share of the way ``sigmas`` (N + 1,) go a sampler with ``gains`` (N,) moved: 1 without shaping, below 1 where it
    stopped early. `Gain.net_displacement` is the limit of many steps.

    Raises:
        ValueError: gains that do not belong to the sigmas, such as those of single tokens or samples.
    """
    if gains.ndim != 1 or sigmas.ndim != 1 or len(sigmas) != len(gains) + 1:
        raise ValueError(
            f"gains are {tuple(gains.shape)}, sigmas {tuple(sigmas.shape)}; give (N,) and (N + 1,), as a KPETrace has them."
        )
    steps = sigmas.double().diff()
    return float((gains.double().to(steps) * steps).sum() / steps.sum())


def spread_evenly(gains: torch.Tensor, sigmas: torch.Tensor) -> dict[str, Any]:
    """Settings of `KTSFlowMatchScheduler` with a constant gain that moves as far as ``gains`` did, on the same grid.

    Args:
        gains (`torch.Tensor`, (N,)): of the shaped run's `KPETrace`.
        sigmas (`torch.Tensor`, (N + 1,)): likewise.

    Raises:
        ValueError: as `net_displacement`.
    """
    share = net_displacement(gains, sigmas)
    even = Gain(alpha_0=share - 1, beta_0=1 - share, early_schedule="constant", late_schedule="constant")
    return vars(even) | {"touchdown": None}


def with_equal_noise(
    plain: torch.Tensor, shaped: torch.Tensor, generators: list[torch.Generator] | torch.Generator | None = None
) -> torch.Tensor:
    """(B, ...) plain samples, each with Gaussian noise of the rms by which the shaped sample of the same noise differs.

    Give latents where there are any: images are clipped, which takes a part of the noise away.

    Args:
        plain (`torch.Tensor`, (B, ...)): plain samples.
        shaped (`torch.Tensor`, (B, ...)): shaped samples of the same noises.
        generators (`list[torch.Generator]` or `torch.Generator`, *optional*): as in a pipeline's call.

    Raises:
        ValueError: shapes that differ.
    """
    if plain.shape != shaped.shape:
        raise ValueError(f"plain samples are {tuple(plain.shape)}, shaped ones {tuple(shaped.shape)}; give the same noises.")
    dtype = torch.promote_types(plain.dtype, torch.float32)
    difference = shaped.to(dtype) - plain.to(dtype)
    noise = randn_tensor(plain.shape, generators, plain.device, dtype)
    rms = difference.square().flatten(1).mean(1).sqrt()
    size = noise.square().flatten(1).mean(1).sqrt()  # so that each sample's rms is equal, not only the mean one
    scale = torch.where(size > 0, rms / size, 0.0).reshape(-1, *[1] * (plain.ndim - 1))
    return (plain.to(dtype) + scale * noise).to(plain.dtype)


def finished(shaped: torch.Tensor, velocity: torch.Tensor, gains: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Shaped samples moved on by their missing displacement, along their last velocity (back, where they moved too far).

    Args:
        shaped (`torch.Tensor`, (B, ...)): the end of the shaped run, latents where there are any.
        velocity (`torch.Tensor`, (B, ...)): the network's last output, ``dx/dsigma``.
        gains (`torch.Tensor`, (N,)): of the run's `KPETrace`.
        sigmas (`torch.Tensor`, (N + 1,)): likewise.

    Raises:
        ValueError: as `net_displacement`.
    """
    missing = (1 - net_displacement(gains, sigmas)) * float(sigmas[-1].double() - sigmas[0].double())
    dtype = torch.promote_types(shaped.dtype, torch.float32)
    return (shaped.to(dtype) + missing * velocity.to(dtype)).to(shaped.dtype)
