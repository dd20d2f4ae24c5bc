r"""Acting on the detector of memorized samples, against a touchdown of all samples, the truth and chance.

    python -m benchmarks.science.acting --data fashion_mnist.npz
    python -m benchmarks.science.acting --data fashion_mnist.npz --emoji emoji64.npz \
        --models memorizing runs/n1024-seed1/pipeline emoji-memorizing

`n1024-seed1` is a training of ``benchmarks/science/trainings.py``. Plain Euler steps, guidance 1: 50 on the grey models, 20 on
`emoji-memorizing`, whose samples are its training captions in turn.
The detector is fitted on the first seed and acts on the others. What counts was fixed before the run:

* F_mem is the share with d1 / d2 < 1/3 in pixels. FD is the Frechet distance to real pictures that the model was not trained
  on: for the grey models the test images, in the classifier's features; for `emoji-memorizing` the other pictures of its
  style, in the first `COMPONENTS` principal components (of those pictures) of an ImageNet network's features.
* The curve to beat: all samples touch down, at t = .9 to .3 (the first evaluation that is not earlier, as for the flagged
  ones), and plain sampling. A setting is held against the lowest F_mem that this curve reaches at no higher FD.
* Two actions, each with the package's defaults: "touchdown" (detector up to t = .6, from probability .5) and "redraw" (whole
  record, from probability .5, at most 4 redraws). Other thresholds and times are shown, and do not count.
* An action wins on a model if the 95 % interval of its F_mem less that of the curve is below 0, and so is that of its F_mem
  less chance: a touchdown of as many samples, taken at random, or, for redraws, plain sampling. Intervals are bootstrapped
  over the noises, the same for all settings. Only a win on all models makes a preset.
* "Truth": the memorized samples, which nobody knows beforehand, touch down; or are redrawn until they are not memorized.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.concept_judge import Features, as_pixels
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.frontier import lowest
from benchmarks.science.laboratory import short_name
from diffusers_kts import KPETrace, KTSFlowMatchScheduler, Shaping, embedded_model
from diffusers_kts.features.frechet import FeatureStatistics, frechet_distance
from diffusers_kts.flow_coordinates import ON_GRID
from diffusers_kts.generate.settings import MAX_REDRAWS
from diffusers_kts.images.training_images import load_images
from diffusers_kts.memorization.detector import MemorizationDetector
from diffusers_kts.memorization.detector_fit import fit_detector, score
from diffusers_kts.memorization.fraction import measure_memorization, memorized_fraction
from diffusers_kts.sampling.find import IMAGES, find_model, fingerprint
from diffusers_kts.sampling.prompts import Prompt, in_turn
from diffusers_kts.sampling.sampler import Sampler
from diffusers_kts.sampling.settings import SamplingSettings
from diffusers_kts.seeding import sample_generators
from examples.train_text_to_image import full_caption, load_emoji, pairs_of

EMOJI, STEPS, EMOJI_STEPS = "emoji-memorizing", 50, 20
TIMES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
AT, THRESHOLD = 0.6, 0.5  # of the action that counts
SHOWN = ((0.6, 0.3), (0.6, 0.7), (0.4, 0.5), (0.5, 0.5), (0.7, 0.5))  # further detect_at and thresholds
COMPONENTS = 128
BLOCK = 50
RESAMPLES = 200
STYLE = "noto"
PLAIN, UNIFORM, CHANCE, TRUTH = "plain", "touchdown of all", "touchdown of as many at random", "truth"
TOUCHDOWN, REDRAW = "detector, touchdown", "detector, redraw"


class KeepingScheduler(KTSFlowMatchScheduler):
    """Keeps the data estimates at the first evaluations that are not before `TIMES`."""

    estimates: dict[float, torch.Tensor]

    def step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        result = super().step(model_output, timestep, sample, *args, **kwargs)
        index, times = self._step_index - 1, self.plan.times
        self.estimates = self.estimates if index else {}
        for t in TIMES:
            if times[index] >= t - ON_GRID and (index == 0 or times[index - 1] < t - ON_GRID):
                self.estimates[t] = sample - self.plan.levels[index] * model_output
        return result


class Painter:
    """Plain samples of a model, with what is needed to let each touch down, in batches of `BLOCK`."""

    def __init__(self, model: str, seed: int, steps: int) -> None:
        folder = find_model(model)
        settings = SamplingSettings(model=model, num_inference_steps=steps, seed=seed, guidance_scale=1.0)
        self.sampler = Sampler(folder, settings, torch.device("cpu"))
        self.sampler.shape(KeepingScheduler, Shaping(alpha_0=0, beta_0=0))
        self.sampler.pipe.record_turn = True
        if self.sampler.id2label is None:
            with np.load(folder / IMAGES) as archive:
                self.prompts = [Prompt(str(caption)) for caption in archive["captions"]]
        else:
            self.prompts = [Prompt(label) for label in range(self.sampler.pipe.num_classes)]
        self.training = load_images(folder / IMAGES, self.sampler.image_shape(self.prompts[:1]))

    def draw(self, indices: list[int], redraw: int = 0) -> tuple[KPETrace, dict[str, torch.Tensor]]:
        """Records, and pixels (n, C, H, W) uint8 of "plain" and of the touchdowns."""
        traces, pixels = [], []
        for start in range(0, len(indices), BLOCK):
            some = indices[start : start + BLOCK]
            generators = sample_generators(self.sampler.settings.seed, some, redraw)
            drawn = self.sampler.draw(some, in_turn(self.prompts, some), generators=generators)
            traces.append(drawn.trace)
            estimates = {} if redraw else self.sampler.pipe.scheduler.estimates
            images = {PLAIN: drawn.images} | {f"{t:g}": self.decoded(x) for t, x in estimates.items()}
            pixels.append({name: (255 * part.clamp(0, 1)).round().byte() for name, part in images.items()})
        return KPETrace.cat(traces), {name: torch.cat([part[name] for part in pixels]) for name in pixels[0]}

    @torch.no_grad()
    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        vae = getattr(self.sampler.pipe, "vae", None)
        if vae is not None:
            latents = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
        return latents / 2 + 0.5


def kept(path: Path, work: Callable[[], tuple[KPETrace, dict[str, torch.Tensor]]]) -> tuple[KPETrace, dict[str, torch.Tensor]]:
    """What ``work`` draws, from a file once it has been drawn."""
    record, began = path.with_suffix(".kpe.safetensors"), time.time()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        trace, pixels = work()
        trace.save(record)
        save_file(pixels, path)
        print(f"{path.stem}, {time.time() - began:.0f} s", flush=True)
    return KPETrace.load(record), load_file(path)


@dataclass
class Versions:
    """Every version of the samples of a seed: plain, touched down at each of `TIMES`, redrawn by detector or truth.

    Attributes:
        hits: (K, n) memorized. features: (K, n, d). names: of the K versions.
        flags: (n,) which the detector flags, by (detect_at, threshold).
        redraws: mean number of redraws, by version.
    """

    hits: torch.Tensor
    features: torch.Tensor
    names: list[str]
    flags: dict[tuple[float, float], torch.Tensor]
    redraws: dict[str, float]

    @property
    def plain(self) -> torch.Tensor:
        """(n,) the memorized samples of plain sampling."""
        return self.hits[self.names.index(PLAIN)]

    def chosen(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        """(n,) the version of each sample, where ``rows`` (n,) take ``name`` and the others are plain."""
        return torch.where(rows, self.names.index(name), self.names.index(PLAIN))


def versions(
    painter: Painter,
    detector: MemorizationDetector,
    count: int,
    features: Callable[[torch.Tensor], torch.Tensor],
    folder: Path,
) -> Versions:
    seed = painter.sampler.settings.seed

    def memorized(pixels: torch.Tensor) -> torch.Tensor:
        return measure_memorization(pixels.float() / 255, painter.training).is_memorized

    trace, pixels = kept(folder / f"{seed}-{count}.safetensors", lambda: painter.draw(list(range(count))))
    flags = {(at, p): detector.probability(trace, at) >= p for at, p in ((AT, THRESHOLD), *SHOWN)}
    redraws = {}
    for name, flagged in ((REDRAW, detector.probability(trace) >= THRESHOLD), (TRUTH, memorized(pixels[PLAIN]))):
        images, often, again = pixels[PLAIN].clone(), 0, flagged.nonzero().flatten()
        for number in range(1, MAX_REDRAWS + 1):
            if not len(again):
                break
            by = detector.digest[:12] if name == REDRAW else name
            path = folder / f"{seed}-{count}-{by}-{number}.safetensors"
            record, new = kept(path, lambda rows=again, number=number: painter.draw(rows.tolist(), number))
            images[again], often = new[PLAIN], often + len(again)
            still = detector.probability(record) >= THRESHOLD if name == REDRAW else memorized(new[PLAIN])
            again = again[still]
        pixels[name], redraws[name] = images, often / count
    hits = torch.stack([memorized(part) for part in pixels.values()])
    return Versions(hits, torch.stack([features(p.float() / 255) for p in pixels.values()]), list(pixels), flags, redraws)


def settings(found: Versions, generator: torch.Generator) -> dict[tuple[str, str], torch.Tensor]:
    """(n,) the version of each sample, by family and setting."""
    everyone = torch.ones_like(found.plain)
    chosen = {(PLAIN, ""): found.chosen(PLAIN, everyone)}
    chosen |= {(UNIFORM, f"t = {t:g}"): found.chosen(f"{t:g}", everyone) for t in TIMES}
    for (at, p), flagged in found.flags.items():
        chosen[TOUCHDOWN, f"t = {at:g}, from {p:g}"] = found.chosen(f"{at:g}", flagged)
    flagged = found.flags[AT, THRESHOLD]
    as_many = flagged[torch.randperm(len(flagged), generator=generator)]
    chosen[CHANCE, f"t = {AT:g}"] = found.chosen(f"{AT:g}", as_many)
    chosen |= {(TRUTH, f"touchdown, t = {t:g}"): found.chosen(f"{t:g}", found.plain) for t in (0.4, 0.5, 0.6)}
    chosen[REDRAW, f"from {THRESHOLD:g}"] = found.chosen(REDRAW, everyone)
    chosen[TRUTH, "redraw"] = found.chosen(TRUTH, everyone)
    return chosen


COUNTS = {
    (TOUCHDOWN, f"t = {AT:g}, from {THRESHOLD:g}"): (CHANCE, f"t = {AT:g}"),
    (REDRAW, f"from {THRESHOLD:g}"): (PLAIN, ""),
}


def judged(found: list[Versions], reference: FeatureStatistics) -> list[dict[str, Any]]:
    """A row per setting: F_mem, FD, and the differences with their intervals."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    chosen = [settings(one, generator) for one in found]
    names = list(chosen[0])
    curve = [i for i, (family, _) in enumerate(names) if family in (PLAIN, UNIFORM)]
    controls = [names.index(COUNTS.get(name, name)) for name in names]
    places, over_curve, over_chance = [], [], []
    for resample in range(RESAMPLES + 1):
        all_rows = [
            torch.from_numpy(rng.integers(len(one.hits[0]), size=len(one.hits[0])))
            if resample
            else torch.arange(len(one.hits[0]))
            for one in found
        ]
        now = []
        for name in names:
            fd, f_mem = [], []
            for one, by_name, rows in zip(found, chosen, all_rows, strict=True):
                version = by_name[name][rows]
                fd.append(frechet_distance(one.features[version, rows], reference))
                f_mem.append(one.hits[version, rows].double().mean().item())
            now.append((float(np.mean(fd)), float(np.mean(f_mem))))
        reached = [lowest([now[i] for i in curve], fd) for fd, _ in now]
        places.append(now)
        over_curve.append([np.nan if r is None else f - r for (_, f), r in zip(now, reached, strict=True)])
        over_chance.append([f - now[i][1] for (_, f), i in zip(now, controls, strict=True)])
    rows = []
    for i, (family, setting) in enumerate(names):
        hits = torch.cat(
            [one.hits[c[family, setting], torch.arange(len(one.hits[0]))] for one, c in zip(found, chosen, strict=True)]
        )
        fraction = memorized_fraction(hits)
        changed = np.mean(
            [(c[family, setting] != one.names.index(PLAIN)).double().mean() for one, c in zip(found, chosen, strict=True)]
        )
        row = {
            "family": family, "setting": setting, "f_mem": fraction.fraction, "low": fraction.low, "high": fraction.high,
            "frechet": places[0][i][0], "changed": float(changed), "counts": (family, setting) in COUNTS,
        }  # fmt: skip
        if (name := REDRAW if family == REDRAW else TRUTH if setting == "redraw" else None) is not None:
            row["redraws"] = float(np.mean([one.redraws[name] for one in found]))
            row["changed"] = None
        if family not in (PLAIN, UNIFORM):
            row["less_than_curve"] = interval([part[i] for part in over_curve])
        if row["counts"]:
            row["less_than_chance"] = interval([part[i] for part in over_chance])
        rows.append(row)
    return rows


