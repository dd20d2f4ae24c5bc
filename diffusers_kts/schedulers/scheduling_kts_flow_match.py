"""KTSFlowMatchScheduler: kinetic trajectory shaping as an Euler scheduler for flow-matching pipelines."""

from numbers import Integral
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..flow_coordinates import exploding_velocity, flow_sigma, shaped_step
from ..gain import exceeds_one, flow_times, snap
from ..kpe.trace import token_intervals
from .base import KTSSchedulerMixin, has_settings, shaped_init
from .euler_step import euler_step
from .fused import fused_step
from .host_copy import HostCopy, counted
from .standing import StandingSchedule, as_tuple


class KTSFlowMatchScheduler(KTSSchedulerMixin, FlowMatchEulerDiscreteScheduler):
    """Euler steps along ``dx/dt = eta(t) v(x, t)``: ``x_{i+1} = x_i + eta(t_i) (sigma_{i+1} - sigma_i) v_i``. Order 1.

    The network is told the honest time and `sigmas` stay honest noise levels; only the displacement is scaled. With
    ``alpha_0 = beta_0 = 0`` and no touchdown, steps are bit-equal to `FlowMatchEulerDiscreteScheduler` in fp32, fp16 and
    bf16. Every step also records the kinetic path energy of each sample, see `kpe`.

    A schedule whose sigmas exceed 1 (Cosmos, 80 to 0.002) counts ``sigma / alpha``; steps, gains and energies are then those
    of the flow coordinates ``x / (1 + sigma)`` at ``t = 1 / (1 + sigma)``, see `diffusers_kts.flow_coordinates`. A run
    that starts late (img2img) takes the gains of its own flow times, hence mostly landing.

        pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, alpha_0=0.05, beta_0=0.0)

    Source: arXiv 2602.07928, except ``touchdown``, which is ours.

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

    All other arguments are those of `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: a setting is out of range, or shaping is combined with ``stochastic_sampling``.
    """

    __module__ = "diffusers_kts"  # diffusers writes this into model_index.json and looks the class up there
    _compatibles = ["FlowMatchEulerDiscreteScheduler"]

    fused = False  # whether steps and their energy are compiled, see `diffusers_kts.schedulers.fused`; set it to True on CUDA
    _exploding = False  # whether the schedule counts sigma / alpha
    _is_plain = False  # whether steps are x + eta dt v, in one pass
    _touchdown_is_last = False
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler)  # type: ignore[assignment]

    def _check_configuration(self) -> None:
        if self.config.stochastic_sampling and not self._is_off:
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
        """As the parent's; also cuts the schedule at the touchdown, computes the gains, and begins a new energy record."""
        if num_inference_steps is None and sigmas is None and timesteps is None:
            raise ValueError("set_timesteps got nothing to go by; give num_inference_steps, sigmas or timesteps.")
        if num_inference_steps is not None and not (isinstance(num_inference_steps, Integral) and num_inference_steps >= 1):
            raise ValueError(f"num_inference_steps is {num_inference_steps!r}; give a whole number of at least 1.")
        asked = num_inference_steps, device, as_tuple(sigmas), mu, as_tuple(timesteps), self.shift
        if self._begin_again(asked):
            self._step_index = self._begin_index = None
            return
        super().set_timesteps(num_inference_steps, "cpu", sigmas, mu, timesteps)  # the levels are read on the host
        self._begin_run()
        if device is not None:
            self.sigmas, self.timesteps = counted(self.sigmas.to(device)), self.timesteps.to(device)
            self._levels = HostCopy.of(self.sigmas, self._levels.numbers)
        self._standing = StandingSchedule.of(self, asked)

    def _convert_to_karras(self, in_sigmas: torch.Tensor, num_inference_steps: int) -> Any:
        """The multistep schedulers put a flow model on ``sigma / (1 + sigma)`` of Karras' levels (Cosmos 2.5: 200 to 0.01)."""
        sigmas = super()._convert_to_karras(in_sigmas, num_inference_steps)
        return flow_sigma(sigmas) if self.config.get("use_flow_sigmas") else sigmas

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As the parent's; refuses a begin that the touchdown leaves no step for."""
        self._check_begin(begin_index)
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

        Arithmetic runs in fp32, since a gain of one per cent is lost in bf16; float64 stays float64, where the parent rounds
        the sample to fp32.
        """
        index = self._check_call(model_output, timestep, sample)
        gain: Any = self._current_gains()[index]
        self._aim_touchdown(index)
        v, power, token_dt = model_output, None, None
        if self._is_plain and per_token_timesteps is None:
            prev_sample, power = self._plain_step(index, v, sample, gain)
            self._step_index = index + 1
        else:
            # the parent rounds float64 to fp32
            as_parent = self._gain.is_identity and torch.float64 not in (sample.dtype, v.dtype)
            if per_token_timesteps is not None:  # callers pass -v, and time intervals are positive
                token_sigmas = per_token_timesteps / self.config.num_train_timesteps
                token_dt = token_intervals(token_sigmas, self.sigmas)
                gain = self._token_gains(token_sigmas, token_dt)
            if self.config.stochastic_sampling or (as_parent and per_token_timesteps is not None):
                (prev_sample,) = super().step(
                    model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps, False
                )
            else:
                if per_token_timesteps is not None:
                    prev_sample = euler_step(sample, v, gain * token_dt)  # fp32, as the parent's per-token result
                elif as_parent:
                    # its arithmetic, dt v in the dtype of v included, in two passes instead of up to five
                    product = (self.sigmas[index + 1] - self.sigmas[index]) * v
                    # strides are of the sample, as the parent's: kernels of the next call may round otherwise on others
                    in_place = product.stride() == sample.stride()
                    prev_sample = product.add_(sample) if in_place else torch.add(sample, product).to(v.dtype)
                elif self._exploding:
                    prev_sample = self._exploding_step(index, v, sample, gain)
                else:  # float64 without shaping
                    prev_sample = euler_step(sample, v, self._interval(index)).to(v.dtype)
                self._step_index += 1
        self._observe(index, self._flow_velocity(index, model_output, sample), gain, power, token_dt)
        if not return_dict:
            return (prev_sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample)

    def _plain_step(
        self, index: int, v: torch.Tensor, sample: torch.Tensor, gain: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The shaped sample, in the dtype of ``v``, and ``||v||^2`` if that was computed on the way."""
        displacement = gain * self._interval(index)
        if self.fused and not torch.is_grad_enabled():
            return fused_step(sample, v, displacement)
        stepped = euler_step(sample, v, displacement)
        return stepped if stepped.dtype == v.dtype else stepped.to(v.dtype), None

    def _interval(self, index: int) -> Any:
        """``sigma_{i+1} - sigma_i`` as a float from the host, or as a tensor where somebody differentiates the schedule."""
        sigmas: Any = self.sigmas if self.sigmas.requires_grad else self._levels.numbers
        return sigmas[index + 1] - sigmas[index]

    def _exploding_step(self, index: int, model_output: torch.Tensor, sample: torch.Tensor, gain: float) -> torch.Tensor:
        stepped = euler_step(sample, model_output, self._interval(index))
        x = sample.to(stepped.dtype)
        return shaped_step(x, stepped, self._scale(index), self._scale(index + 1), gain).to(model_output.dtype)

    def _check_call(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> int:
        """Check the arguments; the number of this evaluation."""
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            raise ValueError(f"timestep {timestep!r} is an integer; pass an element of `timesteps`, not a step number.")
        self._check_step(model_output, sample, self._step_index)
        if self._step_index is None:
            self._init_step_index(timestep)
        return self._step_index

    def _token_gains(self, token_sigmas: torch.Tensor, token_dt: torch.Tensor) -> torch.Tensor:
        """(B, S, 1) gain of every token at its own flow time (LTX, SanaWM)."""
        t = snap(1 - token_sigmas.double(), self._marks)[..., None]
        gain = self._gain(t)
        if self.config.touchdown is not None:
            gain = torch.where((t >= self.config.touchdown) & (token_dt > 0), 1.0, gain)
        return gain.float()

    def _aim_touchdown(self, index: int) -> None:
        """The touchdown goes to the data estimate, also where a pipeline holds the last noise level (Cosmos)."""
        if self._touchdown_is_last and index + 2 == len(self.sigmas):
            end, numbers = float(self.config.invert_sigmas), self._levels.numbers
            if numbers[-1] != end:
                self.sigmas[-1] = end
                self._levels = HostCopy.of(self.sigmas, [*numbers[:-1], end])

    def _flow_velocity(self, index: int, model_output: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
        if not self._exploding:
            return model_output
        return exploding_velocity(model_output, sample, self.sigmas[index])

    def _scale(self, index: int) -> torch.Tensor:
        return 1 + self.sigmas[index]

    def _flow_sigmas(self) -> torch.Tensor:
        return flow_sigma(self.sigmas) if self._exploding else self.sigmas

    def _flow_times(self) -> np.ndarray:
        return flow_times(np.array(self._levels.numbers), self.config.invert_sigmas, self._marks)

    def _compute_gains(self) -> list[float]:
        self._exploding = exceeds_one(np.array(self._levels.numbers))
        self._is_plain = not (self._exploding or self._gain.is_identity or self.config.stochastic_sampling)
        gains = super()._compute_gains()
        if self.config.touchdown is not None:
            self._touchdown_is_last = self._touches_down(self._flow_times().tolist(), len(gains) - 1)
        return gains
