"""ClassConditionalFlowPipeline and the embedded models."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny_pipelines import _image_vae

from diffusers_kts import ClassConditionalFlowPipeline, KPEMonitorPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.models import CLASS_CONDITIONAL
from diffusers_kts.pipelines.loading import load_pipeline


@pytest.fixture(scope="module")
def generalizing():
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("generalizing"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def rng():
    return torch.Generator().manual_seed(0)


def test_output_types_agree(generalizing):
    call = {"class_labels": [7, 8], "num_inference_steps": 3}
    pixels = generalizing(**call, generator=rng(), output_type="pt").images
    assert pixels.shape == (2, 1, 28, 28) and pixels.min() >= 0 and pixels.max() <= 1
    arrays = generalizing(**call, generator=rng(), output_type="np").images
    np.testing.assert_allclose(arrays, pixels.permute(0, 2, 3, 1).numpy())
    pictures = generalizing(**call, generator=rng()).images
    assert pictures[0].size == (28, 28)
    np.testing.assert_allclose(np.asarray(pictures[1]), 255 * arrays[1, :, :, 0], atol=0.51)
    latents = generalizing(**call, generator=rng(), output_type="latent", return_dict=False)
    assert type(latents) is tuple
    torch.testing.assert_close((latents[0] / 2 + 0.5).clamp(0, 1), pixels)


def test_labels_by_name_number_and_tensor_and_copies_side_by_side(generalizing):
    call = {"num_inference_steps": 2, "output_type": "pt"}
    noise = torch.randn(4, 1, 28, 28, generator=rng())
    many = generalizing(["sneaker", 8], num_images_per_prompt=2, latents=noise, **call).images
    each = generalizing(torch.tensor([7, 7, 8, 8]), latents=noise, **call).images
    torch.testing.assert_close(many, each)
    assert generalizing("Bag", **call).images.shape == (1, 1, 28, 28)


def test_guidance_is_the_extrapolation_of_two_velocities(generalizing):
    x = torch.randn(1, 1, 28, 28, generator=rng())
    end = generalizing(3, num_inference_steps=1, guidance_scale=2.5, latents=x, output_type="latent").images

    def v(label):
        return generalizing.transformer(x, timestep=torch.tensor([1000.0]), class_labels=torch.tensor([label])).sample

    with torch.no_grad():
        torch.testing.assert_close(end, x - (v(10) + 2.5 * (v(3) - v(10))))


@pytest.mark.parametrize(
    ("start", "end", "guided"), [(0.0, 1.0, "all"), (0.51, 0.52, "none"), (0.0, 0.5, "first"), (0.5, 1.0, "last")]
)
def test_guidance_in_an_interval_of_flow_time(generalizing, start, end, guided):
    """Steps at flow times 0, .33, .67: guided where the interval holds them, as if each step was a call of its own."""
    sigmas, x = [1.0, 2 / 3, 1 / 3], torch.randn(2, 1, 28, 28, generator=rng())
    call = {"class_labels": [3, 5], "sigmas": sigmas, "output_type": "latent"}
    scales = {"all": (2.5,) * 3, "none": (1.0,) * 3, "first": (2.5, 2.5, 1.0), "last": (1.0, 1.0, 2.5)}[guided]
    if guided in ("all", "none"):
        expected = generalizing(**call, latents=x, guidance_scale=scales[0]).images
    else:
        expected = x
        for scale, sigma, after in zip(scales, sigmas, [*sigmas[1:], 0.0], strict=True):
            end_of_path = generalizing(**call | {"sigmas": [sigma]}, latents=expected, guidance_scale=scale).images
            expected = expected + (sigma - after) / sigma * (end_of_path - expected)
    found = generalizing(**call, latents=x, guidance_scale=2.5, guidance_start=start, guidance_end=end).images
    exact = {"atol": 0, "rtol": 0} if guided in ("all", "none") else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(found, expected, **exact)
    with pytest.raises(ValueError, match="guidance_start and guidance_end are 0.5 and 0.2"):
        generalizing(3, guidance_start=0.5, guidance_end=0.2)


def test_callback_sees_and_replaces_latents(generalizing):
    seen = []

    def callback(pipe, i, t, kwargs):
        seen.append((i, float(t), kwargs["latents"].shape))
        return {"latents": torch.zeros_like(kwargs["latents"])}

    end = generalizing(1, num_inference_steps=2, callback_on_step_end=callback, output_type="latent").images
    assert [row[0] for row in seen] == [0, 1] and not end.any()


def test_every_image_has_its_own_noise_from_its_own_generator(generalizing):
    generators = [torch.Generator().manual_seed(s) for s in (1, 2)]
    both = generalizing([1, 2], generator=generators, num_inference_steps=2, output_type="pt").images
    alone = generalizing([2], generator=torch.Generator().manual_seed(2), num_inference_steps=2, output_type="pt").images
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-5)


def test_round_trip_with_our_scheduler(generalizing, tmp_path):
    pipe = ClassConditionalFlowPipeline(
        generalizing.transformer, KTSFlowMatchScheduler(touchdown=0.5), id2label=generalizing.id2label, guidance_trained=False
    )
    pipe.save_pretrained(tmp_path)
    for again in (ClassConditionalFlowPipeline.from_pretrained(tmp_path), KPEMonitorPipeline.from_pretrained(tmp_path)):
        assert again.scheduler.config.touchdown == 0.5 and again.id2label == pipe.id2label
        assert not again.config.guidance_trained and again.vae is None
    out = again("Dress", num_inference_steps=4, output_type="pt")
    assert out.kpe.num_steps == again.num_timesteps == len(again.scheduler.timesteps)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"class_labels": 10}, "from 0 to 9"),
        ({"class_labels": "sneakers"}, "did you mean 'Sneaker'"),
        ({"class_labels": []}, "empty"),
        ({"class_labels": 1, "num_images_per_prompt": 0}, "at least 1"),
        ({"class_labels": 1, "latents": torch.zeros(2, 1, 28, 28)}, "this call needs"),
        ({"class_labels": [1, 2], "generator": [torch.Generator()]}, "1 generators for 2 images"),
        ({"class_labels": 1, "output_type": "jpeg"}, "output_type is 'jpeg'"),
        ({"class_labels": 1, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "only 'latents'"),
    ],
)
def test_bad_input_is_refused_before_any_work(generalizing, call, words):
    with pytest.raises(ValueError, match=words):
        generalizing(**call)


def test_a_name_is_refused_where_classes_have_none(generalizing):
    pipe = ClassConditionalFlowPipeline(generalizing.transformer, generalizing.scheduler)
    with pytest.raises(ValueError, match="no class names; give numbers"):
        pipe("Bag")


@pytest.mark.parametrize("name", CLASS_CONDITIONAL)
def test_embedded_models_are_small_and_draw_pictures(name):
    weights = embedded_model(name) / "transformer" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_size <= 8 * 2**20
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model(name))
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == torch.float32
    images = pipe(list(range(10)), num_inference_steps=12, generator=rng(), output_type="pt").images
    # clothes on black: corners dark, centre not (noise would make them alike)
    assert images[..., :3, :3].mean() < 0.1 < images[..., 12:16, 12:16].mean()


def test_guidance_is_refused_where_it_was_not_trained():
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("memorizing"))
    with pytest.raises(ValueError, match="guidance_scale=1"):
        pipe(1, guidance_scale=2.0)
    with np.load(embedded_model("memorizing") / "training_images.npz") as data:
        assert data["images"].dtype == np.uint8 and len(data["images"]) == len(data["labels"]) >= 256
    with pytest.raises(ValueError, match="memorizing, generalizing"):
        embedded_model("memorising")


@pytest.mark.parametrize(
    "config", [{}, {"shift_factor": 1.5}, {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]}]
)
def test_latents_are_decoded_as_the_vae_was_trained(config):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        sample_size=16, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        num_embeds_ada_norm=10, norm_num_groups=1,
    )  # fmt: skip
    settings = {key: value for key, value in _image_vae().config.items() if not key.startswith("_")}
    vae = AutoencoderKL(**settings | {"scaling_factor": 0.7} | config).eval()
    pipe = ClassConditionalFlowPipeline(network.eval(), FlowMatchEulerDiscreteScheduler(), vae)
    pipe.set_progress_bar_config(disable=True)
    latents, images = (
        pipe([1], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt")
    )
    states = latents / 0.7
    if "latents_mean" in config:
        mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        states = states * std + mean
    with torch.no_grad():
        right = vae.decode(states + (vae.config.shift_factor or 0.0))[0]
    torch.testing.assert_close(images, (right / 2 + 0.5).clamp(0, 1))


def test_a_saved_pipeline_loads_in_plain_diffusers_with_its_code(tmp_path):
    ClassConditionalFlowPipeline.from_pretrained(embedded_model()).save_pretrained(tmp_path / "one")
    for folder in ("one", "two"):  # also one that was loaded and saved again
        assert type(ClassConditionalFlowPipeline.from_pretrained(tmp_path / folder)) is ClassConditionalFlowPipeline
        assert type(load_pipeline(tmp_path / folder)) is ClassConditionalFlowPipeline
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            DiffusionPipeline.from_pretrained(tmp_path / folder)
        plain = DiffusionPipeline.from_pretrained(tmp_path / folder, trust_remote_code=True)
        assert type(plain).__name__ == "ClassConditionalFlowPipeline" and plain(1, num_inference_steps=2).images
        plain.save_pretrained(tmp_path / "two")