def interval(values: list[float]) -> dict[str, float] | None:
    """The first of the values, with the 95 % interval of the others; None if it is not known."""
    if not np.isfinite(values[0]) or not np.isfinite(values[1:]).any():
        return None
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return {"value": values[0], "low": float(low), "high": float(high)}


def wins(row: dict[str, Any]) -> bool:
    return all(row[name] is not None and row[name]["high"] < 0 for name in ("less_than_curve", "less_than_chance"))


def verdict(models: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """A sentence, and the actions that win on all models."""
    found, words = [], []
    for family in (TOUCHDOWN, REDRAW):
        on = [m["model"] for m in models for row in m["rows"] if row["counts"] and row["family"] == family and wins(row)]
        words.append(f"{family}: wins on {', '.join(on) if on else 'none'} of {len(models)} models")
        found += [family] if len(on) == len(models) else []
    return f"Verdict: {'; '.join(words)}.", found


def describe(model: dict[str, Any]) -> str:
    def cell(found: dict[str, float] | None) -> str:
        return "" if found is None else "{value:.1%} ({low:.1%} to {high:.1%})".format(**found)

    header = ["family", "setting", "changed", "F_mem (95 %)", "FD", "F_mem less the curve's (95 %)", "less chance's (95 %)"]
    rows = [
        [
            row["family"] + (" *" if row["counts"] else ""), row["setting"],
            f"{row['redraws']:.2f} redraws" if "redraws" in row else f"{row['changed']:.0%}",
            f"{row['f_mem']:.1%} ({row['low']:.1%} - {row['high']:.1%})", f"{row['frechet']:.2f}",
            cell(row.get("less_than_curve")), cell(row.get("less_than_chance")),
        ]
        for row in model["rows"]
    ]  # fmt: skip
    told = model["detector"]
    return (
        f"## {model['model']}: {model['steps']} steps, {model['num_samples']} samples of each seed\n\n"
        f"On the seeds acted on, the detector's AUC is {told['1']:.3f} with the whole record, {told[f'{AT:g}']:.3f} up to t = "
        f"{AT:g}.\n\n{table(header, rows)}"
    )


def plot(models: list[dict[str, Any]], path: Path) -> None:
    """F_mem with its interval against FD, a panel per model."""
    styles = {
        PLAIN: ("k", "*"), UNIFORM: ("#D55E00", "s-"), TOUCHDOWN: ("#0072B2", "o"), REDRAW: ("#009E73", "D"),
        CHANCE: ("#999999", "x"), TRUTH: ("#CC79A7", "^"),
    }  # fmt: skip
    figure = Figure(figsize=(6.5 * len(models), 5), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        for family, (color, style) in styles.items():
            rows = [row for row in model["rows"] if row["family"] == family]
            x, y = np.array([[row["frechet"], 100 * row["f_mem"]] for row in rows]).T
            upright = 100 * np.array([[row["f_mem"] - row["low"], row["high"] - row["f_mem"]] for row in rows]).T
            axes.errorbar(x, y, upright, fmt=style, color=color, label=family, markersize=7, elinewidth=0.7)
        axes.set(xlabel="Frechet distance", ylabel="F_mem, %", title=model["model"], ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def of_fashion(args: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], FeatureStatistics]:
    """Features, and the statistics of those of real pictures."""
    data = load_data(args.data)
    classifier = Classifier(data, args.epochs, args.cache)
    return classifier.features, FeatureStatistics.of(classifier.features(data.x_test))


def of_emoji(args: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], FeatureStatistics]:
    data, network = load_emoji(args.emoji), Features()
    with np.load(embedded_model(EMOJI) / IMAGES) as archive:
        trained = set(archive["captions"].tolist())
    rows = [
        rows[0]
        for (style, name), rows in pairs_of(data).items()
        if style == STYLE and full_caption(style, name) not in trained
    ]
    real = network(as_pixels(data["images"][rows])).double()
    _, _, axes = torch.linalg.svd(real - real.mean(0), full_matrices=False)
    axes = axes[:COMPONENTS].T

    def features(pixels: torch.Tensor) -> torch.Tensor:
        return network(pixels).double() @ axes

    return features, FeatureStatistics.of(real @ axes)


def measured(path: str, args: Any) -> dict[str, Any]:
    """Everything about one model."""
    steps = args.steps or (EMOJI_STEPS if path == EMOJI else STEPS)
    name = short_name(path)
    count, folder = args.num_samples, args.cache / f"acting-{name}-{fingerprint(find_model(path))[:8]}-{steps}"
    features, reference = (of_emoji if path == EMOJI else of_fashion)(args)
    first, *others = args.seeds
    painter = Painter(path, first, steps)
    trace, pixels = kept(folder / f"{first}-{count}.safetensors", lambda: painter.draw(list(range(count))))
    hits = measure_memorization(pixels[PLAIN].float() / 255, painter.training).is_memorized
    detector = fit_detector(trace, hits, [str(prompt.text) for prompt in in_turn(painter.prompts, range(count))])
    found, told = [], {}
    for seed in others:
        painter = Painter(path, seed, steps)
        found.append(versions(painter, detector, count, features, folder))
    for at in (AT, 1.0):
        p = [detector.probability(KPETrace.load(folder / f"{seed}-{count}.kpe.safetensors"), at) for seed in others]
        told[f"{at:g}"] = score(
            torch.cat(p).numpy(), torch.cat([one.plain for one in found]).numpy(), [0] * len(torch.cat(p))
        ).auc
    return {
        "model": name, "steps": steps, "num_samples": count, "detector": told, "rows": judged(found, reference),
    }  # fmt: skip


def main() -> None:
    options = parser(__doc__)
    options.set_defaults(num_samples=1000, seeds=[0, 1, 2])
    options.add_argument("--models", nargs="+", default=["memorizing"], help="names, or folders of grey pipelines")
    options.add_argument("--emoji", help="the emoji's .npz file, for emoji-memorizing")
    options.add_argument("--num-inference-steps", dest="steps", type=int, help=f"default: {STEPS}, of {EMOJI} {EMOJI_STEPS}")
    args, began = options.parse_args(), time.time()
    models = [measured(path, args) for path in args.models]
    sentence, winners = verdict(models)
    plot(models, args.output / "results" / "acting.png")
    about = (
        f"The detector is fitted on seed {args.seeds[0]} and acts on the others, together; FD is their mean. The curve: all "
        "samples touch down, or none; a setting is held against the lowest F_mem on the broken line through it at no higher "
        "FD. Chance: a touchdown of as many samples taken at random, or, for redraws, plain sampling. Truth: the memorized "
        f"samples, known afterwards. Rows with * count; what wins was fixed before the run. Redraws: at most {MAX_REDRAWS} of "
        "a sample; each costs a run."
    )
    result = {
        "num_samples": args.num_samples, "seeds": args.seeds, "environment": environment(began), "wins": winners,
        "models": models,
    }  # fmt: skip
    picture = "![Share memorized against Frechet distance](acting.png)"
    write_page(args.output, "acting", "\n\n".join([about, sentence, picture, *map(describe, models)]), result)


if __name__ == "__main__":
    main()
