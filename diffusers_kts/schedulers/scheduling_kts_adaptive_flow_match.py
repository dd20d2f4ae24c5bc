"""KTSAdaptiveFlowMatchScheduler: Euler steps with a gain for every sample, by what it has shown so far."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..euler_step import euler_step
from ..gain import is_number
from ..kpe.recorder import Speed
from ..shaping import SHAPING
from .adaptive_gain import budget_factor, decided
from .base import Setting, shaped_init
from .scheduling_kts_flow_match import KTSFlowMatchScheduler

ADAPTIVE = {"energy_budget": None, "max_gain": 1.0, "turning": None, "turning_from": 0.5, "turning_action": "touchdown"}
ACTIONS = ("touchdown", "landing")
TINY = torch.finfo(torch.float32).tiny


class KTSAdaptiveFlowMatchScheduler(KTSFlowMatchScheduler):
    """`KTSFlowMatchScheduler` with one of two rules that give each sample its own gain. Order 1.

    A rule goes by the velocities of the sample up to the present one, so that a sample does not depend on its neighbors in
    the batch, and nothing waits for the device. `kpe` holds the gains used, (B, N); `gains`, `schedule_table` and
    `net_displacement` are of the gains planned, from which a rule departs. The network is called at every step, also for
    samples at rest. Without a rule, steps are those of `KTSFlowMatchScheduler` to the bit.

    * **Energy budget**, see `diffusers_kts.schedulers.adaptive_gain.budget_factor`. As a cap (``max_gain = 1``) it slows down
      the samples whose path energy would exceed it and leaves the others as they are; as a target (``max_gain > 1``) it also
      speeds the others up. The total never exceeds it, at a scheduled touchdown neither. A sample that was slowed down does
      not get all the way, and the rest stays in the image as noise, as with the landing. Fields that start fast are held
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
    setting_names = (*SHAPING, *ADAPTIVE)
    _copied: tuple[Any, Any] = (None, None)
    energy_budget = Setting()
    max_gain = Setting()
    turning = Setting()
    turning_from = Setting()
    turning_action = Setting()
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler, **ADAPTIVE)  # type: ignore[assignment]

    def check_configuration(self) -> None:
        """Refuse rules that are out of range or contradict each other."""
        super().check_configuration()
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

    @property
    def adapts(self) -> bool:
        """Whether a rule is set."""
        return self.config.energy_budget is not None or self.config.turning is not None

    @property
    def is_off(self) -> bool:
        return super().is_off and not self.adapts

    @property
    def marks(self) -> tuple[float, ...]:  # type: ignore[override]
        return (self.config.turning_from,)

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
        if not self.adapts:
            churn = s_churn, s_tmin, s_tmax, s_noise
            return super().step(model_output, timestep, sample, *churn, generator, per_token_timesteps, return_dict)
        if per_token_timesteps is not None:
            raise ValueError(
                "per_token_timesteps are not supported where every sample has its gain; use KTSFlowMatchScheduler, or leave "
                "energy_budget and turning out."
            )
        index = self.check_call(model_output, timestep, sample)
        self.recorder.record_turn |= self.config.turning is not None
        v = self.velocity(index, model_output, sample)
        speed = self.recorder.measure(v, source=self.source(index, model_output, sample))
        gain = self._adapted_gain(index, speed, v[0].numel())
        prev_sample = self._moved_by(index, v, sample, gain).to(model_output.dtype)
        self._step_index += 1
        self.observe(index, v, gain, speed=speed)
        if not return_dict:
            return (prev_sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample)

    def _adapted_gain(self, index: int, speed: Speed, d: int) -> torch.Tensor:
        """(B,) gain of evaluation ``index``, by what the run has recorded and the present ``speed``."""
        power, gains, turn = self.recorder.so_far(speed)
        c, plan, (etas, weights, times) = self.config, self.plan, self._planned(power)
        first, made = index + 1 - power.shape[1], slice(index + 1 - power.shape[1], index + 1)
        if c.energy_budget is not None:
            factor = budget_factor(power, gains, etas[first:], weights[first:], c.energy_budget * d, c.max_gain)
            return etas[index] * factor
        assert turn is not None
        before, by_now = decided(power, turn, times[made], c.turning, c.turning_from)
        if c.turning_action == "landing":
            return torch.where(by_now | (times[index] < c.tau_split), etas[index], 1.0)
        rest_of_the_way = abs(plan.levels[index] - float(c.invert_sigmas))
        arriving = rest_of_the_way / max(abs(plan.interval(index)), TINY)
        return torch.where(before, 0.0, torch.where(by_now, arriving, etas[index]))

    def _planned(self, like: torch.Tensor) -> torch.Tensor:
        """(3, N) gains, intervals and flow times planned, where the powers lie; copied there once, since that waits."""
        plan = self.plan
        if self._copied[0] is not plan or self._copied[1].device != like.device:
            intervals = [abs(plan.interval(i)) for i in range(len(plan.gains))]
            self._copied = plan, like.new_tensor([plan.gains, intervals, plan.times[:-1]])
        return self._copied[1]

    def _moved_by(self, index: int, v: torch.Tensor, sample: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        """The sample after the step, in at least fp32."""
        scales, displacement = self.schedule.scales, (gain * self.plan.interval(index)).reshape(-1, *(1,) * (v.ndim - 1))
        if scales is None:
            return euler_step(sample, v, displacement)
        return euler_step(sample / sum(scales[index]), v, displacement) / (1 - self.plan.levels[index + 1])
