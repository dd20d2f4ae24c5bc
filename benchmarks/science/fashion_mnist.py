"""Fashion-MNIST for the benchmarks: the images, and a small classifier that judges samples and supplies features.

The classifier is trained once on the real training images and kept in ``benchmarks/cache/``. Its last hidden layer, 128
features, is the space of every Frechet distance in ``benchmarks/``.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

CACHE = Path(__file__).parents[1] / "cache"


@dataclass(frozen=True)
class Data:
    """Images (n, 1, 28, 28) in [0, 1] and labels (n,)."""

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor


def to_images(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32) / 255)[:, None]


def load_data(path: str | Path) -> Data:
    """An ``.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``; images uint8."""
    with np.load(path) as data:
        x_train, x_test = (to_images(data[name]) for name in ("x_train", "x_test"))
        y_train, y_test = (torch.from_numpy(data[name]).long() for name in ("y_train", "y_test"))
    return Data(x_train, y_train, x_test, y_test)


class Classifier:
    """A small convolutional network, trained on the real training images, with its accuracy on the real test images."""

    def __init__(self, data: Data, epochs: int = 4, cache: Path = CACHE) -> None:
        digest = hashlib.sha256(data.x_train.numpy().tobytes()).hexdigest()[:12]
        path = cache / f"classifier-{digest}-{epochs}.pt"
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
        )  # fmt: skip
        if path.exists():
            kept = torch.load(path, weights_only=True)
            self.network.load_state_dict(kept["network"])
            self.network.eval()
            self.accuracy = kept["accuracy"]
        else:
            self._train(data.x_train, data.y_train, epochs)
            self.network.eval()
            self.accuracy = (self.predict(data.x_test) == data.y_test).double().mean().item()
            path.parent.mkdir(exist_ok=True)
            torch.save({"network": self.network.state_dict(), "accuracy": self.accuracy}, path)

    def _train(self, images: torch.Tensor, labels: torch.Tensor, epochs: int, batch: int = 128) -> None:
        optimizer, steps = torch.optim.AdamW(self.network.parameters(), lr=2e-3), epochs * len(images) // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
        for _ in range(steps):
            index = torch.randint(len(images), (batch,))
            loss = nn.functional.cross_entropy(self.network(images[index]), labels[index], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 10) probability of every class."""
        return torch.cat([self.network(part).softmax(1) for part in images.split(500)])

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """(B,) most probable class."""
        return self.probabilities(images).argmax(1)

    @torch.no_grad()
    def features(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 128) last hidden layer, float64."""
        return torch.cat([self.network[:-1](part) for part in images.split(500)]).double()
