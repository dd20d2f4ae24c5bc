"""Pictures of every kind that a folder may hold: the right pixels, or a refusal that names the file."""

import io
import json
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from diffusers_kts.images.image_sets import open_images
from diffusers_kts.images.training_images import load_images

RNG = np.random.default_rng(0)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLORS = RNG.integers(0, 256, (8, 5, 6, 3), np.uint8)


def seen(folder, **options):
    return torch.cat(list(open_images(folder, **options).batches(3)))


def png(array):
    data = io.BytesIO()
    Image.fromarray(array).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bits(tmp_path, suffix):
    wide = BYTES.astype(np.uint16) * 257
    for i in range(2):
        Image.fromarray(np.roll(wide, i)).save(tmp_path / f"{i}.{suffix}")
    expected = torch.from_numpy(np.stack([BYTES, np.roll(BYTES, 1)]))[:, None]
    assert torch.equal(seen(tmp_path), expected) and open_images(tmp_path).shape == (1, 16, 16)
    assert torch.equal(load_images(tmp_path, (1, 16, 16)), expected.float() / 255)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_either_byte_order(tmp_path, order):
    Image.frombytes("I;16B" if order == ">" else "I;16", (16, 16), (BYTES.astype(f"{order}u2") * 257).tobytes()).save(
        tmp_path / "a.tif"
    )
    assert torch.equal(seen(tmp_path)[0, 0], torch.from_numpy(BYTES))


@pytest.mark.parametrize("suffix", ["png", "webp", "jpg", "tif"])
def test_every_format_is_turned_as_its_camera_says(tmp_path, suffix):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    flat = np.repeat(np.repeat(COLORS[0], 16, 0), 16, 1)
    Image.fromarray(flat).save(tmp_path / f"a.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert open_images(tmp_path).shape == (3, 96, 80)
    difference = seen(tmp_path)[0].permute(1, 2, 0).numpy() - np.rot90(flat, -1).astype(float)
    assert np.abs(difference).mean() < (10 if suffix == "jpg" else 1e-9)


def test_palettes_and_opaque_alpha_are_read_as_colors(tmp_path):
    Image.fromarray(BYTES).convert("P").save(tmp_path / "a.png")
    opaque = np.concatenate([np.stack([BYTES] * 3, -1), np.full((16, 16, 1), 255, np.uint8)], -1)
    Image.fromarray(opaque).save(tmp_path / "b.png")
    assert torch.equal(seen(tmp_path), torch.from_numpy(BYTES).expand(2, 3, 16, 16))


def transparent(path):
    Image.fromarray(np.stack([BYTES] * 4, -1)).save(path)


def animated(path):
    Image.fromarray(BYTES).save(path, save_all=True, append_images=[Image.fromarray(255 - BYTES)])


def fractions(path):
    Image.fromarray(BYTES.astype(np.float32)).save(path, "TIFF")


def huge(path):
    Image.new("1", (20_000, 20_000)).save(path)


def postscript(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n%%EndComments\nshowpage\n%%EOF\n")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (transparent, "transparent"),
        (animated, "2 frames"),
        (fractions, "fractions"),
        (huge, "178,956,970 pixels; make it smaller"),
        (postscript, "cannot identify"),
        (lambda path: path.write_bytes(b""), "cannot identify"),
    ],
)
def test_what_has_no_pixels_of_its_own_is_named(tmp_path, make, words):
    Image.fromarray(BYTES).save(tmp_path / "a.png")
    make(tmp_path / "b.png")
    for read in (seen, lambda folder: load_images(folder, (3, 16, 16))):
        with pytest.raises(ValueError, match=f"b.png in .* cannot be read as a picture .*{words}"):
            read(tmp_path)


def folder_of(make, count=12):
    """A folder of small grey pictures, and what ``make`` adds to it."""

    def build(folder):
        folder.mkdir()
        for i, array in enumerate(RNG.integers(0, 256, (count, 28, 28), np.uint8)):
            Image.fromarray(array).save(folder / f"{i}.png")
        make(folder)

    return build


def cut(folder):
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:300])


def pixels_of(*shape):
    return Image.fromarray(RNG.integers(0, 256, shape, np.uint8))


