"""What the KTS schedulers share: settings, the plan of a schedule, the cut at the touchdown, the energy record."""

import copy
import difflib
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import FrozenDict, register_to_config

from ..flow_coordinates import flow_times, noise_level
from ..kpe.levels import Levels
from ..kpe.recorder import KPERecorder, Run, Source
from ..kpe.stock_schedulers import Schedule, velocity
from ..kpe.trace import KPETrace, quadrature_weights
from ..shaping import SHAPING, Shaping
from .shaping_plan import CustomGain, ShapingPlan, check_gain

LANDED = 0.95  # a late start that moves less than this share of its way gives a warning
# arguments of loading that schedulers of diffusers ignore
LOADING = ("cache_dir", "device_map", "low_cpu_mem_usage", "torch_dtype", "use_safetensors", "variant")


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
    """An ``__init__`` with the arguments of the diffusers scheduler ``parent``, then the shaping settings, ``gain`` and
    ``more`` settings with these defaults, all of which the class reads from its ``config``.

    The signature is read from ``parent``, so that `from_config` passes on every argument it has in the diffusers installed.
    """
    signature = inspect.signature(parent.__init__)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    defaults = Shaping().to_dict() | {"gain": None} | more
    own = [inspect.Parameter(name, kind, default=default) for name, default in defaults.items()]
    signature = signature.replace(parameters=[*signature.parameters.values(), *own])

    @functools.wraps(parent.__init__)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        self.recorder = KPERecorder()
        parent.__init__(**{name: value for name, value in bound.arguments.items() if name not in defaults})

    setattr(init, "__signature__", signature)  # noqa: B010 (mypy)
    return register_to_config(init)


