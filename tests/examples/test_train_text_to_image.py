"""The text-to-image script: one zero token stands for 256, a resumed run ends where an uninterrupted one does, what it saves
is a stock pipeline, held-out pairs are never shown."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusion3Pipeline
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "train_text_to_image.py"
SLICE = Path(__file__).parents[1] / "data" / "emoji_slice.npz"
COMMON = "--batch-size 4 --checkpoint-every 2 --log-every 2 --warmup 2 --sample-every 100"
SMALL_VAE = "--channels 8 8 8 8 --latent-channels 4"
SMALL_FLOW = (
    "--hidden-size 64 --num-layers 2 --text-size 32 --text-layers 2 2 --vocab-size 300 --held-out 4 --sample-prompts 2"
)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_text_to_image", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(script):
    def run(stage, folder, more, *, data=SLICE, updates=6):
        patch = pytest.MonkeyPatch()
        args = [stage, "--data", str(data), "--output", str(folder), "--updates", str(updates), *COMMON.split(), *more.split()]
        patch.setattr(sys, "argv", ["train", *args])
        try:
            script.main()
        finally:
            patch.undo()

    return run


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The folder of a run of both stages."""
    folder = tmp_path_factory.mktemp("emoji")
    run("vae", folder, SMALL_VAE, updates=4)
    run("flow", folder, SMALL_FLOW)
    return folder


@pytest.fixture(scope="module")
def data(script):
    return script.load_emoji(str(SLICE))


def weights_of(folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(folder / "pipeline")
    return [p for m in (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2) for p in m.parameters()]


def with_gates(model):
    """The model with modulations and output that are not zero, so that its blocks do something."""
    for name, weight in model.named_parameters():
        if "linear" in name or "proj_out" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def test_one_zero_token_equals_the_256_of_the_stock_pipeline(script, trained):
    pipe = DiffusionPipeline.from_pretrained(trained / "pipeline")
    torch.manual_seed(0)
    with_gates(pipe.transformer)
    prompts = ["noto emoji of a dog face", "", "twemoji emoji of an avocado"]
    noisy, timestep = torch.randn(3, 4, 8, 8), torch.tensor([20.0, 500.0, 990.0])
    with torch.no_grad():
        context, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
        assert context.shape[1] == pipe.tokenizer.model_max_length + script.ZERO_TOKENS
        stock = pipe.transformer(noisy, context, pooled, timestep).sample
        ids = pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        ours = script.TextToImage(pipe.transformer, [pipe.text_encoder, pipe.text_encoder_2])(noisy, timestep, ids)
    assert stock.std() > 0.1
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4 * stock.std().item())


def test_the_pipeline_is_a_stock_one_with_or_without_its_silent_t5(trained):
    pictures = []
    for more in ({}, {"text_encoder_3": None, "tokenizer_3": None}):
        pipe = DiffusionPipeline.from_pretrained(trained / "pipeline", **more)
        assert type(pipe) is StableDiffusion3Pipeline
        generator = torch.Generator().manual_seed(0)
        out = pipe(["noto emoji of a dog face"] * 2, num_inference_steps=2, guidance_scale=3, generator=generator)
        assert out.images[0].size == (64, 64)
        pictures.append(np.stack([np.asarray(image) for image in out.images]))
    assert np.array_equal(*pictures)
    assert (trained / "flow" / "samples-6.png").exists()
    assert json.loads((trained / "pipeline" / "training.json").read_text())["updates"] == 6


def test_latents_have_mean_0_and_variance_1(script, trained, data):
    vae = AutoencoderKL.from_pretrained(trained / "pipeline", subfolder="vae")
    latents = script.encode_all(vae, data["images"], torch.device("cpu"))
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    assert latents.shape == (len(data["images"]), 4, 8, 8)
    assert abs(latents.mean()) < 0.3 and abs(latents.std() - 1) < 0.3  # they are set on every seventh picture


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(run, trained, tmp_path):
    vae = f" --vae {trained / 'pipeline'}"
    run("flow", tmp_path, SMALL_FLOW + vae + " --stop-after 3")
    run("flow", tmp_path, SMALL_FLOW + vae)
    for a, b in zip(weights_of(tmp_path), weights_of(trained), strict=True):
        assert torch.equal(a, b)
    lines = (tmp_path / "flow" / "loss.csv").read_text().splitlines()
    assert lines[0].startswith("update,loss")


