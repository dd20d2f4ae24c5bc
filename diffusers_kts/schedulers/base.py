"""What the KTS schedulers share: settings, gains per step, the cut at the touchdown, the energy record."""

import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import register_to_config

from ..gain import Gain, flow_times, is_number, noise_level
from ..kpe.trace import KPERecorder, KPETrace, quadrature_weights
from .host_copy import HostCopy, counted
from .standing import StandingSchedule

LANDED = 0.95  # a late start that moves less than this share of its way is told about
SHAPING = ("alpha_0", "beta_0", "tau_split", "k", "early_schedule", "late_schedule", "touchdown")


class ScheduleTable(list):
    """Rows (dictionaries) of a KTS scheduler's `schedule_table`; prints as a table, and `pandas.DataFrame` takes it."""

    def __getitem__(self, index: Any) -> Any:
        rows = super().__getitem__(index)
        return ScheduleTable(rows) if isinstance(index, slice) else rows

    def __repr__(self) -> str:
        lines = [f"{'step':>4} {'sigma':>9} {'t':>8} {'eta':>9}  phase"]
        lines += [f"{r['step']:>4} {r['sigma']:>9.5f} {r['t']:>8.5f} {r['eta']:>9.6f}  {r['phase']}" for r in self]
        return "\n".join(lines)


def has_settings(config: Any) -> bool:
    """Whether this is a mapping of settings; it may also be a path, or None.

    Raises:
        TypeError: a scheduler was given instead of its configuration.
    """
    if isinstance(config, SchedulerMixin):
        raise TypeError(f"from_config got a {type(config).__name__}; give its configuration, pipe.scheduler.config.")
    return hasattr(config, "items")


