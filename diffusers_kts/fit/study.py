"""The fit for one number of steps: the grid is chosen first, then the weights, then all is checked on other trajectories.

**Grid**: that of the exponents (`EXPONENTS`) on which Adams-Bashforth weights of order 2 do best. **Weights**: those of the
strengths of shrinkage (`SHRINKAGE`) that do best, an infinite one, Adams-Bashforth itself, among them. Both are chosen by the
typical error on held-out trajectories; those that the check is made on have chosen nothing.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..presets import PRESETS
from ..schedulers.adams_bashforth import adams_bashforth
from ..schedulers.scheduling_kts_dpmsolver_multistep import KTSDPMSolverMultistepScheduler
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..schedulers.scheduling_kts_unipc_multistep import KTSUniPCMultistepScheduler
from .errors import FITTED, GRID, distances, typical
from .grid import measured_grid
from .lockstep import Lockstep
from .runs import Runs
from .teacher import Teachers, solver

EXPONENTS = (0.25, 0.375, 0.5, 0.625)
SHRINKAGE = (0.0, 1e-3, 1e-2, math.inf)
# with shaping off, these are the stock schedulers
OTHERS: dict[str, type] = {
    "Euler": KTSFlowMatchScheduler,
    "UniPC 2": KTSUniPCMultistepScheduler,
    "DPM-Solver++ 2M": KTSDPMSolverMultistepScheduler,
}


class Study:
    """Fits of one model.

    Args:
        runs (`Runs`): of the model.
        teachers (`Teachers`): whose trajectories are there.
        choice (`Sequence[range]`): batches that grid and weights are chosen on.
        check (`Sequence[range]`): batches of the comparison.
        history (`int`, *optional*): velocities per step at most; None for all.
    """

    def __init__(
        self, runs: Runs, teachers: Teachers, choice: Sequence[range], check: Sequence[range], history: int | None
    ) -> None:
        self.runs, self.teachers, self.choice, self.check, self.history = runs, teachers, choice, check, history
        self.order = min(2, history or 2)  # of the Adams-Bashforth weights

    def fit(self, steps: int) -> dict[str, Any]:
        """The best fit found, how it was chosen, and the typical errors of all that were tried."""
        acceleration, times = self.teachers.acceleration(), self.teachers.times
        grids = {p: measured_grid(times, acceleration, steps, p) for p in EXPONENTS}
        by_exponent = {p: self._typical(grid, self.order) for p, grid in grids.items()}
        exponent = min(EXPONENTS, key=lambda p: by_exponent[p])
        grid = grids[exponent]
        tried: dict[float, tuple[Any, float]] = {}
        for shrinkage in SHRINKAGE:
            if math.isinf(shrinkage):
                rows = [adams_bashforth(grid, i, self.order) for i in range(steps)]
                error = by_exponent[exponent]
            else:
                rows = Lockstep(self.teachers, grid, self.history, shrinkage).fit(self.runs)
                error = self._typical(grid, rows)
            tried[shrinkage] = rows, error
        shrinkage = min(SHRINKAGE, key=lambda value: tried[value][1])
        return {
            "fit": {"flow_times": grid, "weights": tried[shrinkage][0], "mu": self.teachers.mu},
            "exponent": exponent,
            "shrinkage": _number(shrinkage),
            "exponents": [[p, error] for p, error in by_exponent.items()],
            "shrinkages": [[_number(value), error] for value, (_, error) in tried.items()],
        }

    def compare(self, fit: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
        """Distances to the teacher (n,) by sampler on the batches of the check, pixels (B, ..., H, W, C) of the first batch,
        and remarks on samplers that could not be run."""
        grid, steps = fit["flow_times"], len(fit["weights"])
        schedulers: dict[str, Callable[[], Any]] = {
            FITTED: partial(solver, self._own, grid, fit["weights"]),
            GRID: partial(solver, self._own, grid, self.order),
        }
        for name, kind in OTHERS.items():
            schedulers[name] = partial(kind.from_config, self._own.config, **PRESETS["off"], gain=None)  # type: ignore[attr-defined]
        errors: dict[str, torch.Tensor] = {}
        pixels = {"teacher": self.teachers.pixels(self.check[0])}
        notes: list[str] = []
        for name, make in schedulers.items():
            parts = []
            try:
                for batch in self.check:
                    end, drawn = self.runs.run(batch, make(), steps, decode=batch is self.check[0])
                    parts.append(distances(end, self.teachers.states(batch, 1.0)))
                    if batch is self.check[0]:
                        pixels[name] = torch.from_numpy(drawn.pixels)
            except (ValueError, TypeError, RuntimeError) as error:
                if name not in OTHERS:
                    raise
                notes.append(f"{name} does not run in this pipeline: {' '.join(str(error).split())[:200]}")
                continue
            errors[name] = torch.cat(parts)
        return errors, pixels, notes

    @property
    def _own(self) -> Any:
        return self.runs.sampler.own_scheduler

    def _typical(self, grid: list[float], weights: Any) -> float:
        steps, parts = len(grid) - 1, []
        for batch in self.choice:
            end, _ = self.runs.run(batch, solver(self._own, grid, weights), steps)
            parts.append(distances(end, self.teachers.states(batch, 1.0)))
        return typical(torch.cat(parts))


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return "infinite" if math.isinf(value) else value


def calls_of(steps: int, fitted: int, choice: int, check: int) -> int:
    """Network calls of a study, of which each takes a batch; the others count batches."""
    return steps * (len(EXPONENTS) * choice + (len(SHRINKAGE) - 1) * (fitted + choice) + (2 + len(OTHERS)) * check)
