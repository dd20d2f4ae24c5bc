"""The training images nearest to samples, exactly, and which of them are distinct."""

import hashlib

import torch

CHUNK_SIZE = 4096
_SPARE = 16  # candidates beyond k, so that the bound separates nearly every sample
_BLOCK = 1024  # samples held against a chunk at a time
_COLUMNS = 2048  # dimensions summed in one matrix product, which keeps its rounding bound small for large images
NUMBERS = 2**25  # read at a time, whatever the size of an image; 256 MiB in float64


@torch.no_grad()
def nearest_neighbors(
    samples: torch.Tensor, training: torch.Tensor, k: int = 2, chunk_size: int = CHUNK_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``k`` training images nearest to every sample, exactly: what a search through all float64 distances finds.

    A matrix product shortlists candidates, whose distances are then computed by differences, in float64. Where the rounding
    bound of the product cannot exclude all others, the sample is held against every training image in that way.

    Args:
        samples (`torch.Tensor`, (B, ...)): floating-point images, or features of them; computed on their device.
        training (`torch.Tensor`, (n, ...)): of the same shape and the same scale; read in the dtype of the samples.
        k (`int`, defaults to 2): how many neighbors.
        chunk_size (`int`, defaults to 4096): training images held against the samples at a time, fewer if they are large;
            the result, to the last bit, does not depend on it.

    Returns:
        distances (B, k), L2 in the units of the samples and in their dtype (float32 for narrower ones), ascending, and
        indices (B, k) into ``training``; of equal distances the lower index comes first. A sample with a NaN is at
        distance NaN.

    Raises:
        TypeError: not floating point. ValueError: shapes that do not match, too few training images, ``chunk_size`` < 1.
    """
    check_images(samples, training)
    if not 1 <= k <= len(training):
        raise ValueError(f"k is {k} for {len(training)} training images; give a k from 1 to that number.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; give at least 1.")
    x, y = samples.flatten(1).to(torch.promote_types(samples.dtype, torch.float32)), training.flatten(1)
    chunk_size = min(chunk_size, max(1, NUMBERS // max(1, x.shape[1])))
    with torch.autocast(x.device.type, enabled=False):
        candidates, separated = _shortlist(x, y, k, chunk_size)
        distances, indices = _nearest_of(x, y, candidates, k)
        rest = (~separated).nonzero().flatten()
        if len(rest):
            distances[rest], indices[rest] = _search_all(x[rest], y, k, chunk_size)
    return distances, indices


def check_images(samples: torch.Tensor, training: torch.Tensor) -> None:
    for name, images in (("samples", samples), ("training", training)):
        if not isinstance(images, torch.Tensor):
            raise TypeError(f"{name} is {type(images).__name__}; give a tensor of floats, torch.from_numpy(...).float().")
        if not images.is_floating_point():
            raise TypeError(f"{name} is {images.dtype}; give floating-point images, both on the same scale (uint8 / 255).")
    if samples.shape[1:] != training.shape[1:]:
        raise ValueError(
            f"samples are {tuple(samples.shape[1:])}, training images {tuple(training.shape[1:])}; give the same shape."
        )


def _shortlist(x: torch.Tensor, y: torch.Tensor, k: int, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Candidates (B, m), and (B,) bool, whether these surely hold the k nearest.

    Ranked by ``g = ||y||^2 - 2 x.y``, the squared distance less ``||x||^2``. Summing n terms at unit roundoff u, the
    computed g is within ``E = n u (||x|| + ||y||)^2`` of the true one, in whatever order a library sums. The squared
    distances that decide have a relative error r (d roundoffs of float64, and rounding to the dtype of x). Let T be the k-th
    smallest computed g: then none of the k nearest has one above ``T + 2 E + 2 r (||x|| + ||y||)^2``.
    """
    m, d = min(k + _SPARE, len(y)), x.shape[1]
    # TF32 and the like round the factors, too, of which the bound knows nothing
    dtype = x.dtype if torch.get_float32_matmul_precision() == "highest" else torch.float64
    best = torch.empty((len(x), 0), dtype=dtype, device=x.device)
    indices, longest = torch.empty_like(best, dtype=torch.int64), torch.zeros((), dtype=torch.float64, device=x.device)
    for start in range(0, len(y), chunk_size):
        chunk = y[start : start + chunk_size].to(x).to(dtype)
        norms = _norms(chunk)
        longest = torch.maximum(longest, norms.max())
        parts = [_scores(block.to(dtype), chunk, norms).topk(min(m, len(chunk)), largest=False) for block in x.split(_BLOCK)]
        best = torch.cat([best, torch.cat([part.values for part in parts])], 1)
        indices = torch.cat([indices, torch.cat([part.indices for part in parts]) + start], 1)
        best, order = best.topk(min(m, best.shape[1]), largest=False)
        indices = indices.gather(1, order)
    unit, unit64 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float64).eps / 2
    reach = (_norms(x) + longest).square()
    terms = min(d, _COLUMNS) + d // _COLUMNS + 16
    slack = 2.5 * (terms * unit + 2 * torch.finfo(x.dtype).eps + d * unit64) * reach + 4 * d * torch.finfo(dtype).tiny
    whole = reach < torch.finfo(dtype).max / 4  # else something may overflow; False for NaN
    return indices, whole & ((m == len(y)) | (best[:, -1].double() > best[:, k - 1].double() + slack))


