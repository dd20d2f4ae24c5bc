r"""Which of the paper's claims hold on other trainings: other numbers of images, another seed of training.

    common="--data fashion_mnist.npz --label-dropout 0 --patch-size 14 --hidden-size 256 --num-layers 3"
    python examples/train_fashion_mnist.py $common --output runs/n512 --num-images 512 --updates 28000
    python examples/train_fashion_mnist.py $common --output runs/n4096 --num-images 4096 --updates 14000
    more="$common --output runs/n1024-seed1 --num-images 1024 --seed 1"
    python examples/train_fashion_mnist.py $more --updates 34000 --stop-after 30000
    python examples/train_fashion_mnist.py $more --updates 48000
    python -m benchmarks.science.trainings --data fashion_mnist.npz --seeds 0 --num-samples 2000 \
        --models memorizing runs/n1024-seed1/pipeline runs/n512/pipeline runs/n4096/pipeline

``n1024-seed1`` is the training of the embedded ``memorizing`` with another seed, so other initial weights and batches, up to
48,000 of its 56,000 updates. 512 images get half of these 56,000, so that each image is seen as often; 4,096 get 14,000.
Architecture, recoding, tests, controls and verdicts are those of ``paper_tables.py``, and the plan at its head holds here.
Written before the run:

* Every model is a study of its own: Holm's method adjusts its tests together, and it is compared with its own training images.
* A claim *holds on all* (or *fails on all*) where its verdict begins with "agrees" or "holds" ("disagrees" or "does not hold")
  on every model that can be asked; otherwise it is *mixed*, or *undecided* where no model decides it.
* Claims on F_mem are asked of models that memorize at least `FEWEST_MEMORIZED` of the plain samples.
* Path energy and excess tell memorized samples where the 95 % interval of their AUC (Hanley and McNeil) excludes .5.
"""

import time
from typing import Any

from benchmarks.report import environment, parser, table, write_page
from benchmarks.science.controlled import Bench
from benchmarks.science.energies import Energies
from benchmarks.science.fashion_mnist import Classifier, load_data
from benchmarks.science.judge import Judge
from benchmarks.science.laboratory import Laboratory, load_model
from benchmarks.science.paper_sections import percent
from benchmarks.science.paper_tables import Plan, claims
from benchmarks.science.significance import holm
from diffusers_kts.memorization.detector_fit import score

FEWEST_MEMORIZED = 0.01
STEPS = 100
GOOD, BAD = ("agrees", "holds"), ("disagrees", "does not hold")


def together(verdicts: list[str]) -> str:
    """What the verdicts of all models come to."""
    good, bad = (sum(verdict.startswith(words) for verdict in verdicts) for words in (GOOD, BAD))
    if not good and not bad:
        return "undecided" if verdicts else "not asked"
    if good == len(verdicts):
        return "holds on all"
    return "fails on all" if bad == len(verdicts) else "mixed"


def study(bench: Bench, plan: Plan, count: int) -> dict[str, Any]:
    """One model: what it is, its claims, and how its energies tell memorized samples."""
    plain = bench.measure(bench.draw(plan.plain, count).images)
    asked = plan.main() if plain.f_mem.fraction >= FEWEST_MEMORIZED else {}
    found = bench.compare(asked, count, controls=True)
    energies = Energies.measure(bench, plan.plain, count)
    tests = holm([*(test for c in found.values() for test in c.tests()), *energies.tests()])
    hits, model = plain.memorized().numpy(), bench.model
    areas = {name: vars(score(own.numpy(), hits, [0] * len(hits))) for name, own in energies.of_samples.items() if found}
    return {
        "digest": model.digest,
        "training_images": len(model.training),
        "plain": plain.summary(bench.judge),
        "claims": claims(tests, {"main": found}, {}),
        "auc_memorized": {name: [area["auc"], area["low"], area["high"]] for name, area in areas.items()},
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--models", nargs="+", required=True, help="names or folders of pipelines")
    args, began = options.parse_args(), time.time()
    data, plan, studies = load_data(args.data), Plan(STEPS, ()), {}
    judge = Judge(Classifier(data, args.epochs, args.cache), data.x_test)
    for path in args.models:
        model = load_model(path, data).recoded()
        laboratory = Laboratory(model, args.num_samples, args.cache)
        if args.draw_only:
            for sampler in (plan.plain, *plan.main().values()):
                for seed in args.seeds:
                    laboratory.draw(sampler, seed)
            continue
        bench = Bench(model, judge, lambda count, model=model: Laboratory(model, count, args.cache), args.seeds)  # type: ignore[misc]
        studies[model.name] = study(bench, plan, args.num_samples)
    if args.draw_only:
        return
    floor = judge.frechet(data.x_train[-args.num_samples * len(args.seeds) :])
    texts = [about(), "## The models\n\n" + models(studies, floor), "## The claims\n\n" + compared(studies)]
    result = {
        "num_samples": args.num_samples,
        "seeds": args.seeds,
        "environment": environment(began),
        "floor": floor,
        "models": studies,
    }
    write_page(args.output, "trainings", "\n\n".join(texts), result)


def about() -> str:
    return (
        f"Plain Euler and its shaped runs, {STEPS} steps, models recoded as in [the paper's tables](paper_tables.md), whose "
        "measures, tests and verdicts these are. The trainings, the plan and what counts stand at the head of the script, and "
        "stood there before the run. Densities are those of each model's own training images."
    )


def models(studies: dict[str, Any], floor: float) -> str:
    rows = []
    for name, found in studies.items():
        plain = found["plain"]
        low, high = (percent(end) for end in plain["f_mem_interval"])
        areas = [f"{a:.2f} ({low:.2f} to {high:.2f})" for a, low, high in found["auc_memorized"].values()] or [""] * 3
        near = f"{percent(plain['f_mem']['0.333'])} ({low} to {high})"
        above, right = f"{plain['frechet'] - floor:.2f}", percent(plain["class_accuracy"])
        rows.append([f"{name} ({found['digest']})", found["training_images"], near, above, right, *areas])
    header = ["model", "training images", "F_mem %", "FD above floor", "class accuracy %"]
    return table([*header, *(f"AUC of {name} for memorized" for name in ("path energy", "displacement", "excess"))], rows)


def compared(studies: dict[str, Any]) -> str:
    """A row for every claim, with what each model says."""
    by_claim: dict[str, dict[str, list[str]]] = {}
    for name, found in studies.items():
        for claim, reported, here, verdict in found["claims"]:
            by_claim.setdefault(claim, {"reported": [reported]})[name] = [here, verdict]
    rows = []
    for claim, cells in by_claim.items():
        said = [cells.get(name) for name in studies]
        verdicts = [cell[1] for cell in said if cell is not None]
        shown = ["" if cell is None else f"{cell[0]}: **{cell[1]}**" for cell in said]
        rows.append([claim, *cells["reported"], *shown, together(verdicts)])
    return table(["claim", "reported", *studies, "together"], rows)


if __name__ == "__main__":
    main()
