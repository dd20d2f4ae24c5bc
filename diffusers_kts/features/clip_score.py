"""CLIP score: how well a picture fits its prompt (Hessel et al. 2021)."""

from collections.abc import Sequence

import torch

from .checkpoints import Checkpoint

CHECKPOINT = "openai/clip-vit-large-patch14"


class ClipScore:
    """``100 max(cos(image, text), 0)`` in CLIP's common space, per picture; the form in which the method's paper reports it.

    Args:
        name (`str`): a folder, or an id of the Hub. device (`torch.device`): where it runs.
        download (`bool`, defaults to False): whether the checkpoint may be fetched.

    Raises:
        ValueError: as `Checkpoint`.
    """

    def __init__(self, name: str, device: torch.device, download: bool = False) -> None:
        from transformers import CLIPModel

        checkpoint = Checkpoint.find(name, "clip", "--clip", download, ["tokenizer_config.json"])
        self.name, self.sha256 = f"CLIP ({name})", checkpoint.sha256
        self.model, self.processor = checkpoint.model(CLIPModel, device), checkpoint.processor()
        self.resize = self.processor.resize
        self.tokenizer = checkpoint.tokenizer()

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """(b,) float32 on the CPU, of images (b, 1 or 3, H, W), float in [0, 1]; long prompts are cut to what CLIP reads."""
        device, length = self.model.device, self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        seen = self.model.vision_model(pixel_values=self.processor(images).to(device)).pooler_output
        read = self.model.text_model(**tokens.to(device)).pooler_output
        cosine = torch.cosine_similarity(self.model.visual_projection(seen), self.model.text_projection(read))
        return (100 * cosine).clamp(min=0).cpu()
