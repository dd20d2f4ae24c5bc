"""Nearest training images up to flips, shifts, crops and color: planted copies are found, real images are not."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_kts.memorization.fraction import calibrated_threshold, measure_memorization
from diffusers_kts.memorization.transformed import measure_transformed


@pytest.fixture(scope="module")
def pictures():
    """120 real training images and 80 others of the same kind, (n, 1, 28, 28)."""
    with np.load(Path(__file__).parents[1] / "data" / "fashion_mnist_slice.npz") as archive:
        images = torch.from_numpy(archive["x_train"]).float()[:, None] / 255
    return images[:120], images[120:]


def jpeg(image, quality=30):
    file = io.BytesIO()
    Image.fromarray((255 * image[0]).byte().numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file))).float()[None] / 255


def cropped(images):
    return torch.nn.functional.interpolate(images[:, :, 2:27, 1:26], size=(28, 28), mode="bilinear", antialias=True)


PLANTED = {
    "equal": (lambda x: x, 1.0),
    "flipped": (lambda x: x.flip(3), 1.0),
    "shifted": (lambda x: torch.nn.functional.pad(x[:, :, 1:, :-1], (1, 0, 0, 1), mode="replicate"), 0.95),
    "cropped": (cropped, 0.6),
    "recolored": (lambda x: 0.6 * x + 0.2, 1.0),
    "JPEG": (lambda x: torch.stack([jpeg(image) for image in x]), 0.95),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_copies_are_found(pictures, kind):
    training, held_out = pictures
    plant, recall = PLANTED[kind]
    limit = calibrated_threshold(measure_transformed(held_out, training).distances)
    found = measure_transformed(plant(training[:40]), training, threshold=limit)
    named = found.is_memorized & (found.indices[:, 0] == torch.arange(40))
    assert named.double().mean() >= recall
    if kind in ("flipped", "cropped", "shifted"):
        assert measure_memorization(plant(training[:40]), training).f_mem.fraction < 0.5


def test_gain_and_offset_of_each_color_and_a_flip_cost_nothing(pictures):
    training = torch.cat([pictures[0][:40], pictures[0][40:80], pictures[0][80:]], 1)  # three colors
    changed = training.flip(3) * torch.tensor([0.4, 0.9, 0.6]).view(3, 1, 1) + torch.tensor([0.1, 0.0, 0.3]).view(3, 1, 1)
    assert measure_transformed(changed, training).is_memorized.all()


def test_the_two_nearest_are_different_images(pictures):
    training, held_out = pictures
    twice = torch.cat([training, training[:3]])  # copies are left out, as in F_mem
    found = measure_transformed(held_out, twice)
    assert (found.indices[:, 0] != found.indices[:, 1]).all() and (found.distances[:, 0] <= found.distances[:, 1]).all()
    assert found.num_distinct == 120 and int(found.indices.max()) < 120


def test_a_calibrated_threshold_calls_no_more_real_images_copies(pictures):
    training, held_out = pictures
    distances = measure_transformed(held_out, training).distances
    for share in (0.0, 0.05, 0.2):
        called = (distances[:, 0] / distances[:, 1] < calibrated_threshold(distances, share)).sum()
        assert called <= share * len(held_out)


def test_images_smaller_than_their_description(pictures):
    small = torch.nn.functional.adaptive_avg_pool2d(pictures[0], (6, 4))
    assert measure_transformed(small[:40].flip(3), small).is_memorized.double().mean() > 0.9


def test_what_cannot_be_compared_is_refused(pictures):
    training, held_out = pictures
    with pytest.raises(ValueError, match="give the same shape"):
        measure_transformed(held_out[:, :, :20], training)
    with pytest.raises(ValueError, match="1 are distinct"):
        measure_transformed(held_out, training[:1].repeat(5, 1, 1, 1))
    with pytest.raises(ValueError, match="threshold is 2"):
        measure_transformed(held_out, training, threshold=2)
