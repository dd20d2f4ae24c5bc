"""KTSFlowMatchScheduler: kinetic trajectory shaping as an Euler scheduler for flow-matching pipelines."""

import difflib
import inspect
import math
from numbers import Integral
from typing import Any, Literal

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from .gain import Gain, flow_times, noise_level, snap
from .kpe import KPERecorder, KPETrace, token_intervals

SHAPING = ("alpha_0", "beta_0", "tau_split", "k", "early_schedule", "late_schedule", "touchdown")


class ScheduleTable(list):
    """Rows (dictionaries) of `KTSFlowMatchScheduler.schedule_table`; prints as a table, and `pandas.DataFrame` takes it."""

    def __repr__(self) -> str:
        lines = [f"{'step':>4} {'sigma':>9} {'t':>8} {'eta':>9}  phase"]
        lines += [f"{r['step']:>4} {r['sigma']:>9.5f} {r['t']:>8.5f} {r['eta']:>9.6f}  {r['phase']}" for r in self]
        return "\n".join(lines)


class KTSFlowMatchScheduler(FlowMatchEulerDiscreteScheduler):
    """Euler steps along ``dx/dt = eta(t) v(x, t)``: ``x_{i+1} = x_i + eta(t_i) (sigma_{i+1} - sigma_i) v_i``.

    The network is told the honest time and `sigmas` stay honest noise levels; only the displacement is scaled. With
    ``alpha_0 = beta_0 = 0`` and no touchdown, steps are bit-equal to `FlowMatchEulerDiscreteScheduler` in fp32, fp16 and
    bf16. Every step also records the kinetic path energy of each sample, see `kpe`.

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
            touchdown after the last grid point changes nothing. A pipeline's `strength` counts steps of the cut schedule.

    All other arguments are those of `FlowMatchEulerDiscreteScheduler`.

    Raises:
        ValueError: a setting is out of range, or shaping is combined with ``stochastic_sampling``.
    """

    __module__ = "diffusers_kts"  # diffusers writes this into model_index.json and looks the class up there
    _compatibles = ["FlowMatchEulerDiscreteScheduler"]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: Literal["exponential", "linear"] = "exponential",
        stochastic_sampling: bool = False,
        alpha_0: float = 0.01,
        beta_0: float = 0.01,
        tau_split: float = 0.6,
        k: float = 3.0,
        early_schedule: str = "linear",
        late_schedule: str = "exponential",
        touchdown: float | None = None,
    ):
        self._gain = Gain(alpha_0, beta_0, tau_split, k, early_schedule, late_schedule)
        if touchdown is not None:
            number = isinstance(touchdown, (int, float)) and not isinstance(touchdown, bool)
            if not number or not math.isfinite(touchdown) or not 0 < touchdown < 1:
                raise ValueError(f"touchdown is {touchdown!r}; give a flow time strictly between 0 and 1, or None for none.")
        if stochastic_sampling and not (self._gain.is_identity and touchdown is None):
            raise ValueError(
                "stochastic_sampling=True re-noises every step, shaping is defined for the ODE only; set "
                "stochastic_sampling=False, or alpha_0=0, beta_0=0, touchdown=None."
            )
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=use_dynamic_shifting,
            base_shift=base_shift,
            max_shift=max_shift,
            base_image_seq_len=base_image_seq_len,
            max_image_seq_len=max_image_seq_len,
            invert_sigmas=invert_sigmas,
            shift_terminal=shift_terminal,
            use_karras_sigmas=use_karras_sigmas,
            use_exponential_sigmas=use_exponential_sigmas,
            use_beta_sigmas=use_beta_sigmas,
            time_shift_type=time_shift_type,
            stochastic_sampling=stochastic_sampling,
        )
        self.sigmas: torch.Tensor
        self.timesteps: torch.Tensor
        self._gains: list[float] | None = None
        self._gains_of: torch.Tensor | None = None
        self._kpe_recorder = KPERecorder()

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, with two additions: a setting that does not exist is refused (a mistyped ``alpha0`` would
        change nothing), and configurations of UniPC and DPM-Solver bring their ``flow_shift`` along as ``shift``.

        Raises:
            TypeError: unknown setting. ValueError: the configuration belongs to a model that predicts no flow velocity.
        """
        known = set(inspect.signature(cls.__init__).parameters) - {"self"}
        for name in kwargs:
            if name not in known and not return_unused_kwargs:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"shaping is set by {', '.join(SHAPING)}."
                raise TypeError(f"{cls.__name__} has no setting {name!r}; {hint}")
        if hasattr(config, "items"):
            config = dict(config)
            prediction = config.pop("prediction_type", None)
            flow = bool(config.pop("use_flow_sigmas", False))
            if prediction not in (None, "flow_prediction") or (not flow and "beta_schedule" in config):
                raise ValueError(
                    f"the configuration of {config.get('_class_name', 'this scheduler')} (prediction_type={prediction!r}) is "
                    "not flow matching: its model predicts no velocity to shape. Use a flow pipeline (SD3, FLUX, Wan)."
                )
            if flow:
                config["shift"] = config.pop("flow_shift", None) or 1.0
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    @property
    def gain(self) -> Gain:
        """The gain ``eta(t)`` of the settings."""
        return self._gain

    @property
    def gains(self) -> torch.Tensor:
        """(N,) float64 gain of each step of the current schedule."""
        return torch.tensor(self._current_gains(), dtype=torch.float64)

    @property
    def kpe(self) -> KPETrace | None:
        """The energy record of the last run (since `set_timesteps`), so far; None before its first step."""
        return self._kpe_recorder.trace()

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
        super().set_timesteps(num_inference_steps, "cpu", sigmas, mu, timesteps)  # the gains are read on the host
        if not torch.isfinite(self.sigmas).all():
            raise ValueError(
                f"the schedule has noise levels that are not finite ({self.sigmas.tolist()}); check sigmas and mu."
            )
        self._cut_at_touchdown()
        self._gains = self._compute_gains()
        self.sigmas = self.sigmas.to(device)
        self.timesteps = self.timesteps.to(device)
        self._gains_of = self.sigmas
        settings = {"scheduler": type(self).__name__} | {name: self.config[name] for name in SHAPING}
        self._kpe_recorder.begin(settings, self._gain.tau_split, self.config.invert_sigmas)

    def schedule_table(self) -> ScheduleTable:
        """What each step of the current schedule does: step, sigma, t, eta and phase (launch, landing, touchdown)."""
        gains, table = self._current_gains(), ScheduleTable()
        for i, (sigma, t) in enumerate(zip(self.sigmas[:-1].tolist(), self._flow_times()[:-1].tolist(), strict=True)):
            phase = "launch" if t < self._gain.tau_split else "landing"
            if self._touches_down(t):
                phase = "touchdown"
            table.append({"step": i, "sigma": sigma, "t": t, "eta": gains[i], "phase": phase})
        return table

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
        self._check_step(model_output, timestep, sample)
        if self.step_index is None:
            self._init_step_index(timestep)
        index = self.step_index
        if index + 1 >= len(self.sigmas):
            raise RuntimeError(
                f"step was called more often than the {len(self.sigmas) - 1} steps planned; call set_timesteps."
            )
        gain: Any = 1.0 if self._gain.is_identity else self._current_gains()[index]
        dtype = torch.promote_types(torch.promote_types(sample.dtype, model_output.dtype), torch.float32)
        # read here and not in set_timesteps: Cosmos edits sigmas in between
        dt, token_dt = self.sigmas[index + 1].to(dtype) - self.sigmas[index].to(dtype), None
        if per_token_timesteps is not None:  # callers pass -v, and time intervals are positive
            token_sigmas = per_token_timesteps / self.config.num_train_timesteps
            dt = token_dt = token_intervals(token_sigmas, self.sigmas)
            gain = self._token_gains(token_sigmas, token_dt)
        if self._gain.is_identity and (dtype == torch.float32 or self.config.stochastic_sampling):
            (prev_sample,) = super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps, False
            )
        else:
            prev_sample = ((gain * dt).to(dtype) * model_output.to(dtype)).add_(sample)
            if per_token_timesteps is None:  # as in the parent, whose per-token result stays float32
                prev_sample = prev_sample.to(model_output.dtype)
            self._step_index += 1
        self._kpe_recorder.observe(index, self.sigmas, model_output, gain, token_dt)
        if not return_dict:
            return (prev_sample,)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample)

    def _token_gains(self, token_sigmas: torch.Tensor, token_dt: torch.Tensor) -> torch.Tensor:
        """(B, S, 1) gain of every token at its own flow time (LTX, SanaWM)."""
        t = snap(1 - token_sigmas.double(), self._marks)[..., None]
        gain = self._gain(t)
        if self.config.touchdown is not None:
            gain = torch.where((t >= self.config.touchdown) & (token_dt > 0), 1.0, gain)
        return gain.float()

    def _check_step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor) -> None:
        if isinstance(timestep, int) or (isinstance(timestep, torch.Tensor) and not timestep.is_floating_point()):
            raise ValueError(f"timestep {timestep!r} is an integer; pass an element of `timesteps`, not a step number.")
        if self._gains is None:
            raise RuntimeError("step was called before set_timesteps; call set_timesteps(num_inference_steps) first.")
        if model_output.shape != sample.shape:
            raise ValueError(
                f"model_output is {tuple(model_output.shape)}, sample {tuple(sample.shape)}; they must have the same shape."
            )

    @property
    def _marks(self) -> tuple[float, ...]:
        return tuple(mark for mark in (self._gain.tau_split, self.config.touchdown) if mark is not None)

    def _flow_times(self) -> torch.Tensor:
        return flow_times(self.sigmas.detach().cpu(), self.config.invert_sigmas, self._marks)

    def _touches_down(self, t: float) -> bool:
        return self.config.touchdown is not None and t >= self.config.touchdown

    def _cut_at_touchdown(self) -> None:
        t_d = self.config.touchdown
        if t_d is None:
            return
        t = self._flow_times()
        after = (t[:-1] >= t_d).nonzero().flatten()
        if not len(after):
            return
        cut = int(after[0])
        if t[cut] == t_d or cut == 0:
            sigma, timestep = self.sigmas[cut], self.timesteps[cut]
        else:
            share = (t_d - t[cut - 1]) / (t[cut] - t[cut - 1])
            sigma = noise_level(t_d, self.sigmas, self.config.invert_sigmas)
            timestep = torch.lerp(self.timesteps[cut - 1], self.timesteps[cut], share.to(self.timesteps.dtype))
        self.sigmas = torch.cat([self.sigmas[:cut], sigma[None], self.sigmas[-1:]])
        self.timesteps = torch.cat([self.timesteps[:cut], timestep[None]])
        self.num_inference_steps = len(self.timesteps)

    def _compute_gains(self) -> list[float]:
        t = self._flow_times()[:-1]
        return [1.0 if self._touches_down(ti) else eta for ti, eta in zip(t.tolist(), self._gain(t).tolist(), strict=True)]

    def _current_gains(self) -> list[float]:
        if self._gains is None:
            raise RuntimeError("there is no schedule yet; call set_timesteps(num_inference_steps) first.")
        if self.sigmas is not self._gains_of:  # a pipeline put a schedule of its own in place
            self._gains, self._gains_of = self._compute_gains(), self.sigmas
        return self._gains
