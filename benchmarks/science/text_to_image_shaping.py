"""What shaping does to the embedded text-to-image model that memorizes: presets, two step counts, with and without guidance.

    python -m benchmarks.science.text_to_image_shaping --data emoji64.npz

Every sampler draws each of the 1,024 training captions once, from the same noise. What counts was fixed before the run:

* Guidance scales are 1 and, with ``--best-guidance``, the one of `SCALES` with the best top-1 of the judge on 200 captions
  (plain, 20 steps).
* Judge: share of pictures whose concept is first among all 1,910 (`concept_judge`); the same for real pictures.
* FD: Frechet distance, in the judge's features, to the real pictures of that style that the model was *not* trained on. The
  training pictures themselves have the distance given as floor: a model that repeats them all has that.
* F_mem: d1 / d2 < 1/3 to the training pictures, in pixels; copies among these count once. Also at 1/4 and 1/2, since a change
  that only moves samples across 1/3 is no change of what is drawn.
* Same neighbor: of the samples that plain sampling memorizes, the share whose nearest training picture is still the same.
* A preset helps against memorization if F_mem falls by more than chance (McNemar's exact test on the same noises, corrected
  after Holm over all rows) while the judge's share does not fall by more than its 95 % interval of plain sampling.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kept import kept
from benchmarks.report import HERE, environment, write_page
from benchmarks.science.concept_judge import ConceptJudge, Features, as_pixels, views_of
from benchmarks.science.significance import LEVEL, Test, f_mem_test, holm
from benchmarks.science.text_to_image import MODELS, Painter, share
from diffusers_kts import PRESETS, KTSFlowMatchScheduler
from diffusers_kts.features.frechet import frechet_distance
from diffusers_kts.memorization.fraction import measure_memorization
from examples.train_text_to_image import full_caption, load_emoji, pairs_of

SCALES = (1.5, 2.0, 3.0, 4.0)
STEPS = (20, 50)
STYLE = "noto"
THRESHOLDS = (0.25, 1 / 3, 0.5)


class Drawer(Painter):
    """A `Painter` whose sampler is shaped; keeps the energies of the last pictures."""

    def draw(self, captions: list[str], scale: float, steps: int, preset: str) -> tuple[np.ndarray, torch.Tensor]:
        stock = self.pipeline.scheduler
        energies = []

        def step_end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if step == len(pipe.scheduler.timesteps) - 1:
                energies.append(pipe.scheduler.kpe.per_dim)
            return tensors

        self.pipeline.scheduler = KTSFlowMatchScheduler.from_config(stock.config, **PRESETS[preset])
        self.more = {"callback_on_step_end": step_end}
        try:
            pictures = self(captions, scale, seed=5, steps=steps)
        finally:
            self.pipeline.scheduler, self.more = stock, {}
        return pictures, torch.cat(energies)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="an .npz file, or the folder with the two npm tarballs")
    parser.add_argument("--model", type=Path, default=MODELS / "emoji-memorizing")
    parser.add_argument("--views", type=int, default=6, help="augmented views of each real picture for the judge")
    parser.add_argument("--num-inference-steps", dest="steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--best-guidance", action="store_true", help="also at the best guidance scale above 1")
    parser.add_argument("--num-samples", type=int, help="captions; default: all")
    parser.add_argument("--cache", type=Path, default=HERE / "cache" / "text_to_image_shaping")
    parser.add_argument("--output", type=Path, default=HERE)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    began = time.time()
    args.cache.mkdir(parents=True, exist_ok=True)
    with np.load(args.model / "training_images.npz") as archive:
        training, captions = archive["images"], archive["captions"].tolist()
    captions = captions[: args.num_samples]
    drawer, features = Drawer(args.model), Features()

    # the judge, from real pictures alone
    data = load_emoji(args.data)
    pairs = {pair: rows[0] for pair, rows in pairs_of(data).items()}
    concepts = sorted({concept for _, concept in pairs})
    number = {concept: i for i, concept in enumerate(concepts)}
    pixels, generator = as_pixels(data["images"][list(pairs.values())]), torch.Generator().manual_seed(0)

    real = kept(args.cache, "views", lambda: views_of(pixels, features, drawer.pipeline.vae, args.views, generator))
    judge = ConceptJudge(real, torch.tensor([number[c] for _, c in pairs]).repeat(args.views))
    real = real[: len(pixels)]
    of_caption = {full_caption(*pair): (i, number[pair[1]]) for i, pair in enumerate(pairs)}
    own = torch.tensor([of_caption[caption][1] for caption in captions])
    rows = [of_caption[caption][0] for caption in captions]
    trained = set(rows)
    others = real[[i for i, (style, _) in enumerate(pairs) if style == STYLE and i not in trained]]

    def measured(scale: float, steps: int, preset: str) -> dict[str, Any]:
        pictures, energy = drawer.draw(captions, scale, steps, preset)
        found = measure_memorization(as_pixels(pictures), as_pixels(training))
        seen = features(as_pixels(pictures))
        calls = len(drawer.pipeline.scheduler.timesteps)
        return {
            "distances": found.distances, "indices": found.indices, "features": seen, "energy": energy, "calls": calls,
            "ranks": judge.ranks(seen, own),
        }  # fmt: skip

    def choose() -> dict[float, float]:
        top = {}
        for scale in SCALES:
            pictures, _ = drawer.draw(captions[:200], scale, 20, "off")
            top[scale] = float((judge.ranks(features(as_pixels(pictures)), own[:200]) < 1).float().mean())
        return top

    by_scale = kept(args.cache, "by_scale", choose) if args.best_guidance else {}
    scales = [1.0, *([max(SCALES, key=lambda scale: (by_scale[scale], -scale))] if by_scale else [])]
    result: dict[str, Any] = {
        "num_samples": len(captions), "seeds": [5], "guidance_scales": scales,
        "top1_by_scale": {str(scale): top1 for scale, top1 in by_scale.items()},
        "real_top1": share(judge.ranks(real[rows], own) < 1), "floor": frechet_distance(real[rows], others), "rows": [],
    }  # fmt: skip
    tests: list[Test] = []
    for scale in scales:
        for steps in args.steps:
            plain: Any = None
            for preset in PRESETS:
                m = kept(args.cache, f"{preset}-{steps}-{scale:g}", lambda s=scale, n=steps, p=preset: measured(s, n, p))
                ratio = m["distances"][:, 0] / m["distances"][:, 1]
                memorized = ratio < 1 / 3
                row = {
                    "preset": preset, "steps": steps, "guidance": scale, "top1": share(m["ranks"] < 1),
                    "frechet": frechet_distance(m["features"], others), "median_ratio": float(ratio.median()),
                    "f_mem": {f"{t:.3g}": share(ratio < t) for t in THRESHOLDS}, "energy": float(m["energy"].mean()),
                }  # fmt: skip
                if plain is None:
                    plain = (memorized, m["indices"][:, 0])
                else:
                    tests.append(f_mem_test(f"{preset}, {scale:g}, {steps}", memorized, plain[0]))
                    row["same_neighbor"] = share(m["indices"][:, 0][plain[0]] == plain[1][plain[0]])
                result["rows"].append(row)
    adjusted = holm(tests)
    for row in (row for row in result["rows"] if "same_neighbor" in row):
        plain_row = next(
            r for r in result["rows"] if r["preset"] == "off" and all(r[k] == row[k] for k in ("steps", "guidance"))
        )
        test = adjusted[f"{row['preset']}, {row['guidance']:g}, {row['steps']}"]
        row |= {"change": test.change, "p_holm": float(test.adjusted)}
        kept_judge = row["top1"]["share"] >= plain_row["top1"]["low"]
        row["helps"] = bool(test.adjusted < LEVEL and test.change < 0 and kept_judge)
    result["environment"] = environment(began)
    write_page(args.output, "text_to_image_shaping", page(result), result)


def page(result: dict[str, Any]) -> str:
    def interval(found: dict[str, Any]) -> str:
        return f"{100 * found['share']:.1f} ({100 * found['low']:.1f}-{100 * found['high']:.1f})"

    head = (
        f"Model `emoji-memorizing`, {result['num_samples']} training captions once each, from the same noises. Judge: top-1 % "
        f"among 1,910 concepts (real pictures: {interval(result['real_top1'])}). FD: to real pictures that it was not trained "
        f"on; its training pictures have {result['floor']:.1f}. F_mem % in pixels. 95 % intervals in brackets. *helps*: F_mem "
        "falls on the same noises (exact McNemar test, Holm) and the judge's share stays within plain sampling's interval."
    )
    lines = [
        "| guidance | steps | preset | judge | FD | F_mem | at 1/4 | at 1/2 | median d1/d2 | same neighbor | energy | helps |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        f = row["f_mem"]
        same = interval(row["same_neighbor"]) if "same_neighbor" in row else ""
        helps = "" if "helps" not in row else "yes" if row["helps"] else "no"
        lines.append(
            f"| {row['guidance']:g} | {row['steps']} | {row['preset']} | {interval(row['top1'])} | {row['frechet']:.1f} | "
            f"{interval(f['0.333'])} | {100 * f['0.25']['share']:.1f} | {100 * f['0.5']['share']:.1f} | "
            f"{row['median_ratio']:.3f} | {same} | {row['energy']:.4f} | {helps} |"
        )
    return "\n\n".join([head, verdict(result["rows"]), "\n".join(lines)])


def verdict(rows: list[dict[str, Any]]) -> str:
    shaped = [row for row in rows if "helps" in row]
    plain = {(row["guidance"], row["steps"]): row["f_mem"]["0.333"]["share"] for row in rows if row["preset"] == "off"}

    def moved(row: dict[str, Any]) -> str:
        before, after = 100 * plain[row["guidance"], row["steps"]], 100 * row["f_mem"]["0.333"]["share"]
        return f"{row['preset']} at guidance {row['guidance']:g} and {row['steps']} steps ({before:.1f} to {after:.1f})"

    helped = ", ".join(moved(row) for row in shaped if row["helps"]) or "none"
    raised = ", ".join(moved(row) for row in shaped if row["p_holm"] < LEVEL and row["change"] > 0) or "none"
    least = min(row["same_neighbor"]["share"] for row in shaped)
    keep = "all" if least == 1 else f"at least {least:.1%}"
    return (
        f"Verdict: rows that help against memorization, F_mem in %: {helped}. Rows that raise F_mem by more than chance: "
        f"{raised}. Of the samples that plain sampling memorizes, {keep} keep their nearest training picture in "
        "every row: shaping changes how near a picture comes to it, not which picture it is."
    )


if __name__ == "__main__":
    main()
