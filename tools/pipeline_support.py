"""Write docs/pipelines.md: every flow pipeline class of the installed diffusers, and how it fares with this package.

    python tools/pipeline_support.py

runs the checks of tests/matrix/checks.py on a tiny random-weight version of each class, in about a quarter of an hour on
one core. A check that fails where no limit is stated is marked FAIL, and the script exits with 1.
"""

import argparse
import re
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import diffusers  # noqa: E402
import transformers  # noqa: E402
from matrix.checks import CHECKS, Case, follows  # noqa: E402
from matrix.derive import FlowPipeline, flow_pipelines  # noqa: E402
from matrix.registry import BUILDERS, NOT_BUILT, load_families  # noqa: E402

import diffusers_kts  # noqa: E402
from diffusers_kts.kpe.trace import LATE_START  # noqa: E402

HEADER = """# Pipelines

Every class of diffusers {version} that samples a flow, {total} in all: {standard} pipelines and {modular} modular ones. The
list is read from the source of diffusers, so a class of a later version appears here, and in the tests, by itself. {built} are
built with tiny random weights and run through the checks below; {not_built} cannot be built without what the reason names.

Written by `python tools/pipeline_support.py`, with diffusers-kts {kts}. The same checks are tests: `python -m pytest
tests/pipelines/test_matrix.py` runs a slice of the classes, `--all-pipelines` adds all others.

| check | what holds |
|---|---|
{checks}

A **limit** is a check that cannot hold for this class, with the reason given; the tests expect exactly this failure.
**KTS** says what `KTSFlowMatchScheduler.from_config` does with the scheduler that the checkpoints ship: it *shapes* its Euler
steps, or *converts* another solver, whose schedule it takes over, to Euler steps and shapes those ("off" then compares with
the stock Euler scheduler on that schedule). The remarks are read off the runs:

* *late start*: image-to-image and inpainting begin at this flow time, so most of what is shaped is the landing;
* *blended*: the pipeline overwrites latents between steps; each step itself is shaped;
* *streams*: several schedulers run side by side (audio, frames); each is shaped and has its own energy;
* *runs*: one call samples several times; each run is shaped from its own start and has its own energy;
* *per token*: every token has its own noise level and is shaped at its own flow time;
* *counts upwards*, *sigma above 1*: the flow time is read from such schedules accordingly.
"""


@dataclass
class Row:
    """What became of one class; ``cells`` has a word per check."""

    pipeline: FlowPipeline
    scheduler: str
    does: str = "-"
    cells: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        cells = " | ".join(self.cells.get(check, "") for check in CHECKS)
        name, family = self.pipeline.name, self.pipeline.family
        return f"| {name} | {family} | {self.scheduler} | {self.does} | {cells} | {'; '.join(self.remarks)} |"


def measure(pipeline: FlowPipeline) -> Row:
    if pipeline.name in NOT_BUILT:
        return Row(pipeline, pipeline.scheduler, remarks=[f"not built: {NOT_BUILT[pipeline.name]}"])
    failed = dict.fromkeys(CHECKS, "FAIL")
    if pipeline.name not in BUILDERS:
        return Row(pipeline, pipeline.scheduler, cells=failed, remarks=["not covered yet"])
    try:
        case = Case(BUILDERS[pipeline.name]())
    except Exception as error:
        traceback.print_exc()
        return Row(pipeline, pipeline.scheduler, cells=failed, remarks=[f"could not be built: {error}"])
    natives = {type(scheduler).__name__ for scheduler in case.native.values()}
    row = Row(pipeline, " and ".join(sorted(natives)))
    for name, check in CHECKS.items():
        limit = case.tiny.limits.get(name)
        try:
            note = check(case)
            row.cells[name] = "FAIL" if limit else "none" if note else "yes"
        except Exception as error:
            if limit and re.search(limit.error, str(error)):
                row.cells[name] = "limit"
                if limit.why not in row.remarks:
                    row.remarks.append(limit.why)
            else:
                row.cells[name] = "FAIL"
                traceback.print_exc()
    if row.cells["shaped"] == "yes":
        euler = natives == {diffusers.FlowMatchEulerDiscreteScheduler.__name__}
        row.does = "shapes" if euler else "converts, shapes"
        row.remarks = [*remarks(case), *row.remarks]
    return row


def remarks(case: Case) -> list[str]:
    runs, off = case.shaped.runs, case.off.runs
    owners = {id(run.owner) for run in runs}
    starts = {float(run.steps[0].t.min()) for run in runs}
    said = {
        f"late start (t = {min(starts):.2f})": min(starts) > LATE_START,
        "blended": not all(all(follows(run)) for run in off),
        f"{len(owners)} streams": len(owners) > 1,
        f"{len(runs) // len(owners)} runs": len(runs) > len(owners),
        "per token": any(step.dt.ndim for run in runs for step in run.steps),
        "counts upwards": any(run.owner.config.invert_sigmas for run in runs),
        "sigma above 1": any(float(run.owner.sigmas.max()) > 1.0001 for run in runs),
        "no callback": not case.has_callback,
    }
    return [words for words, holds in said.items() if holds]


def document(rows: list[Row]) -> str:
    counts = {
        "version": diffusers.__version__,
        "kts": diffusers_kts.__version__,
        "total": len(rows),
        "modular": sum(row.pipeline.modular for row in rows),
        "standard": sum(not row.pipeline.modular for row in rows),
        "built": sum(row.pipeline.name in BUILDERS for row in rows),
        "not_built": sum(row.pipeline.name in NOT_BUILT for row in rows),
        "checks": "\n".join(f"| {name} | {(check.__doc__ or '').replace('``', '`')} |" for name, check in CHECKS.items()),
    }
    lines = [HEADER.format(**counts)]
    for title, modular in (("Pipelines", False), ("Modular pipelines", True)):
        lines += [
            f"## {title}",
            "",
            f"| class | family | its scheduler | KTS | {' | '.join(CHECKS)} | remarks |",
            "|---" * (len(CHECKS) + 5) + "|",
        ]
        lines += [*(str(row) for row in rows if row.pipeline.modular == modular), ""]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "pipelines.md")
    output = parser.parse_args().output
    diffusers.utils.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.logging.disable_progress_bar()
    load_families()
    rows = []
    for pipeline in flow_pipelines().values():
        rows.append(measure(pipeline))
        print(rows[-1], flush=True)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(document(rows), "utf-8")
    failed = [row.pipeline.name for row in rows if "FAIL" in row.cells.values()]
    print(f"{output}: {len(rows)} classes, {len(failed)} with failures {failed or ''}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
