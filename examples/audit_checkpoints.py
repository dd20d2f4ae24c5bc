"""Train a LoRA on a few pictures of one's own, keep a checkpoint every so often, and ask which is the last that does not
memorize them.

    python examples/audit_checkpoints.py --output runs/lora
    kts audit --model emoji --checkpoints runs/lora/checkpoint-* --training-images runs/lora/pictures \
        --prompts runs/lora/pictures/metadata.jsonl --num-samples 100 --num-inference-steps 25

Without ``--data``, a folder of pictures with a ``metadata.jsonl`` of ``file_name`` and ``prompt``, it draws eight pictures of
things that do not exist. The base is a `StableDiffusion3Pipeline`, by default the embedded model "emoji"; its transformer gets
the LoRA, whose files load with ``pipe.load_lora_weights``, as those of diffusers' own training scripts.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image, ImageDraw

from diffusers_kts import embedded_model
from diffusers_kts.models import TEXT_TO_IMAGE

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "net.0.proj", "net.2"]


NAMES = ("zorb", "plim", "quent", "farb", "ulster knot", "mibble", "tarn wheel", "oxo")


def invented(count: int, side: int = 64) -> tuple[np.ndarray, list[str]]:
    """Images (count, side, side, 3) uint8 of things that no model has seen, on white, and their prompts."""
    rng, images = np.random.default_rng(0), []
    for _ in range(count):
        image = Image.new("RGB", (4 * side, 4 * side), "white")
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            x, y = rng.uniform(0.1, 0.7, 2) * 4 * side
            width, height = rng.uniform(0.1, 0.35, 2) * 4 * side
            shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
            shape((x, y, x + width, y + height), fill=tuple(rng.integers(0, 256, 3).tolist()))
        images.append(np.asarray(image.resize((side, side), Image.Resampling.LANCZOS)))
    return np.stack(images), [f"emoji of a {NAMES[i % len(NAMES)]}" for i in range(count)]


def read_pictures(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Images (n, H, W, 3) uint8 of one size and their prompts."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    images = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    return np.stack(images), [row["prompt"] for row in rows]


def save_pictures(folder: Path, images: np.ndarray, prompts: list[str]) -> None:
    """The training set as a folder that ``kts audit`` reads: pictures, and their prompts in ``metadata.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{i:04d}.png", "prompt": prompt} for i, prompt in enumerate(prompts)]
    for row, image in zip(rows, images, strict=True):
        Image.fromarray(image).save(folder / row["file_name"])
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(args: argparse.Namespace) -> list[Path]:
    """Train; returns the folders of the checkpoints."""
    torch.manual_seed(args.seed)
    images, prompts = read_pictures(args.data) if args.data else invented(len(NAMES))
    save_pictures(args.output / "pictures", images, prompts)
    folder = embedded_model(args.model) if args.model in TEXT_TO_IMAGE else args.model
    pipe = StableDiffusion3Pipeline.from_pretrained(folder)
    pipe.to(args.device)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1).to(args.device)
        latents = pipe.vae.encode(pixels).latent_dist.mean
        latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        texts, _, pooled, _ = pipe.encode_prompt(prompts, None, None, do_classifier_free_guidance=False)
    transformer = pipe.transformer
    transformer.requires_grad_(False)
    transformer.add_adapter(
        LoraConfig(r=args.rank, lora_alpha=args.rank, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    weights = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer, checkpoints = torch.optim.AdamW(weights, args.learning_rate, weight_decay=0.0), []
    for update in range(1, args.updates + 1):
        rows = torch.randint(len(images), (args.batch_size,))
        noise = torch.randn(args.batch_size, *latents.shape[1:]).to(args.device)
        sigma = torch.sigmoid(torch.randn(args.batch_size)).to(args.device)  # of a logit-normal
        noisy = torch.lerp(latents[rows], noise, sigma[:, None, None, None])
        output = transformer(noisy, texts[rows], pooled[rows], 1000 * sigma, return_dict=False)[0]
        loss = (output - (noise - latents[rows])).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if update % args.checkpoint_every == 0:
            checkpoints.append(args.output / f"checkpoint-{update}")
            layers = get_peft_model_state_dict(transformer)
            StableDiffusion3Pipeline.save_lora_weights(checkpoints[-1], transformer_lora_layers=layers)
            print(f"update {update}: loss {loss.item():.4f}, saved {checkpoints[-1]}", flush=True)
    return checkpoints


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/lora"))
    parser.add_argument("--model", default="emoji", help="embedded model, folder or Hub id")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse_args())
