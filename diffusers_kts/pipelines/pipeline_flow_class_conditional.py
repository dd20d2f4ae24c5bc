"""A class-conditional flow-matching pipeline: the embedded Fashion-MNIST models, and ImageNet with a VAE."""

import difflib
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ImagePipelineOutput,
    ModelMixin,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

CODE = "pipeline.py"  # the copy of this file in a saved folder
Labels = int | str | Sequence[int | str] | torch.Tensor


def cosine_sigmas(num_inference_steps: int) -> list[float]:
    """Noise levels ``cos^2(pi i / 2N)`` of N steps, dense at both ends: the cosine grid of arXiv 2602.07928."""
    return [math.cos(math.pi / 2 * i / num_inference_steps) ** 2 for i in range(num_inference_steps)]


class ClassConditionalFlowPipeline(DiffusionPipeline):
    """Images of a class, by flow matching from noise with a transformer that predicts ``dx/dsigma``.

    Examples:
        >>> from diffusers_kts import embedded_model
        >>> pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("generalizing"))
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe("Sneaker", num_inference_steps=2, guidance_scale=2.0).images[0].size
        (28, 28)

    Args:
        transformer (`DiTTransformer2DModel` or `SiTTransformer2DModel`): the velocity network, which takes
            ``num_train_timesteps * sigma``.
        scheduler (`FlowMatchEulerDiscreteScheduler`): or `KTSFlowMatchScheduler`.
        vae (`AutoencoderKL`, *optional*): decodes latents; without it the latents are the pixels in [-1, 1].
        id2label (`dict[int, str]`, *optional*): class names, so that labels can be given by name.
        guidance_trained (`bool`, defaults to True): whether training hid labels, without which guidance has no
            unconditional branch and is refused.
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: ModelMixin,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL | None = None,
        id2label: Any = None,
        guidance_trained: bool = True,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        self.id2label = {int(key): name for key, name in (id2label or {}).items()}
        self.register_to_config(id2label=self.id2label, guidance_trained=guidance_trained)
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1) if vae is not None else 1
        self.image_processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor)

    @property
    def num_classes(self) -> int:
        return self.transformer.config.num_embeds_ada_norm

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    def get_label_ids(self, class_labels: Labels) -> torch.Tensor:
        """(n,) int64 class numbers of names or numbers.

        Raises:
            ValueError: unknown name, or number out of range.
        """
        if isinstance(class_labels, torch.Tensor):
            class_labels = class_labels.flatten().tolist()
        if isinstance(class_labels, (int, str)):
            class_labels = [class_labels]
        by_name = {name.lower(): key for key, name in self.id2label.items()}
        ids = []
        for label in class_labels:
            if isinstance(label, str):
                if not by_name:
                    raise ValueError(f"class {label!r:.60}: this model has no class names; give numbers.")
                if label.lower() not in by_name:
                    close = difflib.get_close_matches(label, self.id2label.values(), n=1, cutoff=0.4)
                    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(self.id2label.values())}."
                    raise ValueError(f"there is no class {label!r:.60}; {hint}")
                label = by_name[label.lower()]
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < self.num_classes:
                raise ValueError(
                    f"class label {label!r:.60} is not valid; give whole numbers from 0 to {self.num_classes - 1}."
                )
            ids.append(label)
        if not ids:
            raise ValueError("class_labels is empty; give at least one class.")
        return torch.tensor(ids)

    def prepare_latents(
        self,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(batch_size, channels, size, size) noise, or ``latents`` once its shape has been checked."""
        config = self.transformer.config
        shape = (batch_size, config.in_channels, config.sample_size, config.sample_size)
        if latents is not None:
            if tuple(latents.shape) != shape:
                raise ValueError(f"latents are {tuple(latents.shape)}; this call needs {shape}.")
            return latents.to(device=device, dtype=dtype)
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"there are {len(generator)} generators for {batch_size} images; give one per image, or a single one."
            )
        return randn_tensor(shape, generator=generator, device=torch.device(device), dtype=dtype)

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) latents as the VAE knows them: mean, spread, scale and shift of its configuration undone."""
        config = self.vae.config
        latents = latents / config.scaling_factor
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            mean, std = (latents.new_tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
            latents = latents * std + mean
        return latents + (config.get("shift_factor") or 0.0)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers; the code that `save_pretrained` puts into a folder is for people without this package."""
        found = super().load_config(*args, **kwargs)
        config = found[0] if isinstance(found, tuple) else found
        if isinstance(config.get("_class_name"), (list, tuple)):
            config["_class_name"] = config["_class_name"][-1]
        return found

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; the code of this pipeline goes along, so that the folder also loads without this package, by
        ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``."""
        super().save_pretrained(save_directory, *args, **kwargs)
        shutil.copyfile(__file__, Path(save_directory, CODE))
        index = Path(save_directory, self.config_name)
        content = json.loads(index.read_text(encoding="utf-8"))
        content["_class_name"] = [Path(CODE).stem, type(self).__name__]
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels,
        num_images_per_prompt: int = 1,
        num_inference_steps: int = 50,
        sigmas: list[float] | str | None = None,
        guidance_scale: float = 1.0,
        guidance_channels: int | None = None,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention)
    ) -> ImagePipelineOutput | tuple:
        """Draw images.

        Args:
            class_labels (`int`, `str`, a list of them, or `torch.Tensor`): one class per image.
            num_images_per_prompt (`int`): images of each label; copies of one label lie side by side in the batch.
            num_inference_steps (`int`): Euler steps.
            sigmas (`list[float]` or `str`, *optional*): noise levels in place of the scheduler's own, or "cosine" for
                those of `cosine_sigmas`. The scheduler's shift acts on them, too.
            guidance_scale (`float`): classifier-free guidance, ``v = v_uncond + s (v_cond - v_uncond)``; 1 is off.
            guidance_channels (`int`, *optional*): guide the first channels, this many; the others move as without guidance.
                All by default; SiT's own samples are guided on 3 of 4.
            guidance_start (`float`): flow time from which guidance acts; REPA guides at noise levels up to 0.7, from 0.3 on.
            guidance_end (`float`): flow time up to which it acts.
            generator (`torch.Generator` or list): for reproducible noise.
            latents (`torch.Tensor`, *optional*): (B, C, H, W) starting noise.
            output_type (`str`): "pil", "np" (B, H, W, C), "pt" (B, C, H, W) in [0, 1], or "latent".
            return_dict (`bool`): an `ImagePipelineOutput`, or a tuple.
            callback_on_step_end: called as ``f(pipe, step, timestep, {"latents": ...})`` after each step; returns the dict.
            callback_on_step_end_tensor_inputs (`list[str]`): what the callback is given; only "latents" exists.

        Raises:
            ValueError: unknown class or grid, guidance on a model without it or in no interval, sizes that do not match, or
                pictures of latents that no VAE decodes.
        """
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise ValueError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}; only 'latents' is available.")
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type is {output_type!r}; choose 'pil', 'np', 'pt' or 'latent'.")
        channels = self.transformer.config.in_channels
        if self.vae is None and output_type != "latent" and channels not in (1, 3):
            raise ValueError(
                f"this pipeline has no VAE, and {channels} channels are no picture; load it with vae=AutoencoderKL..., or use "
                "output_type='latent'."
            )
        if guidance_channels is not None and not 1 <= guidance_channels <= channels:
            raise ValueError(f"guidance_channels is {guidance_channels}; give 1 to {channels}, or None for all.")
        if not 0 <= guidance_start <= guidance_end <= 1:
            raise ValueError(
                f"guidance_start and guidance_end are {guidance_start} and {guidance_end}; give flow times with 0 <= start <= "
                "end <= 1."
            )
        if isinstance(sigmas, str):
            if sigmas != "cosine":
                raise ValueError(f"sigmas is {sigmas!r:.60}; give noise levels from 1 down, or 'cosine'.")
            sigmas = cosine_sigmas(num_inference_steps)
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt is {num_images_per_prompt}; give at least 1.")
        guided = guidance_scale != 1.0
        if guided and not self.config.guidance_trained:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but this model was trained with every label shown and has no "
                "unconditional branch; use guidance_scale=1."
            )
        self._guidance_scale = guidance_scale

        device, dtype = self._execution_device, self.transformer.dtype
        labels = self.get_label_ids(class_labels).repeat_interleave(num_images_per_prompt).to(device)
        latents = self.prepare_latents(len(labels), dtype, device, generator, latents)
        steps = {"num_inference_steps": num_inference_steps} if sigmas is None else {"sigmas": sigmas}
        self.scheduler.set_timesteps(device=device, **steps)
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        labels_and_none = torch.cat([labels, torch.full_like(labels, self.num_classes)])
        flow_times = (1 - timesteps.cpu().double() / self.scheduler.config.num_train_timesteps).tolist()

        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for i, t in enumerate(timesteps):
                guide = guided and guidance_start <= flow_times[i] <= guidance_end
                classes = labels_and_none if guide else labels
                model_input = torch.cat([latents, latents]) if guide else latents
                velocity = self.transformer(
                    model_input, timestep=t.expand(len(classes)), class_labels=classes, return_dict=False
                )[0]
                if guide:
                    conditional, unconditional = velocity.chunk(2)
                    velocity = unconditional + guidance_scale * (conditional - unconditional)
                    if guidance_channels is not None:
                        velocity[:, guidance_channels:] = conditional[:, guidance_channels:]
                latents = self.scheduler.step(velocity, t, latents, return_dict=False)[0]
                if callback_on_step_end is not None:
                    given = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                    latents = callback_on_step_end(self, i, t, given).pop("latents", latents)
                progress_bar.update()

        images: Any = latents
        if output_type != "latent":
            if self.vae is not None:
                images = self.vae.decode(self.unscaled(latents).to(self.vae.dtype), return_dict=False)[0]
            images = self.image_processor.postprocess(images, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