def shaped_init(parent: Any, **more: Any) -> Callable[..., None]:
    """An ``__init__`` with the arguments of the diffusers scheduler ``parent`` and the shaping settings after them, then
    ``more`` settings with these defaults, which the class reads from its ``config``.

    The signature is read from ``parent``, so that `from_config` passes on every argument it has in the diffusers installed.
    """
    signature = inspect.signature(parent.__init__)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    defaults = {name: getattr(Gain, name, None) for name in SHAPING} | more
    shaping = [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
    signature = signature.replace(parameters=[*signature.parameters.values(), *shaping])

    @functools.wraps(parent.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name not in more}
        self._set_shaping(**{name: arguments.pop(name) for name in SHAPING})
        parent.__init__(**arguments)
        self._check_configuration()

    setattr(init, "__signature__", signature)  # noqa: B010 (mypy)
    return register_to_config(init)


class KTSSchedulerMixin:
    """Goes before a diffusers scheduler; the result integrates ``dX/dt = eta(t) v(X, t)`` in its place.

    Subclasses call `_set_shaping` in ``__init__`` (see `shaped_init`), `_begin_run` at the end of `set_timesteps`, and
    `_observe` in `step`.
    """

    _shaping_names: tuple[str, ...] = SHAPING  # settings that the record keeps
    _quadrature = "left"
    _levels_are_free = True  # whether the network understands noise levels between those of the schedule
    config: Any
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    num_inference_steps: int
    _step_index: Any
    _begin_index: Any
    _levels: Any = None  # `HostCopy` of `sigmas`, from the first `set_timesteps` on
    _standing: StandingSchedule | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but a setting that does not exist is refused: a mistyped ``alpha0`` would change nothing.

        Raises:
            TypeError: unknown setting, or a scheduler instead of its configuration.
        """
        has_settings(config)
        kwargs.pop("variant", None)  # modular pipelines name it for every component, and a scheduler has none
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        for name in kwargs:
            if name not in known and not return_unused_kwargs:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"shaping is set by {', '.join(cls._shaping_names)}."
                raise TypeError(f"{cls.__name__} has no setting {name!r}; {hint}")
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)  # type: ignore[misc]

    @property
    def gain(self) -> Gain:
        """The gain ``eta(t)`` of the settings."""
        return self._gain

    @property
    def gains(self) -> torch.Tensor:
        """(N,) float64 gain at each network evaluation of the current schedule."""
        return torch.tensor(self._current_gains(), dtype=torch.float64)

    @property
    def kpe(self) -> KPETrace | None:
        """The energy record of the last run (since `set_timesteps`), so far; None before its first step."""
        return self._kpe_recorder.trace()

    @property
    def record_turn(self) -> bool:
        """Whether runs also record the turn of the velocity, which `KPETrace.settling` needs, at the cost of one kept copy of
        the velocity; set it before the run. Off by default, and not saved with the configuration."""
        return self._kpe_recorder.record_turn

    @record_turn.setter
    def record_turn(self, value: bool) -> None:
        self._kpe_recorder.record_turn = bool(value)

    def schedule_table(self) -> ScheduleTable:
        """What is planned for each network evaluation of the schedule: step, sigma, t, eta and phase (launch, landing,
        touchdown). A late start runs the last of them; the gains used are in `kpe`."""
        gains, table, t = self._current_gains(), ScheduleTable(), self._flow_times()[:-1].tolist()
        for i, sigma in enumerate(self.sigmas[:-1].tolist()):
            phase = "launch" if t[i] < self._gain.tau_split else "landing"
            if self._touches_down(t, i):
                phase = "touchdown"
            table.append({"step": i, "sigma": sigma, "t": t[i], "eta": gains[i], "phase": phase})
        return table

    def net_displacement(self, begin_index: int | None = None) -> float:
        """How far the steps from ``begin_index`` on move, as a share of what they would without shaping.

        What lacks from 1 stays in the image as noise. Steps before ``begin_index`` (by default where the pipeline began, which
        is late for img2img) are not run: they leave mostly landing.
        """
        begin = begin_index if begin_index is not None else getattr(self, "begin_index", None) or 0
        gains = self.gains[begin:]
        weights = quadrature_weights(self._flow_sigmas()[begin:].detach().cpu(), self._quadrature)
        return float((gains * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float64).tiny))

    def _set_shaping(self, touchdown: float | None, **settings: Any) -> None:
        self._gain = Gain(**settings)
        if touchdown is not None and not (is_number(touchdown) and 0 < touchdown < 1):
            raise ValueError(f"touchdown is {touchdown!r}; give a flow time strictly between 0 and 1, or None for none.")
        self._settings = {"scheduler": type(self).__name__, **settings, "touchdown": touchdown}
        self._gains: list[float] = []
        self._gains_of: tuple = (None, None)  # levels and configuration they were computed of
        self._kpe_recorder = KPERecorder()

    def _check_begin(self, begin_index: int) -> None:
        """Refuse to begin where the touchdown has left no step: the pipeline would fail on empty latents, or return them."""
        t_d, steps = self.config.touchdown, len(self.timesteps)
        if t_d is not None and begin_index and begin_index >= steps:
            raise ValueError(
                f"the run would begin at step {begin_index}, but the touchdown at t = {t_d:g} cuts the schedule to {steps} "
                "steps and leaves none. Raise the pipeline's strength, or set touchdown=None."
            )

    def _check_configuration(self) -> None:
        """Refuse what cannot be shaped, with the remedy."""

    @property
    def _is_off(self) -> bool:
        return self._gain.is_identity and self.config.touchdown is None

    @property
    def _marks(self) -> tuple[float, ...]:
        return tuple(mark for mark in (self._gain.tau_split, self.config.touchdown) if mark is not None)

    def _flow_sigmas(self) -> torch.Tensor:
        """(N + 1,) levels of the schedule as the energies count them, on the device of `sigmas`."""
        return self.sigmas

    def _flow_times(self) -> np.ndarray:
        levels = self._flow_sigmas().detach().cpu().double().numpy()
        return flow_times(levels, self.config.get("invert_sigmas", False), self._marks)

    def _begin_run(self) -> None:
        given = self.sigmas
        self._read_levels()
        self._lay_out_evaluations()
        self.sigmas = counted(self.sigmas)
        if self.sigmas is not given:
            self._read_levels()
        self._begin_record()

    def _begin_again(self, asked: tuple) -> bool:
        """Begin another run on the schedule that stands, if that is the one asked for."""
        if self._standing is None or not self._standing.is_for(self, asked):
            return False
        self._begin_record()
        return True

    def _begin_record(self) -> None:
        inverted = self.config.get("invert_sigmas", False)
        self._kpe_recorder.begin(self._settings, self._gain.tau_split, inverted, self._quadrature)

    def _read_levels(self) -> HostCopy:
        levels = HostCopy.of(self.sigmas)
        if not math.isfinite(sum(levels.numbers)):
            raise ValueError(f"the schedule has noise levels that are not finite ({levels.numbers}); check sigmas and mu.")
        self._levels = levels
        return levels

    def _touches_down(self, t: list[float], i: int) -> bool:
        return self.config.touchdown is not None and t[i] >= self.config.touchdown

    def _lay_out_evaluations(self) -> None:
        """Cut the schedule at the touchdown."""
        t_d = self.config.touchdown
        if t_d is None:
            return
        t = self._flow_times()
        after = np.flatnonzero(t[:-1] >= t_d)
        if not len(after):
            return
        cut = int(after[0])
        sigma, timestep = self.sigmas[cut], self.timesteps[cut]
        if t[cut] != t_d and cut > 0 and self._levels_are_free:
            sigma, timestep = self._level_at_touchdown(t, cut)
        self.sigmas = torch.cat([self.sigmas[:cut], sigma[None], self.sigmas[-1:]])
        self.timesteps = torch.cat([self.timesteps[:cut], timestep[None]])
        self.num_inference_steps = len(self.timesteps)

    def _level_at_touchdown(self, t: np.ndarray, cut: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sigma and timestep of the touchdown, which lies between the levels ``cut - 1`` and ``cut``."""
        t_d = self.config.touchdown
        share = float((t_d - t[cut - 1]) / (t[cut] - t[cut - 1]))
        sigma = noise_level(t_d, self.sigmas, self.config.get("invert_sigmas", False))
        timestep = torch.lerp(self.timesteps[cut - 1].float(), self.timesteps[cut].float(), share)
        return sigma, timestep.to(self.timesteps.dtype)

    def _compute_gains(self) -> list[float]:
        t = self._flow_times()[:-1]
        etas: list[float] = self._gain(t).tolist()
        if self.config.touchdown is None:
            return etas
        times = t.tolist()
        return [1.0 if self._touches_down(times, i) else eta for i, eta in enumerate(etas)]

    def _current_gains(self) -> list[float]:
        """The gains of the current schedule, computed when they are first asked for, and only if a level of it, or the
        configuration, differs from the last one's: calls of a pipeline mostly repeat a schedule."""
        levels = self._levels
        if levels is None:
            raise RuntimeError("there is no schedule yet; call set_timesteps(num_inference_steps) first.")
        if not levels.is_of(self.sigmas):  # a pipeline put a schedule of its own in place, or wrote into ours
            levels = self._read_levels()
        known, config = self._gains_of
        if levels.numbers is not known or self.config is not config:
            if self.config is not config:  # by register_to_config
                self._check_configuration()
                known = None
            if levels.numbers != known:
                self._gains = self._compute_gains()
            self._gains_of = levels.numbers, self.config
        return self._gains

    def _check_step(self, model_output: torch.Tensor, sample: torch.Tensor, index: int | None) -> None:
        if self._levels is None:
            raise RuntimeError("step was called before set_timesteps; call set_timesteps(num_inference_steps) first.")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output is {tuple(model_output.shape)}, sample {tuple(sample.shape)}; they must have the same shape."
            )
        if index is not None and index + 1 >= self.sigmas.shape[0]:
            raise RuntimeError(
                f"step was called more often than the {self.sigmas.shape[0] - 1} steps planned; call set_timesteps."
            )

    def _observe(
        self,
        index: int,
        v: torch.Tensor,
        gain: Any,
        power: torch.Tensor | None = None,
        token_dt: torch.Tensor | None = None,
    ) -> None:
        recorder = self._kpe_recorder
        if index > 0 and not recorder.has_begun and not self._is_off:
            self._warn_of_noise(index)
        recorder.observe(index, self._flow_sigmas(), v, gain, power, token_dt)

    def _warn_of_noise(self, begin_index: int) -> None:
        moved = self.net_displacement(begin_index)
        if moved < LANDED:
            warnings.warn(
                f"the run begins at step {begin_index} of {len(self.gains)} and moves {moved:.1%} of its way: the rest stays "
                "in the image as noise. Lower beta_0, or set touchdown, which leaves none.",
                RuntimeWarning,
                stacklevel=4,
            )
