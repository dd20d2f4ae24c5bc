"""What a shaped sample must be compared with before its F_mem means anything: the controls of KTS (ours).

KTS changes three things at once: it moves less in all, when it moves, and how much noise is left in the image. Each control
keeps one of them and gives up the others, from the same noise:

* `spread_evenly`: the same net displacement, with a constant gain. What is left of an effect is due to the shape.
* `with_equal_noise`: the plain sample, with noise as strong as shaping changed it. What is left is more than noise.
* `with_equal_blur`: the plain sample, blurred as strongly as shaping changed it. What is left is more than blur.
* `finished`: the shaped sample moved on by its missing displacement. What is left does not come from stopping early.
"""

import math
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..gain import Gain

NARROWEST = 0.05  # standard deviation in pixels of a Gaussian that blurs nothing
BISECTIONS = 40


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
    _check_pair(plain, shaped)
    dtype = torch.promote_types(plain.dtype, torch.float32)
    difference = shaped.to(dtype) - plain.to(dtype)
    noise = randn_tensor(plain.shape, generators, plain.device, dtype)
    rms = difference.square().flatten(1).mean(1).sqrt()
    size = noise.square().flatten(1).mean(1).sqrt()  # so that each sample's rms is equal, not only the mean one
    scale = torch.where(size > 0, rms / size, 0.0).reshape(-1, *[1] * (plain.ndim - 1))
    return (plain.to(dtype) + scale * noise).to(plain.dtype)


def with_equal_blur(plain: torch.Tensor, shaped: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) plain samples, each blurred by a Gaussian as wide as it takes to change it by the rms by which the shaped
    sample of the same noise differs; where no width is enough, to its mean.

    Args:
        plain (`torch.Tensor`, (B, C, H, W)): plain samples.
        shaped (`torch.Tensor`, (B, C, H, W)): shaped samples of the same noises.

    Raises:
        ValueError: shapes that differ, or no images.
    """
    _check_pair(plain, shaped)
    if plain.ndim != 4:
        raise ValueError(f"samples are {tuple(plain.shape)}; give images or latents (B, C, H, W).")
    x, wanted = plain.double(), (shaped.double() - plain.double()).square().flatten(1).mean(1)
    low, high = x.new_full(wanted.shape, math.log(NARROWEST)), x.new_full(wanted.shape, math.log(10 * max(plain.shape)))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        enough = (_blurred(x, middle.exp()) - x).square().flatten(1).mean(1) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    blurred = _blurred(x, low.exp()).to(plain.dtype)
    return torch.where((wanted > 0).reshape(-1, 1, 1, 1), blurred, plain)


def _blurred(x: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """``x`` (B, C, H, W) under Gaussians of (B,) standard deviations in pixels, renormalized at the borders."""

    def kernel(size: int) -> torch.Tensor:
        place = torch.arange(size, dtype=x.dtype, device=x.device)
        return (-(place[:, None] - place).square() / (2 * width.reshape(-1, 1, 1, 1).square())).softmax(-1)

    return kernel(x.shape[-2]) @ x @ kernel(x.shape[-1]).mT


def _check_pair(plain: torch.Tensor, shaped: torch.Tensor) -> None:
    if plain.shape != shaped.shape:
        raise ValueError(f"plain samples are {tuple(plain.shape)}, shaped ones {tuple(shaped.shape)}; give the same noises.")


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
