"""Noise by number: the noise of a sample depends on the seed and on the sample's index alone."""

from collections.abc import Iterable

import torch


def sample_seed(seed: int, index: int) -> int:
    """The seed of the `torch.Generator` of one sample. torch's CPU generator reads 32 bits only; within a run no two are
    equal, and runs with different seeds share none of their first million."""
    return (seed * 1_000_003 + index) % 2**32


def sample_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """A generator per sample, on the CPU: diffusers then draws the same noise for every device."""
    return [torch.Generator().manual_seed(sample_seed(seed, i)) for i in indices]
