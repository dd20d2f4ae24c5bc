"""Noise by number: the noise of a sample depends on the seed and on the sample's index alone."""

from collections.abc import Iterable

import torch


def sample_seed(seed: int, index: int, redraw: int = 0) -> int:
    """The seed of the `torch.Generator` of one sample, the first or a ``redraw``. torch's CPU generator reads 32 bits only;
    within a run no two are equal (up to 100 redraws of 16 million samples), and runs with different seeds share none of their
    first million."""
    # multiples of the golden ratio keep away from each other
    return (seed * 1_000_003 + index + redraw * 2_654_435_769) % 2**32


def sample_generators(seed: int, indices: Iterable[int], redraw: int = 0) -> list[torch.Generator]:
    """A generator per sample, on the CPU: diffusers then draws the same noise for every device."""
    return [torch.Generator().manual_seed(sample_seed(seed, i, redraw)) for i in indices]
