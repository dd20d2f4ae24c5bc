"""How densely the training images lie around a sample, in pixels: the local support of arXiv 2602.07928, two ways."""

import torch

from ..memorization.neighbors import nearest_neighbors

NEIGHBOR = 10
ESTIMATED_FROM = 500  # training images


class Support:
    """Log-densities, up to a constant, of training images (n, C, H, W), distinct and more than `NEIGHBOR`.

    The kernel is a Gaussian as wide as the median distance from a training image to its 10th nearest other one, over the first
    `ESTIMATED_FROM`, so that it does not depend on the samples.
    """

    def __init__(self, training: torch.Tensor) -> None:
        self.training = training.flatten(1)
        apart, _ = nearest_neighbors(self.training[:ESTIMATED_FROM], self.training, k=NEIGHBOR + 1)  # itself is the nearest
        self.width = apart[:, -1].median()

    def knn(self, distances: torch.Tensor) -> torch.Tensor:
        """(B,) ``-log`` of the distance to the 10th nearest, of ascending distances (B, >= 10)."""
        return -distances[:, NEIGHBOR - 1].log()

    def kde(self, images: torch.Tensor) -> torch.Tensor:
        """(B,) log of the mean kernel at images (B, C, H, W)."""
        exponents = torch.cdist(images.flatten(1), self.training).square() / (2 * self.width.square())
        return torch.logsumexp(-exponents, 1) - torch.tensor(len(self.training)).log()
