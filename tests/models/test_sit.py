"""SiT: the architecture against its restatement, the conversion of published weights, and the pipeline that comes of it."""

import argparse
import json
import math
import os

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from sit_reference import LAYOUTS, ReferenceSiT, positions, random_sit

from diffusers_kts import ClassConditionalFlowPipeline, KPEMonitorPipeline, SiTTransformer2DModel, embedded_model
from diffusers_kts.convert_sit import ConvertSiTSettings, run_convert_sit
from diffusers_kts.convert_sit.job import class_names, noise_correlation
from diffusers_kts.models import CLASS_CONDITIONAL
from diffusers_kts.models.sit_weights import sit_config, to_diffusers

SIGMAS = torch.tensor([1.0, 0.7, 0.001], dtype=torch.float64)


def convert(weights, output, vae=None, **options):
    given = {"vae": str(vae)} if vae else {"no_vae": True}
    return run_convert_sit(ConvertSiTSettings(weights, output=output, **given, **options))


def tiny_vae(latent_channels=4):
    """An autoencoder of Stable Diffusion's kind, 8 pixels to a latent."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4,) * 4,
            norm_num_groups=2,
            latent_channels=latent_channels,
        )


@pytest.fixture(scope="module")
def reference():
    return random_sit("S", 8).double()


def published(reference):
    """Weights as they are published, in single precision."""
    return {name: value.float() for name, value in reference.state_dict().items()}


@pytest.fixture(scope="module")
def files(reference, tmp_path_factory):
    """``SiT-S-8.pt`` as SiT's training saves it, and a VAE."""
    folder = tmp_path_factory.mktemp("sit")
    training = argparse.Namespace(path_type="Linear", prediction="velocity", global_seed=0)
    torch.save({"model": {}, "ema": published(reference), "opt": {"step": 3}, "args": training}, folder / "SiT-S-8.pt")
    tiny_vae().save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="module")
def converted(files):
    convert(files / "SiT-S-8.pt", files / "converted", files / "vae")
    return files / "converted"


@pytest.fixture
def pipe(converted):
    pipe = ClassConditionalFlowPipeline.from_pretrained(converted)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def inputs(side=32, channels=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, side, side, generator=generator, dtype=torch.float64), torch.tensor([0, 207, 1000])


def ours(reference, config):
    model = SiTTransformer2DModel(**config).double().eval()
    model.load_state_dict(to_diffusers(reference.state_dict(), config))
    return model


