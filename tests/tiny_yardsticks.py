"""Tiny CLIP and DINOv2 checkpoints with seeded random weights, saved as transformers saves real ones."""

from pathlib import Path

import torch
from tiny_pipelines import VOCAB_SIZE, _clip_tokenizer
from transformers import BitImageProcessorPil, CLIPConfig, CLIPImageProcessorPil, CLIPModel, Dinov2Config, Dinov2Model

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 7}
SIZES = {"size": {"shortest_edge": 16}, "crop_size": {"height": 14, "width": 14}}


def save_clip(folder: Path) -> None:
    tokenizer = _clip_tokenizer()
    text = SMALL | {"vocab_size": VOCAB_SIZE, "max_position_embeddings": 12}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(text_config=text, vision_config=SMALL | {"image_size": 14}, projection_dim=4)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(**SIZES).save_pretrained(folder)


def save_dinov2(folder: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        Dinov2Model(Dinov2Config(**SMALL, image_size=14)).save_pretrained(folder)
    BitImageProcessorPil(**SIZES).save_pretrained(folder)