def turned(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels_of(28, 28).save(folder / "x.jpg", exif=exif)


def described(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}\n{"file_name": "gone.png"}\n')


KINDS = {  # what is added to a good folder; what audit says, None if it takes it; the same of evaluate, if it differs
    "good": (lambda folder: None, None),
    "text": (lambda folder: (folder / "x.png").write_text("text"), "x.png in set cannot be read"),
    "cut": (cut, "1.png in set cannot be read"),
    "transparent": (lambda folder: pixels_of(28, 28, 4).save(folder / "x.png"), "x.png .* transparent"),
    "fractions": (lambda folder: fractions(folder / "x.tif"), "x.tif .* fractions"),
    "animated": (lambda folder: animated(folder / "x.png"), "x.png .* 2 frames"),
    "huge": (lambda folder: huge(folder / "x.png"), "x.png .* make it smaller"),
    "16 bits": (lambda folder: Image.fromarray(np.full((28, 28), 40_000, np.uint16)).save(folder / "x.png"), None),
    "gone": (lambda folder: (folder / "x.png").symlink_to("gone"), "x.png .* No such file"),
    "described": (described, "gone.png in set .* No such file"),
    "turned": (turned, None),
    "sizes": (lambda folder: pixels_of(20, 50).save(folder / "x.png"), None, "2 sizes .*--image-size"),
    "colors": (lambda folder: pixels_of(28, 28, 3).save(folder / "x.png"), None, "same size and color"),
    "below": (lambda folder: os.makedirs(folder / "x.png"), None),
}


@pytest.mark.parametrize("kind", [*KINDS, "empty", "one"])
def test_every_kind_of_folder_is_taken_or_named_and_kept(kts, tmp_path, kind):
    make, words, *others = KINDS.get(
        kind, (lambda folder: None, {"empty": "set holds no pictures", "one": "set holds 1 pict"}.get(kind))
    )
    folder_of(lambda folder: None)(tmp_path / "real")
    folder_of(make, {"empty": 0, "one": 1}.get(kind, 12))(tmp_path / "set")
    before = {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}
    jobs = {"evaluate real --reference set --training-images set --metrics fd,f-mem": [words, *others][-1]}
    if words is not None:  # which audits refuse before they draw
        jobs["audit --num-samples 8 --num-inference-steps 2 --features pixels --training-images set"] = words
    for job, said in jobs.items():
        code, _, err = kts(*job.split())
        assert code == (2 if said else 0) and (said is None or re.search(said, err)) and "Traceback" not in err, err
        assert said is None or not list(tmp_path.glob("kts-*"))
    assert before == {path: path.read_bytes() for path in (tmp_path / "set").rglob("*") if path.is_file()}


def test_samples_are_not_their_own_training_images(kts, tmp_path):
    folder_of(lambda folder: None)(tmp_path / "set")
    code, _, err = kts("evaluate", "set", "--training-images", "./set", "--metrics", "f-mem")
    assert code == 2 and "set is given as samples and as training images" in err and not (tmp_path / "kts-evaluation").exists()
    shutil.copytree("set", "copy")
    pixels_of(28, 28).save("set/0.png")
    code, out, _ = kts("evaluate", "set", "--training-images", "copy", "--metrics", "f-mem")
    assert code == 0 and "11 of 12 samples equal a training image in every pixel" in out


def test_the_order_is_that_of_torch_fidelity_without_hidden_files(tmp_path):
    names = ["cat-big/0.png", "cat/0.png", "cat.v1/0.PNG", "cat, old/b/0.jpeg", "x.webp", "Z.tiff"]
    folder = tmp_path / "set"
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(folder / name, "PNG")
    Image.new("L", (4, 4), len(names)).save(tmp_path / "first.png")
    (folder / "link.png").symlink_to(tmp_path / "first.png")
    for hidden in (".ipynb_checkpoints/0-checkpoint.png", "cat/._0.png", ".thumbnail.png", "notes.txt"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        (folder / hidden).write_bytes(b"no picture")
    names.append("link.png")
    theirs = sorted(names, key=lambda name: os.path.realpath(folder / name))  # glob_samples_paths of torch-fidelity
    assert theirs[:4] == ["link.png", "Z.tiff", "cat, old/b/0.jpeg", "cat-big/0.png"]
    assert open_images(folder).names == theirs
    assert seen(folder)[:, 0, 0, 0].tolist() == [names.index(name) for name in theirs]


def test_metadata_may_have_blank_lines_a_mark_and_lists_of_captions(tmp_path):
    rows = [{"file_name": f"{i}.png", "prompt": ["a cat", "a pet"] if i else "a dog"} for i in range(2)]
    for i in range(2):
        Image.fromarray(COLORS[i]).save(tmp_path / f"{i}.png")
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n \n"
    (tmp_path / "metadata.jsonl").write_text(text, encoding="utf-8")
    images = open_images(tmp_path)
    assert images.names == ["0.png", "1.png"] and [row["prompt"] for row in images.rows] == ["a dog", "a cat"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": 3}', "line 1 of .*no text"),
        ("[" * 100_000, "line 1 of .*nested too deeply"),
        ('"0.png"', "line 1 of .*holds a str"),
        ('{"file_name": "0.png", "prompt": {"en": "a"}}', "prompt of 0.png .*give text"),
        ('{"file_name": "0.png", "path_energy_total": "high"}', "path_energy_total of 0.png .*give a number"),
    ],
)
def test_metadata_of_the_wrong_type_are_named(tmp_path, line, words):
    Image.fromarray(COLORS[0]).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(line)
    with pytest.raises(ValueError, match=words):
        open_images(tmp_path)


def test_tables_as_datasets_writes_them(tmp_path):
    datasets, pa, pq = (pytest.importorskip(name) for name in ("datasets", "pyarrow", "pyarrow.parquet"))
    pictures = [Image.fromarray(array) for array in COLORS]
    stored = datasets.Dataset.from_dict({"image": pictures, "prompt": list("abcdefgh")})
    for name in ("hub/data", "top"):
        (tmp_path / name).mkdir(parents=True)
        stored.to_parquet(tmp_path / name / "train-00000-of-00001.parquet")
    stored.save_to_disk(tmp_path / "disk", num_shards=2)
    rows = {
        "cifar": [
            {"img": {"bytes": png(array), "path": None}, "prompt": p} for array, p in zip(COLORS, "abcdefgh", strict=True)
        ],
        "raw": [{"image": png(array), "prompt": p} for array, p in zip(COLORS, "abcdefgh", strict=True)],
    }
    for name, table in rows.items():
        (tmp_path / name / "data").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(table), tmp_path / name / "data" / "train.parquet")
    for name in ("hub", "top", "disk", *rows):
        images = open_images(tmp_path / name)
        assert [row["prompt"] for row in images.rows] == list("abcdefgh"), name
        assert torch.equal(torch.cat(list(images.batches(3))).permute(0, 2, 3, 1), torch.from_numpy(COLORS)), name
        assert torch.equal(load_images(tmp_path / name, (3, 5, 6)), seen(tmp_path / name).float() / 255)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "a"}, "t.parquet cannot be read .*columns are text"),
        ({"image": {"bytes": None, "path": "gone.png"}}, "gone.png"),
        ({"image": {"bytes": b"", "path": None}}, r"t.parquet\[0\] in .* cannot be read as a picture"),
        ({"a": b"", "b": b""}, "columns are a, b"),
    ],
)
def test_tables_without_pictures_are_named(tmp_path, row, words):
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "data" / "t.parquet")
    with pytest.raises(ValueError, match=words):
        open_images(tmp_path)