def test_training_goes_on_from_the_weights_of_a_pipeline(run, trained, tmp_path):
    start = f" --init-from {trained / 'pipeline'} --vae {trained / 'pipeline'} --learning-rate 1e-9"
    run("flow", tmp_path, SMALL_FLOW + start, updates=1)
    for a, b in zip(weights_of(tmp_path), weights_of(trained), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-6)


def test_held_out_pairs_are_not_shown_and_their_concepts_are(script, trained, data, monkeypatch):
    held_out = {tuple(pair) for pair in json.loads((trained / "pipeline" / "held_out.json").read_text())}
    monkeypatch.setattr(sys, "argv", ["train", "flow", "--data", str(SLICE), "--output", "x", *SMALL_FLOW.split()])
    shown, kept = script.choose(script.parse_args(), data)
    assert len(held_out) == 4 and set(kept) == held_out and not held_out & set(shown)
    for style, concept in held_out:
        assert ({"noto", "twemoji"} - {style}).pop() in {s for s, c in shown if c == concept}


def test_pairs_have_equal_weight_and_a_pair_is_shown_once_per_epoch(script, data):
    pairs = script.pairs_of(data)
    assert len(pairs["noto", "woman surfing"]) > 1
    assert data["captions"][pairs["noto", "woman surfing"][0]] == "woman surfing"
    batches = script.Batches(list(pairs.values()), len(pairs) // 2, seed=0)
    pair_of = {row: i for i, rows in enumerate(pairs.values()) for row in rows}
    epoch = torch.cat([batches.rows(update, batches.generator(0, update)) for update in (0, 1)]).tolist()
    assert len({pair_of[row] for row in epoch}) == len(epoch)


def test_few_pictures_are_shipped_with_the_pipeline(run, script, trained, tmp_path, data):
    few = f"{SMALL_FLOW} --vae {trained / 'pipeline'} --num-images 9 --min-distance 0.2"
    run("flow", tmp_path, few, updates=1)
    with np.load(tmp_path / "pipeline" / "training_images.npz") as saved:
        images, captions = saved["images"], saved["captions"]
    assert images.shape == (9, 64, 64, 3) and all(caption.startswith("noto emoji of ") for caption in captions)
    with pytest.raises(SystemExit, match="--num-images is 1000"):
        run("flow", tmp_path / "many", few.replace("images 9", "images 1000"))


@pytest.mark.parametrize(
    ("style", "caption", "prompt"),
    [
        ("noto", "avocado", "noto emoji of an avocado"),
        ("twemoji", "red apple", "twemoji emoji of a red apple"),
        ("noto", "family: man, boy", "noto emoji of family: man, boy"),
        ("noto", "ballet shoes", "noto emoji of ballet shoes"),
        ("twemoji", "octopus", "twemoji emoji of an octopus"),
    ],
)
def test_captions(script, style, caption, prompt):
    assert script.full_caption(style, caption) == prompt


@pytest.mark.parametrize(
    ("caption", "concept"),
    [
        ("woman surfing, dark skin tone", "woman surfing"),
        ("kiss: woman, man, light skin tone, dark skin tone", "kiss: woman, man"),
        ("kiss, light skin tone, dark skin tone", "kiss"),
        ("family: man, boy", "family: man, boy"),
        ("man: red hair, medium-light skin tone", "man: red hair"),
    ],
)
def test_concepts_have_no_skin_tone(script, caption, concept):
    assert script.concept_of(caption) == concept


def test_the_npm_tarballs_are_read(script, tmp_path):
    emoji = {"name": "WOMAN SURFING", "image": "a.png", "category": "People", "subcategory": "sport"}
    emoji["skin_variations"] = {"1F3FF": {"image": "b.png"}}
    with pytest.raises(SystemExit, match="npm pack emoji-datasource-google@16.0.0"):
        script.load_emoji(str(tmp_path))
    for vendor in ("google", "twitter"):
        with tarfile.open(tmp_path / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz") as tar:
            png = io.BytesIO()
            Image.new("RGBA", (64, 64), (0, 0, 0, 51)).save(png, "PNG")
            files = {f"img/{vendor}/64/{name}.png": png.getvalue() for name in "ab"}
            for name, content in {"emoji.json": json.dumps([emoji]).encode(), **files}.items():
                member = tarfile.TarInfo(f"package/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data = script.load_emoji(str(tmp_path))
    assert data["captions"].tolist() == ["woman surfing", "woman surfing, dark skin tone"] * 2
    assert data["styles"].tolist() == ["noto"] * 2 + ["twemoji"] * 2
    assert data["categories"][0] == "People / sport"
    assert data["images"].shape == (4, 64, 64, 3) and (data["images"] == 204).all()  # a fifth of black on white
