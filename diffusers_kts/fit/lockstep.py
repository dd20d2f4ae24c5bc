"""Students: runs whose weights are fitted step by step, all batches together, from where they have come by themselves.

The pipeline call of each batch runs in a thread and waits at every step until all have come there; then the weights of the
step are fitted and all move on. One of them computes at a time, so that the device holds the network and the work of a single
batch, and the latents of all.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from ..schedulers.adams_bashforth import adams_bashforth
from ..schedulers.scheduling_kts_fitted_flow_match import KTSFittedFlowMatchScheduler
from .runs import Runs
from .teacher import Teachers, solver
from .weights import Equations


class Student(KTSFittedFlowMatchScheduler):
    """A scheduler whose weights are being fitted."""

    lockstep: "Lockstep"
    batch: int

    def weights_of(self, index: int, sample: torch.Tensor, velocities: Sequence[torch.Tensor]) -> Sequence[float]:
        return self.lockstep.weights(self.batch, index, sample, velocities, self.plan.interval(index))


class Lockstep:
    """One fit of the weights on a grid.

    Args:
        teachers (`Teachers`): where the students should get to.
        times (`Sequence[float]`): the grid, N + 1 flow times.
        history (`int`, *optional*): velocities per step at most; None for all.
        shrinkage (`float`): towards Adams-Bashforth weights, see `fit.weights`.
    """

    def __init__(self, teachers: Teachers, times: Sequence[float], history: int | None, shrinkage: float) -> None:
        self.teachers, self.times, self.shrinkage = teachers, times, shrinkage
        self.priors = []
        for i in range(len(times) - 1):
            most = i + 1 if history is None else min(history, i + 1)
            known = adams_bashforth(times, i, min(2, most))
            self.priors.append(known + [0.0] * (most - len(known)))
        self.rows: list[list[float]] = []
        self._equations: dict[int, Equations] = {}
        self._meeting = threading.Barrier(len(teachers.fitted), action=self._solve)
        self._turn = threading.Lock()

    def fit(self, runs: Runs) -> list[list[float]]:
        """The weights of all steps, fitted on the trajectories of the teachers' fitted batches."""
        count = len(self.teachers.fitted)
        with ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(self._study, runs, number) for number in range(count)]
            try:
                errors = [error for future in futures if (error := future.exception()) is not None]
            except BaseException:  # an interruption, at which the threads must not wait for each other
                self._meeting.abort()
                raise
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
            raise error
        return self.rows

    def _study(self, runs: Runs, batch: int) -> None:
        try:
            student: Student = solver(runs.sampler.own_scheduler, self.times, self.priors, Student)
            student.lockstep, student.batch = self, batch
            with self._turn:
                runs.run(self.teachers.fitted[batch], student, len(self.priors))
        except BaseException:
            self._meeting.abort()
            raise

    def weights(
        self, batch: int, index: int, sample: torch.Tensor, velocities: Sequence[torch.Tensor], interval: float
    ) -> list[float]:
        """The weights of a step, once all batches have come to it."""
        prior, target = self.priors[index], self.teachers.states(self.teachers.fitted[batch], self.times[index + 1])
        self._equations[batch] = Equations.of(sample, velocities[: len(prior)], interval, target, prior)
        self._turn.release()
        try:
            self._meeting.wait()
        finally:
            self._turn.acquire()
        return self.rows[index]

    def _solve(self) -> None:
        equations = Equations.cat([self._equations[batch] for batch in sorted(self._equations)])
        self.rows.append(equations.weights(self.priors[len(self.rows)], self.shrinkage))
