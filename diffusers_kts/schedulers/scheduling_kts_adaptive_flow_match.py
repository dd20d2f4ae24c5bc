"""KTSAdaptiveFlowMatchScheduler: Euler steps with a gain for every sample, by what it has shown so far."""

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..flow_coordinates import wide_dtype
from ..gain import is_number
from .adaptive_gain import budget_factor, decided
from .base import SHAPING, shaped_init
from .euler_step import euler_step
from .scheduling_kts_flow_match import KTSFlowMatchScheduler

ADAPTIVE = {"energy_budget": None, "max_gain": 1.0, "turning": None, "turning_from": 0.5, "turning_action": "touchdown"}
ACTIONS = ("touchdown", "landing")
TINY = torch.finfo(torch.float32).tiny


class KTSAdaptiveFlowMatchScheduler(KTSFlowMatchScheduler):
    """`KTSFlowMatchScheduler` with one of two rules that give each sample a gain of its own. Order 1.

    A rule goes by the velocities of the sample up to the present one, so that a sample does not depend on its neighbors in
    the batch, and nothing waits for the device. `kpe` holds the gains used, (B, N); `gains`, `schedule_table` and
    `net_displacement` are of the gains planned, from which a rule departs. The network is called at every step, also for
    samples at rest. Without a rule, steps are those of `KTSFlowMatchScheduler` to the bit.

    * **Energy budget**, see `diffusers_kts.schedulers.adaptive_gain.budget_factor`. As a cap (``max_gain = 1``) it slows down
      the samples whose path energy would exceed it and leaves the others as they are; as a target (``max_gain > 1``) it also
      speeds the others up. The total never exceeds it, at a scheduled touchdown neither. A sample that was slowed down does
      not get all the way, and what lacks stays in the image as noise, as with the landing. Fields that start fast are held
      back there.
    * **Turning**, see `KPETrace.turning`. Where the data estimate of a sample has moved far early, as that of memorized ones
      has, the sample either touches down at once, one step to its data estimate ``x + (1 - t) v`` and then rest, or takes
      the planned landing while the others keep a gain of 1 there. Choose the threshold as a quantile of `KPETrace.turning`
      over samples drawn with ``record_turn = True``. On the clock of the schedule that one step to the data estimate is
      fast: its path energy is ``(1 - t) / w_i`` times that of a scheduled touchdown.

        pipe.scheduler = KTSAdaptiveFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["off"], energy_budget=0.8)

    Source: ours. In ``benchmarks/science/adaptive.py`` a budget does worse against memorization than a touchdown of all
    samples at one flow time, and the touchdown of those that turn does better on one of two models only: neither is a preset.

    Args:
        energy_budget (`float`, *optional*): path energy per latent dimension of a run, above 0. A run that starts late
            (img2img) has all of it for the rest of the path.
        max_gain (`float`, defaults to 1.0): by how much a sample may exceed its planned gain towards its budget, at least 1.
        turning (`float`, *optional*): threshold on `KPETrace.turning`, above 0. It depends somewhat on the number of steps.
        turning_from (`float`, defaults to 0.5): flow time, in [0, 1), before which no sample counts as decided.
        turning_action (`str`, defaults to "touchdown"): "touchdown", or "landing", for which ``beta_0`` must not be 0.

    All other arguments are those of `KTSFlowMatchScheduler`.

    Raises:
        ValueError: a setting is out of range, both rules are set, or a rule is combined with ``stochastic_sampling``.
    """

    __module__ = "diffusers_kts"
    _shaping_names = (*SHAPING, *ADAPTIVE)
    _plan: torch.Tensor  # (2, N) planned gain and flow time of every step
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler, **ADAPTIVE)  # type: ignore[assignment]

    def _check_configuration(self) -> None:
        super()._check_configuration()
        c = self.config
        if c.energy_budget is not None and not (is_number(c.energy_budget) and c.energy_budget > 0):
            raise ValueError(f"energy_budget is {c.energy_budget!r}; give an energy per dimension above 0, or None.")
        if not is_number(c.max_gain) or c.max_gain < 1:
            raise ValueError(f"max_gain is {c.max_gain!r}; give 1 (the budget is a cap) or more (it is a target).")
        if c.turning is not None and not (is_number(c.turning) and c.turning > 0):
            raise ValueError(f"turning is {c.turning!r}; give a threshold above 0, or None.")
        if not is_number(c.turning_from) or not 0 <= c.turning_from < 1:
            raise ValueError(f"turning_from is {c.turning_from!r}; give a flow time of at least 0 and below 1.")
        if c.turning_action not in ACTIONS:
            raise ValueError(f"turning_action is {c.turning_action!r}; choose one of {', '.join(ACTIONS)}.")
        if c.energy_budget is not None and c.turning is not None:
            raise ValueError("energy_budget and turning are both set, but a touchdown keeps to no budget; leave one out.")
        if c.turning is not None and c.turning_action == "landing" and c.beta_0 == 0:
            raise ValueError('turning_action is "landing" and beta_0 is 0, which changes nothing; set beta_0.')
        self._settings |= {name: c[name] for name in ADAPTIVE}

    @property
    def _adapts(self) -> bool:
        return self.config.energy_budget is not None or self.config.turning is not None

    @property
    def _is_off(self) -> bool:
        return super()._is_off and not self._adapts

    @property
    def _marks(self) -> tuple[float, ...]:
        return (*super()._marks, self.config.turning_from)

    def step(
        self,
        model_output: torch.FloatTensor,
        timestep: float | torch.FloatTensor,
        sample: torch.FloatTensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: torch.Generator | None = None,
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> FlowMatchEulerDiscreteSchedulerOutput | tuple:
        """One Euler step with a gain for every sample; arguments and result as in `KTSFlowMatchScheduler.step`."""
        if not self._adapts:
            churn = s_churn, s_tmin, s_tmax, s_noise
            return super().step(model_output, timestep, sample, *churn, generator, per_token_timesteps, return_dict)
        if per_token_timesteps is not None:
            raise ValueError(
                "per_token_timesteps are not supported where gains go by the sample; use KTSFlowMatchScheduler, or leave "
                "energy_budget and turning out."
            )
        index = self._check_call(model_output, timestep, sample)
        self._current_gains()  # follows a schedule that the pipeline replaced
        self._aim_touchdown(index)
        v = self._flow_velocity(index, model_output, sample)
        self._kpe_recorder.record_turn |= self.config.turning is not None
        self._observe(index, v, 1.0)
        gain = self._adapted_gain(index)
        self._kpe_recorder.correct_gain(gain)
        prev_sample = self._moved(index, sample, v, gain).to(model_output.dtype)
        self._step_index += 1
        if not return_dict:
            return (prev_sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample)

    def _compute_gains(self) -> list[float]:
        gains = super()._compute_gains()
        self._plan = torch.from_numpy(np.stack([gains, self._flow_times()[:-1]]))
        return gains

    def _adapted_gain(self, index: int) -> torch.Tensor:
        """(B,) gain of evaluation ``index``, the last that was observed."""
        power, gains, turn = self._kpe_recorder.so_far()
        if self._plan.device != power.device:  # once a run, since it waits for the device; some have no float64
            self._plan = self._plan.to(power)
        first, levels = index + 1 - power.shape[1], self._flow_sigmas().to(power)
        etas, t = self._plan[:, first:].to(power)
        eta, weights = etas[index - first], levels[first:].diff().abs()
        if self.config.energy_budget is not None:
            budget = self.config.energy_budget * self._kpe_recorder.runs[-1].d
            return eta * budget_factor(power, gains, etas, weights, budget, self.config.max_gain)
        assert turn is not None
        times = t[: power.shape[1]]
        before, by_now = decided(power, turn, times, self.config.turning, self.config.turning_from)
        if self.config.turning_action == "landing":
            return torch.where(by_now | (times[-1] < self.config.tau_split), eta, 1.0)
        rest_of_the_way = (levels[index] - float(self.config.invert_sigmas)).abs()
        arriving = rest_of_the_way / weights[index - first].clamp(min=TINY)
        return torch.where(before, 0.0, torch.where(by_now, arriving, eta))

    def _moved(self, index: int, sample: torch.Tensor, v: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        """The sample after the step, in at least fp32."""
        dtype = wide_dtype(sample, v)
        x, levels = sample.to(dtype), self._flow_sigmas().to(dtype)
        if self._exploding:
            x = x / self._scale(index)
        displacement = gain.to(dtype) * (levels[index + 1] - levels[index])
        x = euler_step(x, v, displacement.reshape(-1, *(1,) * (v.ndim - 1)))
        return x * self._scale(index + 1) if self._exploding else x
