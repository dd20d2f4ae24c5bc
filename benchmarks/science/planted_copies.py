"""Which planted copies of training images the measures of an audit find, and which real images they call copies.

    python -m benchmarks.science.planted_copies --fashion-mnist DATA/fashion_mnist.npz --emoji DATA/emoji64.npz

1,024 training images of each data set, 300 copies of each kind, 500 held-out real images. A copy is found if its d1/d2 lies
below the threshold and the nearest image is the one it was made of. Thresholds: the paper's 1/3, and that below which 5 % of
the real images lie.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from benchmarks.report import HERE, environment, table, write_page
from diffusers_kts.audit.copies import Search, searches
from diffusers_kts.features.efficientnet import EfficientNetLite0
from diffusers_kts.memorization.fraction import Memorization, calibrated_threshold, memorized, ratio
from diffusers_kts.memorization.neighbors import distinct_images

NUM_TRAINING, NUM_HELD_OUT = 1024, 500


def flipped(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return images.flip(3)


def shifted(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """By up to 5 % in each direction; the edge is repeated."""
    side = images.shape[3]
    reach = round(0.05 * side)
    wide = F.pad(images, [reach] * 4, mode="replicate")
    starts = torch.randint(2 * reach + 1, (len(images), 2), generator=g).tolist()
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(wide, starts, strict=True)])


def cropped(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """To 85 to 95 % of each side, anywhere, and scaled back."""
    side, found = images.shape[3], []
    for image in images:
        kept = round((0.85 + 0.1 * torch.rand((), generator=g).item()) * side)
        y, x = torch.randint(side - kept + 1, (2,), generator=g).tolist()
        window = image[None, :, y : y + kept, x : x + kept]
        found.append(F.interpolate(window, size=(side, side), mode="bilinear", antialias=True)[0])
    return torch.stack(found)


def recolored(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Each color times .7 to 1.3, and .1 lighter to .1 darker; clipped."""
    gain, offset = torch.rand(2, *images.shape[:2], 1, 1, generator=g)
    return ((0.7 + 0.6 * gain) * images + 0.2 * offset - 0.1).clamp(0, 1)


def compressed(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """JPEG of quality 30."""
    found = []
    for image in images:
        pixels, file = (255 * image).round().byte().permute(1, 2, 0).numpy(), io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=30)
        read = np.array(Image.open(file)).reshape(pixels.shape)
        found.append(torch.from_numpy(read).permute(2, 0, 1).float() / 255)
    return torch.stack(found)


def all_of_them(images: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    for change in (flipped, cropped, recolored, compressed):
        images = change(images, g)
    return images


KINDS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "equal": lambda images, g: images,
    "flipped": flipped,
    "shifted by up to 5 %": shifted,
    "cropped to 85 to 95 %": cropped,
    "recolored": recolored,
    "JPEG, quality 30": compressed,
    "flipped, cropped, recolored, JPEG": all_of_them,
}


def data_sets(args: argparse.Namespace) -> Iterator[tuple[str, torch.Tensor]]:
    """Images (n, C, H, W) in [0, 1], in an order of chance."""
    with np.load(args.fashion_mnist) as archive:
        grey = torch.from_numpy(archive["x_train"][: NUM_TRAINING + NUM_HELD_OUT])[:, None]
    with np.load(args.emoji) as archive:
        plain = [i for i, caption in enumerate(archive["captions"]) if "skin tone" not in str(caption)]
        plain = [i for i in plain if archive["styles"][i] == "noto"]
        colors = torch.from_numpy(archive["images"][plain]).permute(0, 3, 1, 2)
    for name, images in (("Fashion-MNIST", grey), ("emoji", colors)):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))
        yield name, images[order].float() / 255


def measures(training: torch.Tensor) -> dict[str, Search]:
    """Those of an audit by name, in features those of its default network."""
    distinct, space = distinct_images(training), EfficientNetLite0().space()
    found = searches(training, space(training), space, distinct)
    in_features = found.pop("features")
    return found | {space.name: lambda x: in_features(space(x))}


def measured(images: torch.Tensor, num_copies: int, seed: int) -> dict[str, Any]:
    training, real = images[:NUM_TRAINING], images[NUM_TRAINING : NUM_TRAINING + NUM_HELD_OUT]
    limits, called, found = {}, {}, {}
    by_name = measures(training)
    for name, measure in by_name.items():
        distances = measure(real).distances
        limits[name], called[name] = calibrated_threshold(distances), memorized(distances).double().mean().item()
    for kind, plant in KINDS.items():
        copies = plant(training[:num_copies], torch.Generator().manual_seed(seed))
        found[kind] = {name: recall(measure(copies), limits[name]) for name, measure in by_name.items()}
        print(kind, found[kind], flush=True)
    return {"real": called, "threshold": limits, "recall": found}


def recall(found: Memorization, limit: float) -> dict[str, float]:
    right = found.indices[:, 0] == torch.arange(len(found.indices))
    below = {"third": found.is_memorized, "calibrated": ratio(found.distances) < limit}
    return {name: (right & hits).double().mean().item() for name, hits in below.items()}


def page(result: dict[str, Any]) -> str:
    parts = []
    for name, found in result["sets"].items():
        names = [*found["real"]]
        header = ["copies found, %", *(f"{m}, {t}" for m in names for t in ("1/3", "calibrated"))]
        rows = [
            [kind, *(f"{100 * shares[m][t]:.0f}" for m in names for t in ("third", "calibrated"))]
            for kind, shares in found["recall"].items()
        ]
        real = [x for m in names for x in (f"{100 * found['real'][m]:.1f}", f"5, d1/d2 < {found['threshold'][m]:.2f}")]
        parts.append(f"## {name}\n\n" + table(header, [*rows, ["real images called copies", *real]]))
    words = (
        "Verdict: a measure is worth what it finds beyond the real images that it calls copies. Emoji hold many pictures that "
        "differ in color alone (hearts, circles, flags), which a measure blind to color must confuse. A network trained on "
        "photographs finds no more of any kind than the measure made for these changes, and of JPEG far fewer."
    )
    return "\n\n".join([*parts, words])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", required=True, help=".npz with x_train")
    parser.add_argument("--emoji", required=True, help=".npz with images, captions, styles")
    parser.add_argument("--num-copies", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE, help="folder of results/")
    args, began = parser.parse_args(), time.time()
    sets = {name: measured(images, args.num_copies, args.seed) for name, images in data_sets(args)}
    result = {"num_samples": args.num_copies, "seeds": [args.seed], "sets": sets, "environment": environment(began)}
    write_page(args.output, "planted_copies", page(result), result)


if __name__ == "__main__":
    main()
