"""Sets of images: every form that holds them gives the same pixels and rows; what cannot be evaluated is refused."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from diffusers_kts.evaluate.job import evaluate
from diffusers_kts.generate import run_generate
from diffusers_kts.generate.settings import GenerateSettings
from diffusers_kts.images.image_sets import KEPT, open_images

RNG = np.random.default_rng(0)
COLORS = RNG.integers(0, 256, (7, 5, 6, 3), np.uint8)
FORMATS = ("imagefolder", "webdataset", "parquet")


def pixels(images, size=3):
    return torch.cat(list(images.batches(size)))


def save(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    for format in FORMATS:
        job = {"num_prompts": 5, "num_inference_steps": 2, "batch_size": 2, "shard_size": 2, "format": format}
        assert run_generate(GenerateSettings(output=str(folder / format), **job)).complete
    return folder


def test_outputs_of_every_format_are_the_same_set(drawn):
    rows = [json.loads(line) for line in (drawn / "imagefolder" / "metadata.jsonl").read_text().splitlines()]
    files = [np.asarray(Image.open(drawn / "imagefolder" / row["file_name"])) for row in rows]
    for format in FORMATS:
        images = open_images(drawn / format)
        assert images.shape == (1, 28, 28) and len(images) == 5
        assert images.rows == [{name: row[name] for name in KEPT if name in row} for row in rows]
        assert images.rows[3]["class_name"] and images.rows[3]["path_energy_total"] > 0
        for size in (1, 2, 64):
            assert np.array_equal(pixels(images, size)[:, 0].numpy(), np.stack(files))


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_arrays_are_read_in_parts(tmp_path, size):
    np.save(tmp_path / "a.npy", COLORS)
    np.savez(tmp_path / "b.npz", COLORS)  # as arr_0
    np.savez_compressed(tmp_path / "c.npz", mu=np.zeros(3), images=COLORS)
    save(tmp_path / "pictures", COLORS)
    for name in ("a.npy", "b.npz", "c.npz", "pictures"):
        batches = list(open_images(tmp_path / name).batches(size))
        assert max(map(len, batches)) <= size and torch.equal(torch.cat(batches).permute(0, 2, 3, 1), torch.from_numpy(COLORS))
    assert open_images(tmp_path / "a.npy", 4).shape == (3, 4, 4) and "4x4" in open_images(tmp_path / "a.npy", 4).resize


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_more_than_a_few_batches_are_in_memory(tmp_path, save):
    save(tmp_path / "many.npz", np.zeros((1500, 64, 64, 3), np.uint8))  # 18 MB
    images = open_images(tmp_path / "many.npz")
    tracemalloc.start()
    try:
        assert sum(len(batch) for batch in images.batches(16)) == 1500
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_grey_and_color_sizes_and_cameras(tmp_path):
    grey = COLORS[:2, ..., 0]
    save(tmp_path / "grey", grey)
    assert torch.equal(pixels(open_images(tmp_path / "grey"))[:, 0], torch.from_numpy(grey))
    Image.fromarray(COLORS[0]).save(tmp_path / "grey" / "color.png")
    mixed = pixels(open_images(tmp_path / "grey"))
    assert mixed.shape == (3, 3, 5, 6) and torch.equal(mixed[0, 2], torch.from_numpy(grey[0]))

    save(tmp_path / "sizes", [np.full((6, 6, 3), 80, np.uint8), np.full((9, 12, 3), 200, np.uint8)])
    scaled = open_images(tmp_path / "sizes", 6)
    assert pixels(scaled).float().mean((1, 2, 3)).tolist() == [80, 200] and "cropped" in scaled.resize

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned by a quarter to the right
    (tmp_path / "turned").mkdir()
    Image.fromarray(COLORS[0]).save(tmp_path / "turned" / "a.png", exif=exif)
    turned = open_images(tmp_path / "turned")
    assert turned.shape == (3, 6, 5)
    assert np.array_equal(pixels(turned)[0].permute(1, 2, 0).numpy(), np.rot90(COLORS[0], -1))


def test_an_unfinished_output_is_not_measured(tmp_path, drawn):
    shutil.copytree(drawn / "webdataset", tmp_path / "set")
    (tmp_path / "set" / ".kts" / "assembled.json").unlink()
    for options in ({"reference": drawn / "imagefolder"}, {"training_images": tmp_path / "set"}):
        with pytest.raises(ValueError, match="not finished"):
            evaluate(tmp_path / "set" if "reference" in options else drawn / "imagefolder", **options)


def broken(folder, drawn):
    save(folder, COLORS[:2])
    (folder / "x.png").write_bytes(b"text")


def cut(folder, drawn):
    save(folder, COLORS[:2])
    data = (folder / "1.png").read_bytes()
    (folder / "1.png").write_bytes(data[: len(data) // 2])


def mixed(folder, drawn):
    save(folder, [COLORS[0], COLORS[1, :4]])


def nameless(folder, drawn):
    save(folder, COLORS[:1])
    (folder / "metadata.jsonl").write_text('{"prompt": "x"}\n')


def films(folder, drawn):
    folder.mkdir()
    (folder / "metadata.jsonl").write_text('{"file_name": "videos/1.mp4"}\n')


def half_a_shard(folder, drawn):
    (folder / "shards").mkdir(parents=True)
    data = next((drawn / "webdataset" / "shards").iterdir()).read_bytes()
    (folder / "shards" / "0.tar").write_bytes(data[:700])


def half_a_table(folder, drawn):
    (folder / "data").mkdir(parents=True)
    data = next((drawn / "parquet" / "data").iterdir()).read_bytes()
    (folder / "data" / "0.parquet").write_bytes(data[:700])


def half_an_array(path, drawn):
    np.save(path.with_suffix(".npy"), COLORS)
    path.write_bytes(path.with_suffix(".npy").read_bytes()[:300])


def floats(path, drawn):
    with path.open("wb") as file:
        np.savez(file, images=COLORS / 255)


def no_images(path, drawn):
    with path.open("wb") as file:
        np.savez(file, mu=np.zeros(4))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, drawn: None, "there is nothing at"),
        (lambda folder, drawn: folder.mkdir(), "holds no pictures"),
        (broken, "x.png in .* cannot be read as a picture"),
        (cut, "1.png in .* cannot be read as a picture"),
        (mixed, "2 sizes .*--image-size"),
        (nameless, "line 1 of .* file_name"),
        (films, "holds videos"),
        (half_a_shard, "0.tar cannot be read"),
        (half_a_table, "0.parquet cannot be read"),
        (half_an_array, "damaged .*ends too early"),
        (floats, "are float64"),
        (no_images, "holds mu.npy, no images"),
    ],
)
def test_what_cannot_be_evaluated_is_named(make, words, tmp_path, drawn):
    make(tmp_path / "set", drawn)
    with pytest.raises(ValueError, match=words):
        pixels(open_images(tmp_path / "set"))