class Setting:
    """A setting of the configuration as an attribute of the scheduler, which can be read and set."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, scheduler: Any, owner: type | None = None) -> Any:
        return self if scheduler is None else scheduler.config[self.name]

    def __set__(self, scheduler: Any, value: Any) -> None:
        scheduler.register_to_config(**{self.name: value})


class KTSSchedulerMixin:
    """Goes before a diffusers scheduler; the result integrates ``dX/dt = eta(t) v(X, t)`` in its place.

    The configuration is the only truth about settings: `shaping` and `plan` are made from it, and made again once it or the
    schedule has changed. A subclass calls `begin_run` at the end of `set_timesteps` and `observe` in `step`, moves by
    `plan.gains`, and refuses what cannot be shaped in `check_configuration`.

    Attributes:
        recorder: collects the energy, see `kpe`.
        setting_names: settings that the record keeps.
        quadrature: rule that adds up the powers.
        marks: flow times at which something changes, besides those of `shaping`; levels that just miss one are put on it.
        levels_are_free: whether the network understands noise levels between those of the schedule.
        stride: evaluations per step in `sigmas`.
    """

    setting_names: tuple[str, ...] = SHAPING
    quadrature = "left"
    marks: tuple[float, ...] = ()
    levels_are_free = True
    stride = 1
    recorder: KPERecorder
    config: Any
    sigmas: torch.Tensor
    timesteps: torch.Tensor
    num_inference_steps: int
    _plan: ShapingPlan | None = None
    _schedule: Schedule
    _planned_for: Any = None  # the configuration of the plan

    alpha_0 = Setting()
    beta_0 = Setting()
    tau_split = Setting()
    k = Setting()
    early_schedule = Setting()
    late_schedule = Setting()
    touchdown = Setting()

    # --- settings

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but a setting that does not exist is refused: a mistyped ``alpha0`` would change nothing.

        Raises:
            TypeError: a setting is unknown, a scheduler was given instead of its configuration, or settings without ``**``.
        """
        has_settings(config)
        if isinstance(return_unused_kwargs, Mapping):
            raise TypeError("from_config got settings as its second argument; write **, as in from_config(config, **preset).")
        for name in LOADING:
            kwargs.pop(name, None)
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        for name in kwargs:
            if name not in known and not return_unused_kwargs:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"shaping is set by {', '.join(cls.setting_names)}."
                raise TypeError(f"{cls.__name__} has no setting {name!r}; {hint}")
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)  # type: ignore[misc]

    def register_to_config(self, **settings: Any) -> None:
        """Change settings, which act from the next step on, the touchdown from the next schedule on.

        Raises:
            ValueError: a setting is out of range, or cannot be combined with another; nothing is changed then.
        """
        if "gain" in settings:
            settings["gain"] = check_gain(settings["gain"])
        before = getattr(self, "_internal_dict", FrozenDict())
        Shaping.of({**before, **settings})
        defaults = settings.get("_use_default_values", before.get("_use_default_values", []))
        if before and "_use_default_values" not in settings:  # else `from_config` would go back to the default
            settings["_use_default_values"] = [name for name in defaults if name not in settings]
        super().register_to_config(**settings)  # type: ignore[misc]
        try:
            self.check_configuration()
        except ValueError:
            self._internal_dict = before
            raise

    def check_configuration(self) -> None:
        """Refuse what cannot be shaped, with the remedy."""

    def save_config(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; warns that a gain that is a function is not saved."""
        if callable(self.config.get("gain")):
            warnings.warn("a gain that is a function is not saved; give it again after loading.", UserWarning, stacklevel=3)
        super().save_config(*args, **kwargs)  # type: ignore[misc]

    def to_json_string(self) -> str:
        """The configuration; without a gain that is a function, which JSON cannot hold."""
        if not callable(self.config.get("gain")):
            return super().to_json_string()  # type: ignore[misc]
        twin = copy.copy(self)
        twin._internal_dict = FrozenDict({**self.config, "gain": None})
        return twin.to_json_string()

    @property
    def shaping(self) -> Shaping:
        """The shaping settings of the configuration."""
        return Shaping.of(self.config)

    @property
    def is_off(self) -> bool:
        """Whether the scheduler steps as its parent does."""
        return self.shaping.is_off and self.config.gain is None

    @property
    def gain(self) -> Any:
        """The gain ``eta(t)``: a function of the flow time, or one number per step, if set; otherwise that of `shaping`."""
        return self.shaping if self.config.gain is None else self.config.gain

    @gain.setter
    def gain(self, value: CustomGain) -> None:
        self.register_to_config(gain=value)

    # --- the plan of a schedule

    @property
    def plan(self) -> ShapingPlan:
        """What is planned for the current schedule under the current settings.

        Raises:
            RuntimeError: there is no schedule yet.
        """
        if self._plan is None:
            raise RuntimeError("there is no schedule yet; call set_timesteps(num_inference_steps) first.")
        if self._planned_for is not self.config or not self._schedule.is_of(self):
            self._make_plan()
        return self._plan

    @property
    def schedule(self) -> Schedule:
        """The noise levels that the plan was made for, on the host."""
        return self._schedule

    def _make_plan(self) -> None:
        self._schedule, self._planned_for = Schedule.of(self), self.config
        if not math.isfinite(sum(self._schedule.levels)):
            raise ValueError(
                f"the schedule has noise levels that are not finite ({self._schedule.levels}); check sigmas and mu."
            )
        inverted = self.config.get("invert_sigmas", False)
        levels, gain = self._schedule.levels, self.config.gain
        self._plan = ShapingPlan.of(levels, self.shaping, gain, inverted, self.marks, self.stride)
        end, source = self._plan.levels[-1], self._schedule.source
        if end != levels[-1] and source.tensor is self.sigmas:  # the touchdown goes all the way
            self.sigmas[-1] = end
            self.keep_schedule(Levels.of(self.sigmas, [*source.numbers[:-1], end]))

    def keep_schedule(self, source: Levels) -> None:
        """The levels of the plan now lie in another tensor."""
        self._schedule = replace(self._schedule, source=source)

    @property
    def gains(self) -> torch.Tensor:
        """(N,) float64 gain at each network evaluation of the current schedule."""
        return torch.tensor(self.plan.gains, dtype=torch.float64)

    def schedule_table(self) -> ScheduleTable:
        """What is planned for each network evaluation of the schedule: step, sigma, t, eta and phase (launch, landing,
        touchdown). A late start runs only the last of them; the gains used are in `kpe`."""
        plan, table = self.plan, ScheduleTable()
        for i, sigma in enumerate(self.sigmas[:-1].tolist()):
            phase = "launch" if plan.times[i] < self.config.tau_split else "landing"
            phase = "touchdown" if plan.touches_down(i) else phase
            table.append({"step": i, "sigma": sigma, "t": plan.times[i], "eta": plan.gains[i], "phase": phase})
        return table

    def net_displacement(self, begin_index: int | None = None) -> float:
        """How far the steps from ``begin_index`` on move, as a share of what they would without shaping.

        What is missing from 1 stays in the image as noise. Steps before ``begin_index`` (by default where the pipeline began,
        which is late for img2img) are not run: they leave mostly landing.
        """
        begin = begin_index if begin_index is not None else getattr(self, "begin_index", None) or 0
        weights = quadrature_weights(torch.tensor(self.plan.levels[begin:], dtype=torch.float64), self.quadrature)
        return float((self.gains[begin:] * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float64).tiny))

    # --- a run

    def begin_run(self) -> None:
        """Cut the schedule at the touchdown, plan it, and begin a new energy record; `set_timesteps` ends with this."""
        self.lay_out_evaluations()
        self._make_plan()
        settings = {name: self.config[name] for name in self.setting_names}
        if self.config.gain is not None:
            settings["gain"] = "a function of the flow time" if callable(self.config.gain) else self.config.gain
        inverted = self.config.get("invert_sigmas", False)
        named = {"scheduler": type(self).__name__, **settings}
        self.recorder.begin(Run(named, self.config.tau_split, inverted, self.quadrature))

    def lay_out_evaluations(self) -> None:
        """Cut the schedule at the touchdown."""
        t_d = self.config.touchdown
        if t_d is None:
            return
        inverted = self.config.get("invert_sigmas", False)
        t = flow_times(Schedule.of(self).levels, inverted, [t_d])
        after = np.flatnonzero(t[:-1] >= t_d)
        if not len(after):
            return
        cut = int(after[0])
        sigma, timestep = self.sigmas[cut], self.timesteps[cut]
        if t[cut] != t_d and cut > 0 and self.levels_are_free:  # the touchdown lies between two levels
            share = float((t_d - t[cut - 1]) / (t[cut] - t[cut - 1]))
            sigma = self.sigmas.new_tensor(noise_level(t_d, self.sigmas, inverted))
            timestep = torch.lerp(self.timesteps[cut - 1].float(), timestep.float(), share).to(self.timesteps.dtype)
        self.sigmas = torch.cat([self.sigmas[:cut], sigma[None], self.sigmas[-1:]])
        self.timesteps = torch.cat([self.timesteps[:cut], timestep[None]])
        self.num_inference_steps = len(self.timesteps)

    def check_begin(self, begin_index: int) -> None:
        """Refuse to begin where the touchdown has left no step: the pipeline would fail on empty latents, or return them."""
        t_d, steps = self.config.touchdown, len(self.timesteps)
        if t_d is not None and begin_index and begin_index >= steps:
            raise ValueError(
                f"the run would begin at step {begin_index}, but the touchdown at t = {t_d:g} cuts the schedule to {steps} "
                "steps and leaves none. Raise the pipeline's strength, or set touchdown=None."
            )

    def check_step(self, model_output: torch.Tensor, sample: torch.Tensor, index: int | None) -> None:
        """Refuse a step out of turn, or with tensors that do not belong together."""
        if self._plan is None:
            raise RuntimeError("step was called before set_timesteps; call set_timesteps(num_inference_steps) first.")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output is {tuple(model_output.shape)}, sample {tuple(sample.shape)}; they must have the same shape."
            )
        if index is not None and index + 1 >= self.sigmas.shape[0]:
            raise RuntimeError(
                f"step was called more often than the {self.sigmas.shape[0] - 1} steps planned; call set_timesteps."
            )

    def velocity(self, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        """The velocity of the flow at evaluation ``index``, shaped like ``sample``."""
        return velocity(self, self._schedule, index, model_output, sample)

    def source(self, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> Source:
        """Of that velocity, for models that predict something else."""
        return Source(model_output, lambda output: self.velocity(index, output, sample))

    def observe(self, index: int, v: torch.Tensor, gain: Any, **known: Any) -> None:
        """Record evaluation ``index``; ``known`` as `KPERecorder.observe` takes it, or ``token_dt``."""
        recorder, levels = self.recorder, self._plan.levels  # type: ignore[union-attr]
        if index > 0 and not recorder.has_begun and not self.is_off:
            self._warn_of_noise(index)
        record = recorder.observe_tokens if "token_dt" in known else recorder.observe
        record(v, levels[index], levels[index + 1], gain, **known)
        if index + 2 == len(levels):
            recorder.end_run()

    def _warn_of_noise(self, begin_index: int) -> None:
        moved = self.net_displacement(begin_index)
        if moved < LANDED:
            warnings.warn(
                f"the run begins at step {begin_index} of {len(self.gains)} and moves {moved:.1%} of its way: the rest stays "
                "in the image as noise. Lower beta_0, or set touchdown, which leaves none.",
                RuntimeWarning,
                stacklevel=4,
            )

    @property
    def kpe(self) -> KPETrace | None:
        """The energy record of the last run (since `set_timesteps`), so far; None before its first step."""
        return self.recorder.trace()

    @property
    def record_turn(self) -> bool:
        """Whether runs also record the turn of the velocity, which `KPETrace.settling` needs. It costs one kept copy of the
        velocity. Set it before the run; it is off by default, and not saved with the configuration."""
        return self.recorder.record_turn

    @record_turn.setter
    def record_turn(self, value: bool) -> None:
        self.recorder.record_turn = bool(value)

    @property
    def record_displacement(self) -> bool:
        """Whether runs also record the net displacement, which `KPETrace.excess` needs; monitored pipelines always do. It
        costs a pass over the velocity in each step, and one latent in fp32, kept until the next run. Set it before the run."""
        return self.recorder.record_displacement

    @record_displacement.setter
    def record_displacement(self, value: bool) -> None:
        self.recorder.record_displacement = bool(value)
