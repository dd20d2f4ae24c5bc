"""Teachers: the same trajectories in many steps, kept on disk."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..files import write_whole
from ..kpe.sums import distance
from ..presets import PRESETS
from ..schedulers.adams_bashforth import adams_bashforth
from ..schedulers.scheduling_kts_fitted_flow_match import KTSFittedFlowMatchScheduler
from .runs import Runs

S = TypeVar("S", bound=KTSFittedFlowMatchScheduler)


def solver(own: Any, times: Sequence[float], weights: Any = 2, kind: type[S] = KTSFittedFlowMatchScheduler) -> S:  # type: ignore[assignment]
    """A scheduler in the place of ``own`` with this grid and these weights; a number stands for the order of Adams-Bashforth
    weights."""
    if isinstance(weights, int):
        weights = [adams_bashforth(times, i, weights) for i in range(len(times) - 1)]
    fit = {"flow_times": list(times), "weights": weights}
    return kind.from_config(own.config, **PRESETS["off"], gain=None, fits=[fit])


class Teachers:
    """Trajectories of many small Adams-Bashforth steps, a file for each batch.

    Args:
        folder (`Path`): of the files.
        fitted (`Sequence[range]`): batches of the trajectories that are fitted to.
        steps (`int`): K, network calls of each.
    """

    def __init__(self, folder: Path, fitted: Sequence[range], steps: int) -> None:
        self.folder, self.fitted, self.steps = folder, list(fitted), steps
        self.times = [round(k / steps, 12) for k in range(steps + 1)]

    def path(self, batch: range) -> Path:
        return self.folder / f"{batch.start:06d}-{batch.stop:06d}.safetensors"

    def is_there(self, batch: range) -> bool:
        try:
            with safe_open(self.path(batch), "pt") as file:
                return file.get_slice("states").get_shape()[:2] == [self.steps + 1, len(batch)]
        except (OSError, SafetensorError):
            return False

    def draw(self, runs: Runs, batch: range, decode: bool = False) -> None:
        """Make the trajectories of a batch and write them: ``states`` (K + 1, B, ...) fp32, ``turns`` (B, K - 1), the RMS
        change of the velocity from call to call, and with ``decode`` the ``pixels`` at the end.

        Raises:
            ValueError: one is not finite.
        """
        states, turns, last = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        about: dict[str, Any] = {}

        def watch(scheduler: Any, sample: torch.Tensor, v: torch.Tensor, after: torch.Tensor) -> None:
            if not states:
                states.append(sample.detach().float().cpu())
                about["mu"] = scheduler.mu
            states.append(after.detach().float().cpu())
            if last:
                turns.append(distance(v, last.pop()).cpu() / v[0].numel() ** 0.5)
            last.append(v.clone())

        _, drawn = runs.run(batch, solver(runs.sampler.own_scheduler, self.times), self.steps, watch, decode)
        tensors = {"states": torch.stack(states), "turns": torch.stack(turns, 1)}
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("a trajectory of the teacher is not finite; try --dtype float32, or another --seed.")
        if decode:
            tensors["pixels"] = torch.from_numpy(drawn.pixels).contiguous()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.path(batch), save(tensors, metadata={"about": json.dumps(about)}))

    @property
    def mu(self) -> float | None:
        """What the pipeline passed for its dynamic shift."""
        with safe_open(self.path(self.fitted[0]), "pt") as file:
            return json.loads(file.metadata()["about"])["mu"]

    def acceleration(self) -> list[float]:
        """(K,) RMS change of the velocity per flow time, of the trajectories that are fitted to; the last interval, at whose
        end no velocity is known, has that of the one before."""
        turns = torch.cat([self._tensor(batch, "turns").double() for batch in self.fitted])
        a = turns.square().mean(0).sqrt().numpy() * self.steps
        return np.append(a, a[-1]).tolist()

    def states(self, batch: range, t: float) -> torch.Tensor:
        """(B, ...) fp32 at a flow time, between two states on the straight line through them."""
        k = min(int(t * self.steps), self.steps - 1)
        with safe_open(self.path(batch), "pt") as file:
            before, after = file.get_slice("states")[k : k + 2]
        return torch.lerp(before, after, t * self.steps - k)

    def pixels(self, batch: range) -> torch.Tensor:
        """(B, ..., H, W, C) in [0, 1] at the end."""
        return self._tensor(batch, "pixels")

    def _tensor(self, batch: range, name: str) -> torch.Tensor:
        with safe_open(self.path(batch), "pt") as file:
            return file.get_tensor(name)
