"""A judge of emoji: which of the 1,910 concepts does a picture show, whatever its style?

The features of an ImageNet network (EfficientNet-Lite0, extra ``audit``) and a linear head, trained on real pictures of both
styles alone, under shifts, scales, rotations, changes of color, blur, and sent through the autoencoder. It never sees a
picture that a model made.
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from diffusers_kts.features.efficientnet import EfficientNetLite0


class Features:
    """Features (n, 1280) of pixels (n, 3, h, w) in [0, 1], computed in bfloat16."""

    def __init__(self):
        self.network = EfficientNetLite0()

    @torch.no_grad()
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def __call__(self, pixels: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        return torch.cat([self.network(part) for part in pixels.split(batch_size)])


def as_pixels(images: np.ndarray) -> torch.Tensor:
    """Images (n, h, w, 3) uint8 as pixels (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def reconstructed(vae, pixels: torch.Tensor, noise: float, generator: torch.Generator, batch_size: int = 128) -> torch.Tensor:
    """Pixels (n, 3, h, w) in [0, 1] sent through the autoencoder, with noise of so many standard deviations on the latents."""
    decoded = []
    for part in pixels.split(batch_size):
        latents = vae.encode(part * 2 - 1).latent_dist.mean
        latents = latents + noise / vae.config.scaling_factor * torch.randn(latents.shape, generator=generator)
        decoded.append((vae.decode(latents).sample / 2 + 0.5).clamp(0, 1))
    return torch.cat(decoded)


def augmented(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pixels (n, 3, h, w) in [0, 1], each shifted, scaled, turned, recolored and blurred a little on white."""
    n = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand((n, *shape), generator=generator)

    angle, scale, shift = uniform(-0.15, 0.15), uniform(0.9, 1.2), uniform(-0.12, 0.12, 2)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    maps = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(maps, list(pixels.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pixels, grid, align_corners=False)
    gray = moved.mean(1, keepdim=True)
    moved = gray + (moved - gray) * uniform(0.7, 1.3, 1, 1, 1)
    moved = 0.5 + (moved - 0.5) * uniform(0.8, 1.2, 1, 1, 1) + uniform(-0.06, 0.06, 3, 1, 1)
    width = uniform(0.05, 1.2)
    offsets = torch.arange(-2, 3)
    kernel = torch.exp(-offsets.square() / (2 * width.square()[:, None]))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(moved.reshape(1, n * 3, *moved.shape[2:]), (2, 2, 2, 2), mode="replicate")
    flat = F.conv2d(F.conv2d(flat, kernel[:, None, :, None], groups=n * 3), kernel[:, None, None, :], groups=n * 3)
    return flat.reshape(pixels.shape).clamp(0, 1)


def views_of(pixels: torch.Tensor, features: Features, vae, views: int, generator: torch.Generator) -> torch.Tensor:
    """Features (views * n, d) of views of the pixels (n, 3, h, w), all of one view after those of the other: the first is the
    picture itself, every third went through the autoencoder."""
    seen = []
    for i in range(views):
        view = reconstructed(vae, pixels, 0.2 * (i % 2), generator) if i % 3 == 2 else pixels
        seen.append(features(augmented(view, generator) if i else view))
    return torch.cat(seen)


class ConceptJudge:
    """A linear head on standardized features.

    Args:
        features (`torch.Tensor`, (n, d)): of real pictures. concepts (`torch.Tensor`, (n,)): the index of each one's concept.
    """

    def __init__(self, features: torch.Tensor, concepts: torch.Tensor, epochs: int = 20, seed: int = 0):
        self.mean, self.std = features.mean(0), features.std(0) + 1e-6
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.head = torch.nn.Linear(features.shape[1], int(concepts.max()) + 1)
        optimizer = torch.optim.AdamW(self.head.parameters(), lr=2e-3, weight_decay=1e-2)
        x = (features - self.mean) / self.std
        updates = epochs * math.ceil(len(x) / 256)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=generator).split(256):
                loss = F.cross_entropy(self.head(x[rows]), concepts[rows], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    @torch.no_grad()
    def log_probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """(n, concepts) of each picture."""
        return self.head((features - self.mean) / self.std).log_softmax(1)

    def ranks(self, features: torch.Tensor, concepts: torch.Tensor) -> torch.Tensor:
        """Rank (n,) of each picture's own concept among all of them, 0 the first."""
        logits = self.log_probabilities(features)
        return (logits > logits.gather(1, concepts[:, None])).sum(1)