def _scores(x: torch.Tensor, y: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    g = norms.square().to(x.dtype).expand(len(x), -1)
    for start in range(0, x.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        g = torch.addmm(g, x[:, part], y[:, part].T, alpha=-2)
    return g


def _norms(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64)


def _l2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # the matrix-product form turns a distance of zero into one of about 1e-3
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").to(x.dtype)


def _nearest_of(x: torch.Tensor, y: torch.Tensor, candidates: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of every sample's own candidates (B, m)."""
    candidates, found = candidates.sort(1).values, []
    size = max(1, NUMBERS // max(1, candidates.shape[1] * x.shape[1]))
    for start in range(0, max(1, len(x)), size):
        rows = slice(start, start + size)
        near = y[candidates[rows].to(y.device)].to(x)
        found.append(_first(_l2(x[rows, None], near)[:, 0], candidates[rows], k))
    return torch.cat([d for d, _ in found]), torch.cat([i for _, i in found])


def _search_all(x: torch.Tensor, y: torch.Tensor, k: int, chunk_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest of all, by every distance."""
    distances, indices = x.new_empty((len(x), 0)), torch.empty((len(x), 0), dtype=torch.int64, device=x.device)
    for start in range(0, len(y), chunk_size):
        chunk = y[start : start + chunk_size].to(x)
        d = torch.cat([_l2(block, chunk) for block in x.split(_BLOCK)])
        i = torch.arange(start, start + len(chunk), device=x.device).expand_as(d)
        distances, indices = _first(torch.cat([distances, d], 1), torch.cat([indices, i], 1), k)
    return distances, indices


def _first(distances: torch.Tensor, indices: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    distances, order = distances.sort(dim=1, stable=True)
    return distances[:, :k], indices.gather(1, order[:, :k])


def equal_images(images: torch.Tensor) -> list[list[int]]:
    """Indices of the images (n, ...) in groups that are equal in every number; in order, most of them alone."""
    groups: dict[bytes, list[int]] = {}
    for i, image in enumerate((images.detach().cpu() + 0).numpy()):  # -0.0 + 0 is 0.0, the equal number
        groups.setdefault(hashlib.sha256(image.tobytes()).digest(), []).append(i)
    return list(groups.values())


def distinct_images(images: torch.Tensor) -> torch.Tensor:
    """(m,) indices, ascending, of the images (n, ...) that equal no earlier one in every number."""
    return torch.tensor([group[0] for group in equal_images(images)], dtype=torch.int64)
