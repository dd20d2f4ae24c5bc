"""Which samples are memorized, told from the trajectory alone, while sampling, without the training data.

    python -m benchmarks.science.memorization_score --data fashion_mnist.npz --models runs/memorizing/snapshots/update-0340*

Plain Euler. Every candidate is a number per sample from the velocities ``v_i`` of its trajectory, of which none but the last
is kept. ``turn`` is ``||v_i - v_{i-1}||``; ``change = (1 - t_i) turn`` is how far the data estimate ``x + (1 - t) v`` moves in
an Euler step. The best candidate, and the sign of each, are chosen on the first model with the first seed; the tables are of
the other seeds, and of every model.
"""

import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.fashion_mnist import load_data
from benchmarks.science.laboratory import Draw, Laboratory, Sampler, load_model
from diffusers_kts.flow_coordinates import ON_GRID
from diffusers_kts.memorization.detector_fit import score
from diffusers_kts.memorization.fraction import measure_memorization

EARLY, LATE = (0.3, 0.4, 0.5), ((0.8, 1.0), (0.9, 1.0), (0.8, 0.95))
GOAL = 0.75


def candidates(draw: Draw, sampler: Sampler) -> dict[str, torch.Tensor]:
    """(B,) scores by name."""
    trace = draw.trace(sampler)
    energy = trace.path_energy
    scores = {"KPE": energy.total, "early KPE": energy.early, "late KPE": energy.late}
    scores["early less late KPE"] = energy.early - energy.late
    length = (draw.power.sqrt() * trace.sigmas.diff().abs()).sum(1)
    scores["curvature: turn over length of the path"] = draw.turn.sum(1) / length
    scores["turn, t >= .8"] = draw.turn[:, trace.t[:-1] > 0.8 - ON_GRID].sum(1)
    for start, end in LATE:
        scores[f"change, t {start:g} to {end:g}"] = trace.estimate_change(start, end)
    for end in EARLY:
        early = trace.estimate_change(0, end)
        scores[f"change, t < {end:g}"] = early
        for start, stop in LATE:
            scores[f"settling: change t < {end:g} over t {start:g} to {stop:g}"] = (
                early / trace.estimate_change(start, stop)
            ).log()
    return scores


def scored(laboratory: Laboratory, sampler: Sampler, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Scores by name, and which samples are memorized."""
    draw = laboratory.draw(sampler, seed)
    hits = measure_memorization(draw.images, laboratory.model.training).is_memorized
    return {name: score.double().numpy() for name, score in candidates(draw, sampler).items()}, hits.numpy()


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", default=["memorizing"], help="names, folders or snapshots")
    options.add_argument("--num-inference-steps", dest="steps", type=int, default=100)
    args, began = options.parse_args(), time.time()
    if len(args.seeds) < 2:
        raise SystemExit("--seeds has one seed; give at least two, the first to choose the score and the others to judge it.")
    data, sampler = load_data(args.data), Sampler(steps=args.steps)
    laboratories = [Laboratory(load_model(path, data, args.num_images), args.num_samples, args.cache) for path in args.models]
    runs = {lab.model.name: [scored(lab, sampler, seed) for seed in args.seeds] for lab in laboratories}
    if args.draw_only:
        return
    for name, by_seed in runs.items():
        for hits, seed in zip((hits for _, hits in by_seed), args.seeds, strict=True):
            if not hits.any() or hits.all():
                raise SystemExit(
                    f"{hits.sum()} of {len(hits)} samples of {name}, seed {seed}, are memorized; nothing to tell."
                )
    scores, hits = runs[laboratories[0].model.name][0]
    chosen_by = {name: roc_auc_score(hits, values) for name, values in scores.items()}
    signs = {name: 1 if value >= 0.5 else -1 for name, value in chosen_by.items()}
    best = max(chosen_by, key=lambda name: abs(chosen_by[name] - 0.5))
    texts, models, reached = [], [], []
    for laboratory in laboratories:
        model, held_out = laboratory.model, runs[laboratory.model.name][1:]
        hits = np.concatenate([hit for _, hit in held_out])
        labels = np.tile(laboratory.labels.numpy(), len(held_out))
        rows, result = [], {}
        for name, sign in signs.items():
            found = score(sign * np.concatenate([by_name[name] for by_name, _ in held_out]), hits, labels)
            by_seed = [roc_auc_score(hit, sign * by_name[name]) for by_name, hit in held_out]
            result[name] = {"sign": sign, "auc_by_seed": by_seed} | vars(found)
            label = f"**{name}**" if name == best else name
            area, spread = f"{found.auc:.2f} ({found.low:.2f} to {found.high:.2f})", ", ".join(f"{a:.2f}" for a in by_seed)
            inside = "" if found.auc_within_groups is None else f"{found.auc_within_groups:.2f}"
            rows.append([label, "high" if sign > 0 else "low", area, f"{found.tpr_at_1_percent:.2f}", spread, inside])
        header = ["score", "memorized are", "AUC (95 %)", "TPR at 1 % FPR", "AUC of each seed", "AUC within a class"]
        texts.append(f"## {model.name}: {hits.mean():.1%} of {len(hits)} held-out samples memorized\n\n{table(header, rows)}")
        models.append({"model": model.name, "digest": model.digest, "memorized": float(hits.mean()), "scores": result})
        reached.append(result[best]["auc"])
    passed = all(area >= GOAL for area in reached)
    values = ", ".join(f"{area:.2f}" for area in reached)
    about = (
        f"Plain Euler, {args.steps} steps. Score and signs chosen on seed {args.seeds[0]} of {laboratories[0].model.name}, "
        "tables of the other seeds. `change` is the movement of the data estimate, `turn` that of the velocity.\n\n"
        f'Verdict: the score chosen is "{best}", AUC {values} on the held-out seeds; goal, {GOAL} on every model: '
        f"{'reached' if passed else 'not reached'}. It keeps one latent, the last velocity."
    )
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "chosen": best,
        "models": models,
    }
    write_page(args.output, "memorization_score", "\n\n".join([about, *texts]), result)


if __name__ == "__main__":
    main()
