"""What the two embedded models do, measured: class accuracy of plain samples, and the memorised fraction F_mem.

    python benchmarks/embedded_models.py --data fashion_mnist.npz

A small convolutional classifier is trained on the real training images and judged on the real test images; then it judges
plain 50-step samples of the generalising model. F_mem (share with d1/d2 < 1/3, L2 in pixels) is measured on plain 100-step
samples of the memorising model against its training images. Writes ``benchmarks/results/embedded_models.json``.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import diffusers
import numpy as np
import torch
from torch import nn

from diffusers_kts import ClassConditionalFlowPipeline, embedded_model
from diffusers_kts.memorization import memorized, nearest_neighbours

RESULTS = Path(__file__).parent / "results" / "embedded_models.json"


def to_images(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.float32) / 255)[:, None]


def train_classifier(images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    batch, steps = 128, epochs * len(images) // 128
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        index = torch.randint(len(images), (batch,))
        loss = nn.functional.cross_entropy(model(images[index]), labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(500)])


def sample(name: str, count: int, steps: int, guidance_scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model(name))
    pipe.set_progress_bar_config(disable=True)
    labels, generator = torch.arange(count) % 10, torch.Generator().manual_seed(seed)
    call = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "generator": generator, "output_type": "pt"}
    return torch.cat([pipe(part, **call).images for part in labels.split(250)]), labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help=".npz with x_train, y_train, x_test, y_test")
    parser.add_argument("--num-samples", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    began = time.time()
    with np.load(args.data) as data:
        x, y = to_images(data["x_train"]), torch.from_numpy(data["y_train"]).long()
        x_test, y_test = to_images(data["x_test"]), torch.from_numpy(data["y_test"]).long()
    classifier = train_classifier(x, y, args.epochs)
    result: dict = {"classifier_test_accuracy": (predict(classifier, x_test) == y_test).float().mean().item()}
    for guidance in (1.0, 1.5, 2.0):
        images, labels = sample("generalising", args.num_samples, 50, guidance, seed=1)
        right = (predict(classifier, images) == labels).float()
        result[f"generalising_class_accuracy_guidance_{guidance}"] = right.mean().item()
        if guidance == 1.0:
            result["generalising_class_accuracy_per_class"] = [right[labels == c].mean().item() for c in range(10)]
            close, _ = nearest_neighbours(images, x)
            result["generalising_f_mem"] = memorized(close).float().mean().item()
    with np.load(embedded_model("memorising") / "training_images.npz") as data:
        training = to_images(data["images"])
    for steps in (50, 100):
        images, _ = sample("memorising", args.num_samples, steps, 1.0, seed=1)
        close, _ = nearest_neighbours(images, training)
        result[f"memorising_f_mem_{steps}_steps"] = memorized(close).float().mean().item()
    result["memorising_training_images"] = len(training)
    result |= {"num_samples": args.num_samples, "seconds": round(time.time() - began), "device": platform.machine() + " CPU"}
    result |= {"torch": torch.__version__, "diffusers": diffusers.__version__, "date": time.strftime("%Y-%m-%d")}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
