"""``||v||^2`` of every sample of a batch, exact to fp32 whatever the size, dtype and layout."""

import math

import torch
from torch.linalg import vector_norm

ROW, SHORTEST_ROW = 512, 64  # numbers added up in a row: the greatest common divisor of the first and the sample's size
LONGEST_SUM = 2**15  # above it, torch's threads would divide the sum of a sample, but not those of several
BLOCK = 2**19  # numbers widened at a time: 2 MiB of fp32, about what the cores have in their own caches


def rows_of(shape: torch.Size) -> tuple[tuple[int, int, int], int]:
    """How a batch is cut to be summed: (B, rows, length), and how many numbers of each sample are left over."""
    d = math.prod(shape[1:])
    row = math.gcd(d, ROW)
    if row < SHORTEST_ROW:
        row = max(min(d, ROW), 1)
    return (shape[0], d // row, row), d % row


def squared_norm(v: torch.Tensor) -> torch.Tensor:
    """(B,) ``||v||^2`` of a batch, summed in at least fp32 over all dimensions but the first, whatever the layout.

    On the CPU a sample is cut into rows, whose sums are added: one running fp32 sum of millions of squares would be 1e-4 off,
    and only one core would compute it. Cut like this, the sum of a contiguous sample also does not depend on the rest of the
    batch. Narrow dtypes are widened in blocks that stay in the cache.
    """
    if not v.is_cpu:  # one kernel, which widens as it reads
        wide = torch.promote_types(v.dtype, torch.float32)
        return (v.to(wide) if v.ndim == 1 else vector_norm(v, dim=tuple(range(1, v.ndim)), dtype=wide)).square()
    shape, rest = rows_of(v.shape)
    if rest:
        flat = v.reshape(shape[0], shape[1] * shape[2] + rest)
        norms = torch.cat([_norms(flat[:, :-rest].unflatten(1, shape[1:])), _norms(flat[:, -rest:].unsqueeze(1))], 1)
    elif shape[1] == 1:
        norms = v.reshape(shape[0], shape[2]).to(torch.promote_types(v.dtype, torch.float32))
    else:
        norms = _norms(v.reshape(shape))
    if shape[1] >= LONGEST_SUM:
        return squared_norm(norms)
    return norms.square().sum(1)


def _norms(rows: torch.Tensor) -> torch.Tensor:
    """(B, rows) norms along the last dimension of (B, rows, length)."""
    if rows.element_size() >= 4:
        return vector_norm(rows, dim=2)
    if rows.numel() <= BLOCK:
        return vector_norm(rows.float(), dim=2)
    blocks = rows.flatten(0, 1).split(BLOCK // rows.shape[2])
    return torch.cat([vector_norm(block.float(), dim=1) for block in blocks]).view(rows.shape[:2])


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B,) ``||a - b||`` in at least fp32."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return squared_norm(a.to(wide) - b.to(wide)).sqrt()


def token_intervals(token_sigmas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """(B, S, 1) interval from every token's own noise level (B, S) to the next lower one of the schedule, as diffusers'
    per-token steps go; 0 for tokens that are clean already."""
    table = sigmas[:, None, None]
    lower = ((table < token_sigmas[None] - 1e-6) * table).amax(0)
    return (token_sigmas - lower)[..., None]
