"""A study in an SQLite file that several processes of one machine share, and that outlives all of them.

Every look into the file happens under one lock, which ends with the process that holds it: SQLite knows no row locks, and
optuna alone cannot tell a trial whose process died from one that runs. What is slow, drawing, happens outside the lock.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError

from ..errors import brief
from .halving import RESOURCES, Halves, beaten_twice
from .objectives import Objective
from .space import Setting, Space

STUDY, WORKERS = "study.db", "workers"
WAIT = 60  # seconds that SQLite waits for a writer that does not know the lock
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class SharedStudy:
    """The study of a folder, begun or resumed.

    Args:
        folder (`Path`): of the study; made if it does not exist.
        identity (`Mapping`): what the values depend on; JSON.
        objectives (`Sequence[Objective]`): in the order of their weight.
        space (`Space`): of the settings. seed (`int`): of the proposals, which depend on it, the number of the trial and the
            trials before.

    Raises:
        ValueError: another study lies there, and what differs; or the file is damaged. OSError: the folder holds other files,
            or cannot be written to.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], objectives: Sequence[Objective], space: Space, seed: int
    ) -> None:
        self.folder, self.space, self.seed = folder, space, seed
        self.signs = [objective.sign for objective in objectives]
        _check_folder(folder)
        (folder / WORKERS).mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / WORKERS / "study.lock")
        self.worker = uuid.uuid4().hex
        self._alive = FileLock(self._lock_of(self.worker))
        self._alive.acquire()
        try:
            with self._lock:
                self._open(identity, objectives)
        except BaseException:
            self.close()
            raise

    def _open(self, identity: Mapping[str, Any], objectives: Sequence[Objective]) -> None:
        path = self.folder / STUDY
        url = URL.create("sqlite", database=str(path)).render_as_string()
        try:
            storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": WAIT}})
            self._study = optuna.create_study(
                storage=storage,
                pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=RESOURCES[0], reduction_factor=2),
                study_name="kts",
                directions=[str(objective.direction) for objective in objectives],  # type: ignore[misc]
                load_if_exists=True,
            )
            held = self._study.user_attrs.get("identity")
        except (DatabaseError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read ({brief(error)}); give another --output.") from error
        if held is None:
            for start in self.space.starts():
                self._study.enqueue_trial(start)
            self._study.set_user_attr("identity", dict(identity))
            return
        for name in dict.fromkeys([*held, *identity]):
            if held.get(name) != identity.get(name):
                raise ValueError(
                    f"{self.folder} holds a study whose {name} is {_shown(held.get(name))}, not {_shown(identity.get(name))}; "
                    "give the same again, or another --output."
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other processes out of the study, for what only one of them does."""
        with self._lock:
            yield

    def keep(self, name: str, value: Any) -> None:
        with self._lock:
            self._study.set_user_attr(name, value)

    def get(self, name: str, default: Any) -> Any:
        with self._lock:
            return self._study.user_attrs.get(name, default)

    def next(self, num_trials: int) -> tuple[optuna.Trial, Setting] | None:
        """The next trial of this process; None once ``num_trials`` are done or under way."""
        with self._lock:
            self._bury()
            trials = self._study.get_trials(deepcopy=False)
            if sum(t.state in DONE or t.state == TrialState.RUNNING for t in trials) >= num_trials:
                return None
            trial = self._study.ask()
            trial.set_user_attr("worker", self.worker)
            before = sum(t.state == TrialState.FAIL and t.number < trial.number for t in trials)
            # a trial that died with its process is proposed again as it was
            self._study.sampler = optuna.samplers.TPESampler(seed=(self.seed * 1_000_003 + trial.number - before) % 2**32)
            setting = self.space.propose(trial)
            trial.set_user_attr("setting", vars(setting))
            return trial, setting

    def _bury(self) -> None:
        """Trials whose process died are no more, and their settings come next. Holding the lock, no live process is between
        asking for a trial and signing it."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("worker")
            if worker is None or (worker != self.worker and self._is_dead(worker)):
                self._study.tell(trial.number, state=TrialState.FAIL)
                if told := trial.params or trial.system_attrs.get("fixed_params"):
                    self._study.enqueue_trial(told)

    def _is_dead(self, worker: str) -> bool:
        path = self._lock_of(worker)
        try:
            with FileLock(path, timeout=0):
                pass
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        return True

    def _lock_of(self, worker: str) -> Path:
        return self.folder / WORKERS / f"{worker}.lock"

    def stops(self, trial: optuna.Trial, rung: int, values: list[float], halves: Halves, plain: list[float]) -> bool:
        """Note what a trial is worth at a rung, and say whether it ends there. ``plain``: values of plain sampling."""
        with self._lock:
            record = [*trial.user_attrs.get("halves", []), halves]
            trial.set_user_attr("halves", record)
            if len(values) == 1:
                trial.report(values[0], RESOURCES[rung])
                return trial.should_prune()
            records = [
                t.user_attrs.get("halves", []) for t in self._study.get_trials(deepcopy=False) if t.number != trial.number
            ]
            others = [[plain, plain], *(held[rung] for held in records if len(held) > rung)]
            return beaten_twice(halves, others, self.signs)

    def finish(self, trial: optuna.Trial, values: list[float] | None) -> None:
        """A trial is done: with its values on all samples, or stopped before."""
        with self._lock:
            if values is None:
                self._study.tell(trial, state=TrialState.PRUNED)
            else:
                self._study.tell(trial, values)

    @property
    def is_done(self) -> bool:
        """Whether no process, dead or alive, has a trial under way."""
        with self._lock:
            return not self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Those that are done."""
        with self._lock:
            return self._study.get_trials(deepcopy=False, states=DONE)

    def close(self) -> None:
        self._alive.release()
        self._lock_of(self.worker).unlink(missing_ok=True)


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder with --output.")
    held = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if held and not held & {STUDY, WORKERS}:
        raise FileExistsError(f"{folder} is not empty (it holds {min(held)}) and holds no study; give another --output.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