def shard(folder, members):
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "0.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            else:
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data or b""))


def test_shards_of_other_programs(tmp_path):
    shard(tmp_path, [("0.json", b'{"prompt": "a"}'), ("0.png", png(COLORS[0])), ("1.png", png(COLORS[1])), ("1.cls", b"3")])
    images = open_images(tmp_path)
    assert images.names == ["0.png", "1.png"] and images.rows == [{"prompt": "a"}, {}]
    assert torch.equal(seen(tmp_path).permute(0, 2, 3, 1), torch.from_numpy(COLORS[:2]))


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_shard_with_a_damaged_end_is_named(tmp_path, damage):
    shard(tmp_path, [(f"{i}.png", png(COLORS[i])) for i in range(3)])
    path = tmp_path / "shards" / "0.tar"
    with tarfile.open(path) as tar:
        last = tar.getmember("2.png").offset
    data = path.read_bytes()
    path.write_bytes(data[:last] if damage == "cut" else data[:last] + b"x" + data[last + 1 :])
    with pytest.raises(ValueError, match=r"the shard .*0\.tar cannot be read .*damaged after 1"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"), [("0.png", None), ("0.json", b"[" * 100_000), ("0.json", b"\xff"), ("0.json", b"[]")]
)
def test_shards_with_links_or_broken_rows_are_named(tmp_path, name, data):
    shard(tmp_path, [("a.png", png(COLORS[0])), (name, data)])
    with pytest.raises(ValueError, match=r"the shard .*0\.tar cannot be read"):
        open_images(tmp_path)