def assert_equal_to(reference, config):
    model, (x, labels) = ours(reference, config), inputs(config["sample_size"], config["in_channels"])
    with torch.no_grad():
        velocity = model(x, timestep=1000 * SIGMAS, class_labels=labels).sample
    expected = -reference(x, 1 - SIGMAS, labels)
    assert expected.std() > 1e-3  # so that the tolerance means something
    torch.testing.assert_close(velocity, expected, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_small_sizes_equal_the_restatement(patch):
    reference = random_sit("S", patch, side=16, learn_sigma=patch != 4).double()
    assert_equal_to(reference, sit_config(reference.state_dict()))


@pytest.mark.parametrize("name", ["B", "L", "XL"])
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_other_sizes_equal_the_restatement_with_narrow_heads(name, patch):
    blocks, _, heads = LAYOUTS[name]
    reference = random_sit((blocks, 4 * heads, heads), patch, side=2 * patch).double()
    config = {"sample_size": 2 * patch, "patch_size": patch, "num_layers": blocks}
    assert_equal_to(reference, config | {"num_attention_heads": heads, "attention_head_dim": 4, "in_channels": 4})


@settings(max_examples=15, deadline=None)
@given(
    blocks=st.integers(1, 2),
    heads=st.integers(1, 3),
    patch=st.integers(1, 4),
    grid=st.integers(1, 3),
    channels=st.integers(1, 5),
    classes=st.integers(1000, 1002),
    learn_sigma=st.booleans(),
)
def test_any_layout_equals_the_restatement(blocks, heads, patch, grid, channels, classes, learn_sigma):
    layout = {"side": grid * patch, "channels": channels, "classes": classes, "learn_sigma": learn_sigma}
    reference = random_sit((blocks, 4 * heads, heads), patch, **layout).double()
    torch.nn.init.normal_(reference.pos_embed)  # those of the weights count, whatever they are
    config = {"sample_size": grid * patch, "patch_size": patch, "in_channels": channels, "num_embeds_ada_norm": classes}
    assert_equal_to(reference, config | {"num_layers": blocks, "num_attention_heads": heads, "attention_head_dim": 4})


def test_a_new_network_has_the_fixed_positions():
    model = SiTTransformer2DModel(sample_size=6, num_layers=1, num_attention_heads=2, attention_head_dim=4)
    torch.testing.assert_close(model.pos_embed[0], positions(3, 8).float())
    assert not model.pos_embed.requires_grad


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("patch", [2, 4, 8])
def test_every_size_is_known_by_its_shapes(name, patch):
    blocks, width, heads = LAYOUTS[name]
    with torch.device("meta"):
        published = ReferenceSiT(blocks, width, heads, patch).state_dict()
        config = sit_config(published)
        expected = SiTTransformer2DModel(**config).state_dict()
    found = to_diffusers(published, config)
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
    assert (config["num_layers"], config["num_attention_heads"], config["patch_size"]) == (blocks, heads, patch)
    assert (config["sample_size"], config["num_embeds_ada_norm"], config["attention_head_dim"]) == (32, 1000, width // heads)


def test_time_that_runs_the_other_way(reference):
    """REPA: the same network told sigma, giving dx/dsigma."""
    config = sit_config(reference.state_dict()) | {"reversed_time": True}
    model, (x, labels) = ours(reference, config), inputs()
    with torch.no_grad():
        velocity = model(x, timestep=1000 * SIGMAS, class_labels=labels, return_dict=False)[0]
    torch.testing.assert_close(velocity, reference(x, SIGMAS, labels), atol=1e-6, rtol=1e-6)


def test_one_step_moves_along_the_published_velocity_and_the_vae_decodes(reference, pipe):
    x, labels = inputs()
    call = {"class_labels": labels[:2], "latents": x[:2], "sigmas": [1.0]}
    end = pipe(**call, output_type="latent").images
    expected = x[:2] + reference(x[:2], torch.zeros(2, dtype=torch.float64), labels[:2])  # t from 0 to 1
    torch.testing.assert_close(end.double(), expected, atol=2e-5, rtol=1e-5)
    pixels = pipe(**call, output_type="pt").images
    with torch.no_grad():
        decoded = pipe.vae.decode(end / 0.18215).sample
    assert pixels.shape == (2, 3, 256, 256)
    torch.testing.assert_close(pixels, (decoded / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("channels", [None, 3, 4])
def test_guidance_on_all_channels_or_the_first_three(reference, pipe, channels):
    x, labels = inputs()
    end = pipe(
        labels[:2], latents=x[:2], sigmas=[1.0], guidance_scale=4.0, guidance_channels=channels, output_type="latent"
    ).images
    v = reference.guided(x[:2], torch.zeros(2, dtype=torch.float64), labels[:2], 4.0, channels or 4)
    torch.testing.assert_close(end.double(), x[:2] + v, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("channels", [0, 5])
def test_guidance_on_channels_that_are_not_there_is_refused(pipe, channels):
    with pytest.raises(ValueError, match=f"guidance_channels is {channels}; give 1 to 4"):
        pipe(1, guidance_scale=2.0, guidance_channels=channels)


def test_attention_processors_are_those_of_diffusers(pipe):
    assert len(pipe.transformer.attn_processors) == 12
    assert {type(processor).__name__ for processor in pipe.transformer.attn_processors.values()} == {"AttnProcessor2_0"}


@pytest.mark.parametrize("kind", ["bare", "safetensors", "half", "repa"])
def test_kinds_of_files(kind, reference, tmp_path):
    state, path = published(reference), tmp_path / "weights.pt"
    if kind == "repa":
        state = published(random_sit("S", 8, learn_sigma=False)) | {"projectors.0.0.weight": torch.ones(3, 3)}
        torch.save({"ema": state, "args": argparse.Namespace(path_type="linear", prediction="v"), "steps": 1}, path)
    elif kind == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        state = {name: value.bfloat16() for name, value in state.items()} if kind == "half" else state
        torch.save(state, path)
    made = convert(path, tmp_path / "out")
    pipe = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "out")
    expected = to_diffusers(state, pipe.transformer.config)
    assert all(torch.equal(value, expected[name].float()) for name, value in pipe.transformer.state_dict().items())
    assert made.name == "SiT-S/8" and made.parameters == pipe.transformer.num_parameters() and made.image_size is None
    assert pipe.transformer.config.reversed_time == (kind == "repa")
    with pytest.raises(ValueError, match="no VAE, and 4 channels are no picture"):
        pipe(1)


def straight(sign):
    """A SiT, without the unused half, whose velocity is its input, normed by token, or the negative of it."""
    model = random_sit("S", 8, learn_sigma=False)
    directions = torch.linalg.qr(torch.randn(384, 256, generator=torch.Generator().manual_seed(0))).Q
    for parameter in model.parameters():
        parameter.zero_()
    model.x_embedder.proj.weight.copy_(directions.unflatten(1, (4, 8, 8)))
    by_pixel = directions.T.unflatten(0, (4, 64)).transpose(0, 1).flatten(0, 1)  # channels last, as the last layer has them
    model.final_layer.linear.weight.copy_(sign * by_pixel)
    return model


@pytest.mark.parametrize(("sign", "time"), [(1, "data-to-noise"), (-1, "noise-to-data")])
def test_the_way_of_time_is_seen_in_the_velocity(tmp_path, sign, time):
    torch.save(straight(sign).state_dict(), tmp_path / "weights.pt")
    made = convert(tmp_path / "weights.pt", tmp_path / "out")
    assert made.time == time and "correlates" in made.reason
    pipe = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "out")
    assert pipe.transformer.config.reversed_time == (time == "data-to-noise")
    velocity = pipe.transformer(inputs()[0].float(), timestep=torch.full((3,), 500.0), class_labels=inputs()[1]).sample
    assert torch.cosine_similarity(velocity.flatten(), inputs()[0].float().flatten(), 0) > 0.9  # dx/dsigma, to the noise


@pytest.mark.parametrize("name", CLASS_CONDITIONAL)
def test_trained_networks_show_the_way_of_time(name):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model(name))
    assert noise_correlation(pipe.transformer) > 0.6  # they are told sigma and give dx/dsigma


def test_a_time_that_nothing_tells_is_asked_for(kts, tmp_path):
    torch.save(random_sit("S", 8, learn_sigma=False).state_dict(), "weights.pt")
    code, _, err = kts("convert-sit", "weights.pt", "--no-vae")
    assert code == 2 and "give --time data-to-noise for weights of REPA's code" in err and os.listdir() == ["weights.pt"]
    code, out, _ = kts("convert-sit", "weights.pt", "--no-vae", "--time", "data-to-noise")
    assert code == 0 and "runs from data to noise: as given" in out
    assert ClassConditionalFlowPipeline.from_pretrained("kts-sit").transformer.config.reversed_time


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


def changed(name, change):
    return lambda state: state | {name: change(state[name])}


WRONG = {
    "code": (lambda state: state | {"extra": Malicious()}, "holds more than tensors"),
    "list": (lambda state: list(state.values()), "holds a list, no weights by name"),
    "no moving average": (lambda state: {"net": state, "opt": {}}, "holds net, opt, no weights by name"),
    "empty": (lambda state: {}, "no weights of SiT"),
    "other network": (lambda state: {"conv1.weight": torch.zeros(3, 3)}, "no weights of SiT, which have x_embedder"),
    "other path": (lambda state: {"ema": state, "args": argparse.Namespace(path_type="GVP")}, "path_type 'GVP'"),
    "other prediction": (lambda state: {"ema": state, "args": argparse.Namespace(prediction="noise")}, "give weights of 'vel"),
    "fewer blocks": (
        lambda state: {key: value for key, value in state.items() if not key.startswith("blocks.11.")},
        "11 blocks of width 384 with patches of 8 are no published SiT; there are 12 of 384 \\(S\\)",
    ),
    "missing": (without("blocks.3.mlp.fc1.bias"), "miss blocks.3.mlp.fc1.bias"),
    "more": (lambda state: state | {"blocks.0.extra": torch.ones(64)}, "also have blocks.0.extra"),
    "qk-norm": (lambda state: state | {"blocks.0.attn.q_norm.weight": torch.ones(64)}, "are a SiT with qk-norm"),
    "LightningDiT": (lambda state: state | {"blocks.0.mlp.w12.weight": torch.ones(64)}, "are a LightningDiT"),
    "RAE": (lambda state: state | {"s_embedder.proj.weight": torch.ones(64)}, "are a DiT of RAE"),
    "old REPA": (
        lambda state: state | {"decoder_blocks.0.attn.qkv.bias": torch.ones(64)},
        "REPA's old layout, which load_leg",
    ),
    "DiT": (changed("final_layer.linear.bias", torch.ones_like), "are weights of a DiT, a diffusion model"),
    "shape": (changed("t_embedder.mlp.0.weight", lambda w: w[:, :128]), "in another shape t_embedder.mlp.0.weight"),
    "channels": (changed("final_layer.linear.weight", lambda w: w[:192]), "gives 3 channels of 4"),
    "not finite": (changed("blocks.1.attn.qkv.bias", lambda b: b * math.nan), "blocks.1.attn.qkv.bias holds values"),
    "quantised": (changed("blocks.1.attn.qkv.weight", lambda w: w.to(torch.int8)), "qkv.weight is torch.int8; give weights"),
    "not square": (changed("pos_embed", lambda p: p[:, :15]), "in another shape pos_embed"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_weights_are_refused_before_any_output(wrong, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, words = WRONG[wrong]
    # zeros that share one number, so that the file is small
    state = {name: torch.zeros(()).expand(value.shape) for name, value in reference.state_dict().items()}
    torch.save(change(state), "weights.pt")
    with pytest.raises(ValueError, match=words):
        convert(tmp_path / "weights.pt", tmp_path / "out")
    assert os.listdir() == ["weights.pt"]


def test_a_mistake_on_the_command_line_is_one_sentence_and_no_output(kts, files, tmp_path):
    weights, here = files / "SiT-S-8.pt", tmp_path
    cut, text = here / "cut.pt", here / "text.safetensors"
    cut.write_bytes(weights.read_bytes()[:100_000])
    text.write_text("no tensors")
    tiny_vae(latent_channels=8).save_pretrained(here / "vae8")
    (here / "labels.txt").write_text("cat\ndog\n")
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").write_text("dear")
    before = sorted(os.listdir())
    for arguments, words in {
        ("missing.pt", "--no-vae"): "missing.pt is no file; give the .pt of SiT",
        ("missing.pt", "--output", "full", "--no-vae"): "full is not an empty folder",
        ("cut.pt", "--no-vae"): "cut.pt",
        ("text.safetensors", "--no-vae"): "not readable safetensors",
        (weights,): "the VAE 'stabilityai/sd-vae-ft-ema' cannot be loaded",
        (weights, "out"): "extra argument(s) (out); see kts convert-sit -h.",
        (weights, "--time", "back"): "time is 'back'; choose noise-to-data or data-to-noise",
        (weights, "--vae", here / "vae8"): "8 latent channels, the weights 4",
        (weights, "--vae", "a", "--no-vae"): "both given",
        (weights, "--no-vae", "--labels", "labels.txt"): "names 2 classes, the weights have 1000",
        (weights, "--no-vae", "--labels", "none.txt"): "none.txt cannot be read",
    }.items():
        code, out, err = kts("convert-sit", *arguments)
        assert code == 2 and words in err and "Traceback" not in err and not out, err
    assert sorted(os.listdir()) == before and (here / "full" / "thesis.txt").read_text() == "dear"


def test_a_failure_while_writing_leaves_nothing(files, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AutoencoderKL, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        convert(files / "SiT-S-8.pt", tmp_path / "out", files / "vae")
    assert not os.listdir(tmp_path)


def test_names_of_classes(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("Cardigan\ntiger\ncardigan\n", encoding="utf-8")
    assert class_names(labels, 3) == {0: "Cardigan 0", 1: "tiger", 2: "cardigan 2"}
    assert class_names(None, 3) == {}


def test_names_of_imagenet_come_with_torchvision():
    names = class_names(None, 1000)
    assert not names or (names[207] == "golden retriever" and len({name.lower() for name in names.values()}) == 1000)
    assert not any("," in name or name.isdecimal() for name in names.values())  # as --class-labels separates and reads them


def test_convert_diagnose_generate_evaluate(kts, files, reference):
    """The commands of ``examples/imagenet256``, on a small SiT."""
    labels = [f"class number {i}" for i in range(1000)]
    labels[207] = "golden retriever"
    (files / "labels.txt").write_text("\n".join(labels))
    code, out, _ = kts(
        "convert-sit", files / "SiT-S-8.pt", "--output", "sit", "--vae", files / "vae", "--labels", files / "labels.txt"
    )
    assert code == 0 and "SiT-S/8: 33.0 million parameters, images of 256x256, classes by name or number" in out
    code, out, _ = kts("doctor", "--model", "sit", "--num-inference-steps", 4)
    assert code == 0 and "use: KTSFlowMatchScheduler" in out and "shaped: energy per dim" in out
    code, out, _ = kts(
        *("generate", "--model", "sit", "--class-labels", "Golden Retriever,3,5,8", "--output", "samples"),
        *("--num-inference-steps", 2, "--guidance-scale", 1.5, "--preset", "quality", "--seed", 3),
        *("--pipeline-args", "{guidance_channels: 3}"),
    )
    assert code == 0 and "Complete: 4 samples" in out
    with open("samples/metadata.jsonl") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == [207, 3, 5, 8] and all(row["per_dim"] > 0 for row in rows)
    monitor = KPEMonitorPipeline.from_pretrained("sit")
    assert monitor.id2label[207] == "golden retriever" and monitor.vae_scale_factor == 8
    picture = np.asarray(Image.open(f"samples/{rows[0]['file_name']}"))
    assert picture.shape == (256, 256, 3) and picture.std() > 1
    code, _, _ = kts(
        *(
            "evaluate",
            "samples",
            "--reference",
            "samples/images",
            "--metrics",
            "fd,kpe",
            "--image-size",
            8,
            "--output",
            "scores",
        )
    )
    with open("scores/evaluation.json") as report:
        assert code == 0 and set(json.load(report)["metrics"]) >= {"fd", "kpe"}


@pytest.mark.parametrize("key", ["ema_model", "model"])
def test_weights_of_wrapped_models_are_taken(tmp_path, key):
    state = random_sit("S", 8).state_dict()
    torch.save({key: {f"module._orig_mod.{name}": value for name, value in state.items()}}, tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "out")
    loaded = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "out").transformer
    assert not loaded.config.reversed_time


def test_the_settings_of_repa_say_that_time_is_reversed(tmp_path):
    state = random_sit("S", 8).state_dict()  # without its projectors
    torch.save({"ema": state, "args": argparse.Namespace(prediction="v")}, tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "out")
    assert ClassConditionalFlowPipeline.from_pretrained(tmp_path / "out").transformer.config.reversed_time
