"""KTSFlowMatchScheduler: kinetic trajectory shaping as an Euler scheduler for flow-matching pipelines."""

from numbers import Integral
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..euler_step import euler_step
from ..flow_coordinates import flow_sigma, shaped_step, snap
from ..kpe.levels import Levels
from ..kpe.sums import token_intervals
from .base import KTSSchedulerMixin, has_settings, shaped_init
from .fused import fused_step
from .shaping_plan import ShapingPlan


class KTSFlowMatchScheduler(KTSSchedulerMixin, FlowMatchEulerDiscreteScheduler):
    """Euler steps along ``dx/dt = eta(t) v(x, t)``: ``x_{i+1} = x_i + eta(t_i) (sigma_{i+1} - sigma_i) v_i``. Order 1.

    The network is given the honest time and `sigmas` stay honest noise levels; only the displacement is scaled. With
    ``alpha_0 = beta_0 = 0`` and no touchdown, steps are bit-equal to `FlowMatchEulerDiscreteScheduler` in fp32, fp16 and
    bf16. Every step also records the kinetic path energy of each sample, see `kpe`.

    A schedule whose sigmas exceed 1 (Cosmos, 80 to 0.002) counts ``sigma / alpha``; steps, gains and energies are then those
    of the flow coordinates ``x / (1 + sigma)`` at ``t = 1 / (1 + sigma)``, see `diffusers_kts.flow_coordinates`. A run that
    starts late (img2img) takes the gains of its own flow times, hence mostly landing.

    Examples:
        >>> scheduler = KTSFlowMatchScheduler(alpha_0=0.05, beta_0=0.0)
        >>> scheduler.set_timesteps(sigmas=[1.0, 0.7, 0.4])
        >>> print(scheduler.schedule_table())
        step     sigma        t       eta  phase
           0   1.00000  0.00000  1.050000  launch
           1   0.70000  0.30000  1.025000  launch
           2   0.40000  0.60000  1.000000  landing

    Source: arXiv 2602.07928; ``touchdown`` and ``gain`` are not from the paper.

    Settings can be changed at any time, ``scheduler.alpha_0 = 0.02`` or ``scheduler.register_to_config(alpha_0=0.02)``: gains
    act from the next step on, a touchdown from the next schedule on.

    Args:
        alpha_0 (`float`, defaults to 0.01): strength of the launch, see `diffusers_kts.gain.Gain`.
        beta_0 (`float`, defaults to 0.01): strength of the landing; at most 0.0524 with the exponential one and k = 3.
        tau_split (`float`, defaults to 0.6): flow time, in (0, 1), where the landing begins.
        k (`float`, defaults to 3.0): rate of the exponential shapes.
        early_schedule (`str`, defaults to "linear"): "linear", "constant" or "exponential".
        late_schedule (`str`, defaults to "exponential"): "linear", "constant" or "exponential".
        touchdown (`float`, *optional*): flow time, in (0, 1), from which one whole step (eta = 1) goes to the data
            estimate ``x + (1 - t) v``. The schedule is cut there, so the network is called less often, never more: a
            touchdown after the last grid point changes nothing. `strength` of a pipeline that passes sigmas (FLUX)
            counts steps of the cut schedule, elsewhere (SD3) those of the whole one, of which the late ones are cut.
        gain (`list[float]` or a function, *optional*): a gain that replaces launch and landing: one number per step, or a
            function that takes a flow time and returns eta. A function is not saved.

    All other arguments are those of `FlowMatchEulerDiscreteScheduler`.

    Attributes:
        fused: whether steps and their energy are compiled into one kernel, see `diffusers_kts.schedulers.fused`. Experimental,
            for CUDA; not saved.

    Raises:
        ValueError: a setting is out of range, or shaping is combined with ``stochastic_sampling``.
    """

    __module__ = "diffusers_kts"  # diffusers writes this into model_index.json and looks the class up there
    _compatibles = ["FlowMatchEulerDiscreteScheduler"]
    fused = False
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler)  # type: ignore[assignment]

    def check_configuration(self) -> None:
        """Refuse shaping together with ``stochastic_sampling``."""
        if self.config.stochastic_sampling and not self.is_off:
            raise ValueError(
                "stochastic_sampling=True re-noises every step, shaping is defined for the ODE only; set "
                "stochastic_sampling=False, or alpha_0=0, beta_0=0, touchdown=None."
            )

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, with two additions: a setting that does not exist is refused (a mistyped ``alpha0`` would
        change nothing), and configurations of UniPC and DPM-Solver bring their ``flow_shift`` along as ``shift``.

        Raises:
            TypeError: unknown setting. ValueError: the configuration belongs to a model that predicts no flow velocity.
        """
        if has_settings(config):
            config = dict(config)
            if config.get("_class_name") == "MiniMaxH3Scheduler":
                raise ValueError(
                    "the configuration is of MiniMaxH3Scheduler, whose velocity points to the data and whose time runs from 0 "
                    "to 1: our steps would lead away from the data. MiniMax-H3 cannot be shaped; keep its own scheduler."
                )
            prediction = config.pop("prediction_type", None)
            flow = bool(config.pop("use_flow_sigmas", False))
            if prediction not in (None, "flow_prediction") or (not flow and "beta_schedule" in config):
                raise ValueError(
                    f"the configuration of {config.get('_class_name', 'this scheduler')} (prediction_type={prediction!r}) is "
                    "not flow matching: its model predicts no velocity. Use KTSDPMSolverMultistepScheduler, "
                    "KTSEulerDiscreteScheduler or KTSDDIMScheduler, which shape in flow coordinates."
                )
            if flow and "flow_shift" in config:
                config["shift"] = config.pop("flow_shift") or 1.0
            if flow and config.get("use_karras_sigmas") and config.get("sigma_max"):
                config["use_flow_sigmas"] = True  # kept, since `_convert_to_karras` goes by it
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample itself; Bria's pipelines call this on every scheduler that is not exactly the stock one."""
        return sample

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """As the parent's; also cuts the schedule at the touchdown, plans the gains, and begins a new energy record."""
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("set_timesteps got nothing to go by; give num_inference_steps, sigmas or timesteps.")
        if num_inference_steps is not None and not (isinstance(num_inference_steps, Integral) and num_inference_steps >= 1):
            raise ValueError(f"num_inference_steps is {num_inference_steps!r}; give a whole number of at least 1.")
        super().set_timesteps(num_inference_steps, "cpu", sigmas, mu, timesteps)  # the levels are read on the host
        self.begin_run()
        if device is not None:
            self.to_device(device)

    def to_device(self, device: str | torch.device) -> None:
        """Move the schedule, whose numbers are known on the host already."""
        with torch.inference_mode(False):  # tensors of inference mode count no versions
            self.sigmas, self.timesteps = self.sigmas.to(device), self.timesteps.to(device)
        self.keep_schedule(Levels.of(self.sigmas, self.schedule.source.numbers))

    def _convert_to_karras(self, in_sigmas: torch.Tensor, num_inference_steps: int) -> Any:
        """The multistep schedulers put a flow model on ``sigma / (1 + sigma)`` of Karras' levels (Cosmos 2.5: 200 to 0.01)."""
        sigmas = super()._convert_to_karras(in_sigmas, num_inference_steps)
        return flow_sigma(sigmas) if self.config.get("use_flow_sigmas") else sigmas

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As the parent's; refuses a begin that the touchdown leaves no step for."""
        self.check_begin(begin_index)
        super().set_begin_index(begin_index)

    def index_for_timestep(self, timestep: Any, schedule_timesteps: torch.Tensor | None = None) -> int:
        try:
            return super().index_for_timestep(timestep, schedule_timesteps)
        except IndexError:
            raise ValueError(f"timestep {float(timestep):g} is not in the schedule; pass elements of `timesteps`.") from None

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
        """One shaped Euler step; arguments and result as in `FlowMatchEulerDiscreteScheduler.step`.

        Arithmetic runs in fp32, since a gain of one per cent is lost in bf16; float64 stays float64, which the parent rounds.
        """
        index = self.check_call(model_output, timestep, sample)
        plan = self.plan
        gain: Any = plan.gains[index]
        known: dict[str, Any] = {}
        if per_token_timesteps is not None:
            gain, known = self._token_gain(per_token_timesteps)
        if self._steps_as_parent(plan, model_output, sample):
            churn = s_churn, s_tmin, s_tmax, s_noise
            (prev_sample,) = super().step(model_output, timestep, sample, *churn, generator, per_token_timesteps, False)
        else:
            prev_sample, known = self._moved(plan, index, model_output, sample, gain, known)
            self._step_index += 1
        given = index, model_output, sample
        self.observe(index, self.velocity(*given), gain, source=self.source(*given), **known)
        if not return_dict:
            return (prev_sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample)

    def check_call(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> int:
        """Check the arguments of a step; the number of this evaluation."""
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            raise ValueError(f"timestep {timestep!r} is an integer; pass an element of `timesteps`, not a step number.")
        self.check_step(model_output, sample, self._step_index)
        if self._step_index is None:
            self._init_step_index(timestep)
        return self._step_index

    def _steps_as_parent(self, plan: ShapingPlan, model_output: torch.Tensor, sample: torch.Tensor) -> bool:
        rounded = torch.float64 in (sample.dtype, model_output.dtype)  # by the parent, to fp32
        return self.config.stochastic_sampling or (plan.is_off and not rounded)

    def _moved(
        self, plan: ShapingPlan, index: int, v: torch.Tensor, sample: torch.Tensor, gain: Any, known: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The sample after the step, and what became known of its energy on the way."""
        if "token_dt" in known:
            return euler_step(sample, v, gain * known["token_dt"]), known  # fp32, as the parent's per-token result
        if self.schedule.scales is not None:
            return self._exploding_step(plan, index, v, sample, gain), known
        displacement = gain * self._interval(plan, index)
        if self.fused and not torch.is_grad_enabled():
            prev_sample, power = fused_step(sample, v, displacement)
            return prev_sample, {"power": power}
        return euler_step(sample, v, displacement).to(v.dtype), known

    def _interval(self, plan: ShapingPlan, index: int) -> Any:
        """``sigma_{i+1} - sigma_i`` as a float, or as a tensor where somebody differentiates the schedule."""
        return self.sigmas.diff()[index] if self.sigmas.requires_grad else plan.interval(index)

    def _exploding_step(
        self, plan: ShapingPlan, index: int, v: torch.Tensor, sample: torch.Tensor, gain: float
    ) -> torch.Tensor:
        """A step of a schedule that counts ``sigma / alpha``, shaped in flow coordinates."""
        (alpha, sigma), after = self.schedule.scales[index], plan.levels[index + 1]  # type: ignore[index]
        sigma_after = after / (1 - after)
        stepped = euler_step(sample, v, sigma_after - sigma)
        return shaped_step(sample.to(stepped.dtype), stepped, alpha + sigma, 1 + sigma_after, gain).to(v.dtype)

    def _token_gain(self, per_token_timesteps: torch.Tensor) -> tuple[Any, dict[str, Any]]:
        """(B, S, 1) gain and interval of every token at its own flow time (LTX, SanaWM)."""
        if self.config.gain is not None:
            raise ValueError("a gain per step does not fit per_token_timesteps; use alpha_0 and beta_0, or set gain=None.")
        token_sigmas = per_token_timesteps / self.config.num_train_timesteps
        token_dt = token_intervals(token_sigmas, self.sigmas)
        shaping = self.shaping
        t = snap(1 - token_sigmas.float(), shaping.marks)[..., None]
        gain = shaping(t)
        if shaping.touchdown is not None:
            gain = torch.where((t >= shaping.touchdown) & (token_dt > 0), 1.0, gain)
        return gain, {"token_dt": token_dt}
