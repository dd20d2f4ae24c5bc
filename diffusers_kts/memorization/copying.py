"""Published measures of copying, next to the paper's F_mem: C_T, AuthPct and calibrated L2.

None of them knows what a copy is: compare each number with that of real images which the model has not seen.
"""

import math
from collections.abc import Callable

import torch
from scipy.stats import mannwhitneyu

from .fraction import Memorization
from .neighbors import CHUNK_SIZE, NUMBERS, check_images

NEAREST, ALPHA = 50, 0.5  # of calibrated L2, Carlini et al.'s


def copying_statistic(samples: torch.Tensor, real: torch.Tensor) -> float:
    """C_T of Meehan et al. (2020), with all images in one cell: the standardized Mann-Whitney statistic of the distances to
    the nearest training image. Below -3, samples are nearer to the training images than unseen real images are; above 3
    farther, by blur or otherwise.

    Args:
        samples (`torch.Tensor`, (B,)): distances d1 of samples.
        real (`torch.Tensor`, (n,)): of held-out real images.
    """
    m, n = len(samples), len(real)
    farther = float(mannwhitneyu(samples.double().cpu(), real.double().cpu()).statistic)
    return (farther - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


def authentic(found: Memorization, spacing: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """(B,) bool, whether a sample is farther from its nearest training image than that is from its nearest other training
    image; the mean is AuthPct (Alaa et al. 2022), here among distinct training images.

    Args:
        found (`Memorization`): of the samples.
        spacing (`Callable`): of the training images with the indices (m,), distances (m,) to the nearest other one, by the
            same measure.
    """
    nearest, place = found.indices[:, 0].unique(return_inverse=True)
    return found.distances[:, 0] > spacing(nearest)[place]


@torch.no_grad()
def calibrated_l2(
    distances: torch.Tensor, samples: torch.Tensor, training: torch.Tensor, n: int = NEAREST, alpha: float = ALPHA
) -> torch.Tensor:
    """(B,) distance to the nearest training image over ``alpha`` times the mean distance to the ``n`` nearest (Carlini et al.
    2023). Below 1, with ``alpha`` 1/2, the nearest is less than half as far as these are on average.

    Args:
        distances (`torch.Tensor`, (B,)): d1 of the samples.
        samples (`torch.Tensor`, (B, ...)): images, or features of them.
        training (`torch.Tensor`, (m, ...)): distinct ones, on the same scale; where m < ``n``, all are taken.
        n (`int`, defaults to 50): how many.
        alpha (`float`, defaults to 0.5): factor of the mean.

    Raises:
        TypeError: not floating point. ValueError: shapes that do not match.
    """
    check_images(samples, training)
    y = training.flatten(1)
    x = samples.flatten(1).to(torch.promote_types(samples.dtype, torch.float32))
    center = y.mean(0).to(x)  # an offset, the larger the more, would cancel digits in the squares
    x = x - center
    norms, found = x.square().sum(1, keepdim=True), x.new_empty(len(x), 0)
    for part in y.split(max(1, min(CHUNK_SIZE, NUMBERS // max(1, *x.shape)))):
        chunk = part.to(x) - center
        squares = norms + chunk.square().sum(1) - 2 * x @ chunk.T
        found = torch.cat([found, squares.clamp(min=0)], 1)
        found = found.topk(min(n, found.shape[1]), largest=False).values
    return distances / (alpha * found.sqrt().mean(1))
