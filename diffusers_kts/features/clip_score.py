"""CLIP score: how well a picture fits its prompt (Hessel et al. 2021), and how much better than others."""

from collections.abc import Sequence

import torch

from .checkpoints import Checkpoint

CHECKPOINT = "openai/clip-vit-large-patch14"
PROMPTS_AT_A_TIME = 256


class ClipScore:
    """Pictures and prompts in CLIP's common space.

    Args:
        name (`str`): a folder, or an id of the Hub.
        device (`torch.device`): where it runs.
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
    def read(self, prompts: Sequence[str]) -> torch.Tensor:
        """(p, D) unit vectors of prompts; long ones are cut to what CLIP reads."""
        length, found = self.model.config.text_config.max_position_embeddings, []
        for start in range(0, len(prompts), PROMPTS_AT_A_TIME):
            some = list(prompts[start : start + PROMPTS_AT_A_TIME])
            tokens = self.tokenizer(some, padding=True, truncation=True, max_length=length, return_tensors="pt")
            found.append(self.model.text_projection(self.model.text_model(**tokens.to(self.model.device)).pooler_output))
        return torch.nn.functional.normalize(torch.cat(found), dim=-1)

    @torch.no_grad()
    def see(self, images: torch.Tensor) -> torch.Tensor:
        """(b, D) unit vectors of images (b, 1 or 3, H, W), float in [0, 1]."""
        seen = self.model.vision_model(pixel_values=self.processor(images).to(self.model.device)).pooler_output
        return torch.nn.functional.normalize(self.model.visual_projection(seen), dim=-1)


def clip_scores(images: torch.Tensor, prompts: torch.Tensor, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """CLIP score ``100 max(cos, 0)`` of each image and its own prompt, the form in which the method's paper reports it, and
    the margin: ``100 cos`` with its own prompt less that with the nearest of the others, positive where it fits its own best.

    Args:
        images (`torch.Tensor`, (b, D)): unit vectors, as of `ClipScore.see`.
        prompts (`torch.Tensor`, (p, D)): likewise, of different prompts, as of `ClipScore.read`.
        own (`torch.Tensor`, (b,)): which prompt is that of the image.

    Returns:
        (b,) float32 and (b,) float32, on the CPU; the margin is NaN where there is no other prompt.
    """
    cosines = (100 * images @ prompts.T).cpu()
    score = cosines.gather(1, own[:, None])[:, 0]
    if len(prompts) < 2:
        return score.clamp(min=0), torch.full_like(score, torch.nan)
    others = cosines.scatter(1, own[:, None], -torch.inf).amax(1)
    return score.clamp(min=0), score - others
