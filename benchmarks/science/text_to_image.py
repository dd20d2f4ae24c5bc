"""How good the embedded text-to-image models are: do pictures show what their prompts say, and how many are memorized?

    python -m benchmarks.science.text_to_image --data emoji64.npz

The judge (`concept_judge`) says which of the 1,910 concepts a picture shows; it learned from real pictures of both styles.
What counts was fixed before the run:

* The guidance scale is the one with the best top-1 over ``--num-choose`` prompts of training pairs. Ties go to the lower.
* Goal 1: top-1 >= 60 % at that scale on ``--num-seen`` other training pairs (plain pictures, no skin tones).
* Goal 2: top-5 >= 30 % at that scale on the held-out pairs (style, concept), whose concept training showed in the other
  style only.
* The same for real pictures of the same pairs and for their reconstructions by the autoencoder, which bound what the model
  could reach.
* Whether a held-out picture has the style it was asked for: the nearer of the real pictures of its concept in both styles, in
  the judge's features. Chance is half.
* The Frechet distance of the pictures of goals 1 and 2 to all real pictures, in the judge's features, and that of as many
  real pictures to the others. Few pictures in 1,280 dimensions: only the two beside each other mean something.
* F_mem of the memorizing model: one plain sample per training caption, d1 / d2 < 1/3 in pixels.

Pictures come from the stock pipeline with 20 Euler steps. To save time the 256 zero tokens are one that counts 256 times,
which is the same mathematics (`examples.train_text_to_image.OneZeroToken`), and the transformer runs in bfloat16.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline

from benchmarks.report import HERE, environment, write_json
from benchmarks.science.concept_judge import ConceptJudge, Features, as_pixels, reconstructed, views_of
from diffusers_kts.features.frechet import frechet_distance
from diffusers_kts.memorization.fraction import measure_memorization, memorized_fraction
from examples.train_text_to_image import OneZeroToken, full_caption, load_emoji, pairs_of, save_grid

MODELS = HERE.parent / "diffusers_kts" / "models"
SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
STEPS = 20
GOALS = {"seen_top1": 0.6, "held_out_top5": 0.3}


class Painter:
    """Pictures (n, 64, 64, 3) uint8 of prompts; the same prompt and seed give the same starting noise at every scale."""

    def __init__(self, folder: Path, batch_size: int = 50):
        self.pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
        self.pipeline.set_progress_bar_config(disable=True)
        self.pipeline.transformer.set_attn_processor(OneZeroToken())
        self.batch_size = batch_size
        self.more: dict[str, Any] = {}  # further arguments of the pipeline
        forward = self.pipeline.transformer.forward

        def in_bfloat16(*args, **kwargs):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                (velocity,) = forward(*args, **{**kwargs, "return_dict": False})
            return (velocity.float(),)

        self.pipeline.transformer.forward = in_bfloat16

    def __call__(self, prompts: list[str], scale: float, seed: int, steps: int = STEPS) -> np.ndarray:
        size = self.pipeline.transformer.config.sample_size
        noise = torch.randn(
            (len(prompts), self.pipeline.transformer.config.in_channels, size, size),
            generator=torch.Generator().manual_seed(seed),
        )
        pictures = []
        for i in range(0, len(prompts), self.batch_size):
            some = slice(i, i + self.batch_size)
            out = self.pipeline(
                prompts[some],
                latents=noise[some],
                guidance_scale=scale,
                num_inference_steps=steps,
                max_sequence_length=1,
                output_type="np",
                **self.more,
            )
            pictures.append((out.images * 255).round().astype(np.uint8))
        return np.concatenate(pictures)


def share(hits: torch.Tensor) -> dict[str, Any]:
    """A share with its exact 95 % interval."""
    fraction = memorized_fraction(hits)
    return {"share": fraction.fraction, "low": fraction.low, "high": fraction.high, "n": fraction.n}


def accuracy(ranks: torch.Tensor) -> dict[str, Any]:
    return {"top1": share(ranks < 1), "top5": share(ranks < 5)}


def memorizing(model: Path, folder: Path) -> dict[str, Any]:
    """F_mem of the memorizing model, a plain sample of each training caption; pictures go to ``folder``."""
    with np.load(model / "training_images.npz") as archive:
        images, captions = archive["images"], archive["captions"].tolist()
    painter, result = Painter(model), {"n_training": len(images)}
    for scale in (1.0, 2.0):
        pictures = painter(captions, scale, seed=4)
        found = measure_memorization(as_pixels(pictures), as_pixels(images))
        own_image = (found.indices[:, 0] == torch.arange(len(images))).float().mean().item()
        result[f"guidance {scale:g}"] = {"f_mem": share(found.is_memorized), "nearest_is_own": own_image}
        print(f"memorizing, guidance {scale:g}: {result[f'guidance {scale:g}']}", flush=True)
        both = np.stack([pictures[:64], images[found.indices[:64, 0]]], 1).reshape(-1, 64, 64, 3)
        save_grid(both, folder / f"text_to_image-memorizing-{scale:g}.png", 16)
    return result


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file, or the folder with the two npm tarballs")
    parser.add_argument("--model", type=Path, default=MODELS / "emoji")
    parser.add_argument("--memorizing", type=Path, default=MODELS / "emoji-memorizing")
    parser.add_argument("--num-choose", type=int, default=200, help="prompts per guidance scale")
    parser.add_argument("--num-seen", type=int, default=400, help="prompts of training pairs at the chosen scale")
    parser.add_argument("--views", type=int, default=10, help="augmented views of each real picture for the judge")
    parser.add_argument("--views-file", type=Path, help="where the features of these views are kept")
    parser.add_argument("--only-memorizing", action="store_true", help="measure F_mem again, keep the other numbers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=HERE)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    began = time.time()
    if args.only_memorizing:
        result = json.loads((args.output / "results" / "text_to_image.json").read_text())
        result["memorizing"] = memorizing(args.memorizing, args.output / "results")
        result["memorizing"]["environment"] = environment(began)
        return write_json(args.output, "text_to_image", result)
    data = load_emoji(args.data)
    pairs = {pair: rows[0] for pair, rows in pairs_of(data).items()}
    concepts = sorted({concept for _, concept in pairs})
    number = {concept: i for i, concept in enumerate(concepts)}
    held_out = [tuple(pair) for pair in json.loads((args.model / "held_out.json").read_text())]
    shown = sorted(set(pairs) - set(held_out))
    order = np.random.default_rng(args.seed).permutation(len(shown))
    choose = [shown[i] for i in order[: args.num_choose]]
    seen = [shown[i] for i in order[args.num_choose : args.num_choose + args.num_seen]]
    painter, features = Painter(args.model), Features()

    def own(chosen: list) -> torch.Tensor:
        return torch.tensor([number[concept] for _, concept in chosen])

    def prompts(chosen: list) -> list[str]:
        return [full_caption(*pair) for pair in chosen]

    # the judge
    real_pairs = list(pairs)
    pixels = as_pixels(data["images"][list(pairs.values())])
    vae, generator = painter.pipeline.vae, torch.Generator().manual_seed(args.seed)
    if args.views_file and args.views_file.exists():
        views = torch.load(args.views_file)
    else:
        views = views_of(pixels, features, vae, args.views, generator)
        if args.views_file:
            torch.save(views, args.views_file)
    judge = ConceptJudge(views, own(real_pairs).repeat(len(views) // len(pixels)), seed=args.seed)
    real = views[: len(pixels)]
    place = {pair: i for i, pair in enumerate(real_pairs)}
    print(f"judge: {time.time() - began:.0f} s", flush=True)

    result: dict[str, Any] = {"goals": GOALS, "steps": STEPS, "real": {}, "reconstructed": {}, "by_scale": {}}
    for name, chosen in (("seen", seen), ("held_out", held_out)):
        rows = [place[pair] for pair in chosen]
        result["real"][name] = accuracy(judge.ranks(real[rows], own(chosen)))
        again = features(reconstructed(vae, pixels[rows], 0.0, generator))
        result["reconstructed"][name] = accuracy(judge.ranks(again, own(chosen)))

    # the guidance scale, and the grid
    pictured = choose[:12] + held_out[:: max(1, len(held_out) // 4)][:4]
    grid = []
    for scale in SCALES:
        pictures = painter(prompts(choose), scale, seed=1)
        result["by_scale"][f"{scale:g}"] = accuracy(judge.ranks(features(as_pixels(pictures)), own(choose)))
        grid.append(painter(prompts(pictured), scale, seed=2))
        top1 = result["by_scale"][f"{scale:g}"]["top1"]["share"]
        print(f"guidance {scale:g}: top-1 {top1:.1%}, {time.time() - began:.0f} s", flush=True)
    best = max(SCALES, key=lambda s: (result["by_scale"][f"{s:g}"]["top1"]["share"], -s))
    folder = args.output / "results"
    folder.mkdir(parents=True, exist_ok=True)
    save_grid(np.stack(grid, 1).reshape(-1, 64, 64, 3), folder / "text_to_image-guidance.png", len(SCALES))
    result["grid"] = {"columns": list(SCALES), "rows": prompts(pictured), "rows_held_out": len(pictured) - 12}

    # what counts
    result["guidance_scale"] = best
    drawn = {}
    for name, chosen in (("seen", seen), ("held_out", held_out)):
        pictures = painter(prompts(chosen), best, seed=3)
        drawn[name] = features(as_pixels(pictures))
        result[name] = accuracy(judge.ranks(drawn[name], own(chosen)))
        save_grid(pictures[:64], folder / f"text_to_image-{name}.png", 16)
        print(f"{name}: {result[name]}, {time.time() - began:.0f} s", flush=True)
        (folder / f"text_to_image-{name}.txt").write_text("\n".join(prompts(chosen)[:64]) + "\n")
    other = {"noto": "twemoji", "twemoji": "noto"}
    asked = real[[place[style, concept] for style, concept in held_out]]
    unasked = real[[place[other[style], concept] for style, concept in held_out]]
    nearer = (drawn["held_out"] - asked).norm(dim=1) < (drawn["held_out"] - unasked).norm(dim=1)
    result["held_out_style"] = share(nearer)
    result["goals_met"] = {
        "seen_top1": result["seen"]["top1"]["share"] >= GOALS["seen_top1"],
        "held_out_top5": result["held_out"]["top5"]["share"] >= GOALS["held_out_top5"],
    }
    ours = torch.cat(list(drawn.values()))
    some = torch.randperm(len(real), generator=generator)
    result["frechet"] = {
        "n": len(ours),
        "model": frechet_distance(ours, real),
        "real": frechet_distance(real[some[: len(ours)]], real[some[len(ours) :]]),
    }

    if (args.memorizing / "training_images.npz").exists():
        result["memorizing"] = memorizing(args.memorizing, folder)
    result["environment"] = environment(began)
    write_json(args.output, "text_to_image", result)
    print(f"wrote {folder / 'text_to_image.json'}")


if __name__ == "__main__":
    main()
