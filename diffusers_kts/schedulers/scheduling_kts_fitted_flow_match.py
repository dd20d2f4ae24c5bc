"""KTSFittedFlowMatchScheduler: a grid and multistep weights fitted to a model by ``kts fit``."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from ..euler_step import euler_step
from ..flow_coordinates import exceeds_one, wide_dtype
from ..gain import is_number
from .adams_bashforth import adams_bashforth
from .base import shaped_init
from .scheduling_kts_flow_match import KTSFlowMatchScheduler

Fit = Mapping[str, Any]
REMEDY = "take the fits that kts fit has written"
SAME_MU = 1e-4


class KTSFittedFlowMatchScheduler(KTSFlowMatchScheduler):
    """Multistep steps ``x_{i+1} = x_i + (sigma_{i+1} - sigma_i) sum_j c_ij v_{i-j}`` on a grid of flow times; grid and weights
    ``c`` were fitted to one model by ``kts fit``, for some numbers of steps. One network call a step.

        pipe.scheduler = KTSFittedFlowMatchScheduler.from_pretrained("kts-fit/scheduler")
        image = pipe("a photo of a cat", num_inference_steps=8).images[0]

    The grid is in flow time, ``sigma = 1 - t``, so that no shift (``shift``, ``mu``) is applied to it. Of ``sigmas`` or
    ``timesteps`` that a pipeline passes, only their number counts. A fit is made for one resolution and guidance scale; a
    pipeline that passes another ``mu`` than in the fit draws at another resolution, of which a warning is raised.

    A run that starts late (img2img) takes the rest of the grid. As long as it has fewer velocities than a step was fitted
    with, it takes Adams-Bashforth weights of order 2 at most. The velocities that later steps need are kept in their own
    dtype, which loses nothing, one tensor like the latents each; sums run in fp32. Energies are trapezoidal sums.

    Not from the paper. Shaping is refused: the weights were fitted to the paths of the plain flow.

    Examples:
        >>> fit = {"flow_times": [0.0, 0.4, 1.0], "weights": [[1.0], [1.75, -0.75]]}
        >>> scheduler = KTSFittedFlowMatchScheduler(fits=[fit])
        >>> scheduler.set_timesteps(2)
        >>> scheduler.timesteps.tolist()
        [1000.0, 600.0]

    Args:
        fits (`list[dict]`): one for each number of steps N: ``flow_times``, N + 1 increasing numbers from 0 to 1, and
            ``weights``, N lists of weights, the newest velocity first, at most i + 1 in the i-th; optionally ``mu``, which the
            pipeline passed during the fit.

    All other arguments are those of `KTSFlowMatchScheduler`, with shaping off.

    Attributes:
        mu: what the pipeline passed last for its dynamic shift.

    Raises:
        ValueError: a fit is malformed, or combined with shaping or ``stochastic_sampling``; in `set_timesteps`: a number of
            steps without a fit, or noise levels beyond 1.
    """

    __module__ = "diffusers_kts"
    quadrature = "trapezoid"
    mu: float | None = None
    _velocities: list[torch.Tensor] = []  # of the steps before, the newest first
    _step_index: Any
    _followed: int | None = None  # the step that would continue them
    __init__ = shaped_init(FlowMatchEulerDiscreteScheduler, alpha_0=0.0, beta_0=0.0, fits=None)  # type: ignore[assignment]

    def check_configuration(self) -> None:
        """Refuse shaping, noise between steps, and malformed fits."""
        super().check_configuration()
        if not self.is_off:
            raise ValueError(
                "a fitted scheduler takes no shaping: its weights were fitted to the paths of the plain flow. Set alpha_0=0, "
                "beta_0=0, touchdown=None, gain=None, or use KTSFlowMatchScheduler."
            )
        if self.config.stochastic_sampling:
            raise ValueError("stochastic_sampling=True re-noises every step, a fit is for the ODE only; set it to False.")
        for fit in self.fits:
            _check(fit)
        counts = self.fitted_steps
        if twice := [n for n in counts if counts.count(n) > 1]:
            raise ValueError(f"there are two fits for {twice[0]} steps; leave one out.")

    @property
    def fits(self) -> Sequence[Fit]:
        """The fits of the configuration."""
        return self.config.fits or []

    @property
    def fitted_steps(self) -> list[int]:
        """The numbers of steps that there are fits for, in rising order."""
        return sorted(len(fit["weights"]) for fit in self.fits)

    def fit_for(self, num_inference_steps: int) -> Fit:
        """The fit for this number of steps.

        Raises:
            ValueError: there is none.
        """
        for fit in self.fits:
            if len(fit["weights"]) == num_inference_steps:
                return fit
        if not self.fits:
            raise ValueError("this scheduler has no fits; make some with kts fit, or load the folder that it has written.")
        *others, last = self.fitted_steps
        known = f"{', '.join(map(str, others))} or {last}" if others else str(last)
        raise ValueError(
            f"there is no fit for num_inference_steps={num_inference_steps}; use {known}, or fit another with kts fit."
        )

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        """Take the fitted grid of this number of steps, and begin a new energy record; see the class."""
        given = sigmas if sigmas is not None else timesteps
        if num_inference_steps is None:
            if given is None:
                raise ValueError("set_timesteps got nothing to go by; give num_inference_steps.")
            num_inference_steps = len(given)
        if sigmas is not None and exceeds_one(sigmas):
            raise ValueError(f"the noise levels go up to {max(sigmas):g}; a fit is for levels from 1 to 0.")
        fit = self.fit_for(num_inference_steps)
        if mu is not None and fit.get("mu") is not None and abs(mu - fit["mu"]) > SAME_MU:
            warnings.warn(
                f"the pipeline passes mu={mu:.4g}, the fit was made at mu={fit['mu']:.4g}: another resolution, for which the "
                "fit may do worse. Fit again at this resolution.",
                UserWarning,
                stacklevel=2,
            )
        self.mu = mu
        t = torch.tensor(fit["flow_times"], dtype=torch.float64)
        self.sigmas = (t if self.config.invert_sigmas else 1 - t).float()
        self.timesteps = self.sigmas[:-1] * self.config.num_train_timesteps
        self.num_inference_steps = num_inference_steps
        self._step_index = self._begin_index = None
        self._forget()
        self.begin_run()
        if device is not None:
            self.to_device(device)

    def _forget(self) -> None:
        self._velocities, self._followed = [], None

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
        """One fitted step; arguments and result as in `KTSFlowMatchScheduler.step`."""
        if per_token_timesteps is not None:
            raise ValueError("per_token_timesteps are not supported by fitted steps; use KTSFlowMatchScheduler.")
        index = self.check_call(model_output, timestep, sample)
        before = self._velocities
        if index != self._followed or (before and before[0].shape != model_output.shape):
            before = []
        velocities = [model_output, *before]
        weights = self.weights_of(index, sample, velocities)
        interval, x = self.plan.interval(index), sample.to(wide_dtype(sample, model_output))
        for c, v in zip(weights, velocities, strict=False):
            x = euler_step(x, v, c * interval)
        self._remember(index, velocities)
        self._step_index = index + 1
        self.observe(index, model_output, 1.0)
        prev_sample: Any = x.to(model_output.dtype)
        return FlowMatchEulerDiscreteSchedulerOutput(prev_sample=prev_sample) if return_dict else (prev_sample,)

    def weights_of(self, index: int, sample: torch.Tensor, velocities: Sequence[torch.Tensor]) -> Sequence[float]:
        """The weights of step ``index`` for the velocities there are, the newest first: those fitted, or of Adams-Bashforth
        where the run began late and too few velocities are there."""
        fit = self.fit_for(self.num_inference_steps)
        weights = fit["weights"][index]
        if len(weights) <= len(velocities):
            return weights
        return adams_bashforth(fit["flow_times"], index, min(2, len(velocities)))

    def _remember(self, index: int, velocities: list[torch.Tensor]) -> None:
        """Keep the velocities that the next step needs."""
        rows = self.fit_for(self.num_inference_steps)["weights"]
        if index + 1 == len(rows):
            return self._forget()
        # a copy: compiled networks write the next velocity where this one lies
        newest = [velocities[0].clone()] if len(rows[index + 1]) > 1 else []
        self._velocities, self._followed = (newest + velocities[1:])[: len(rows[index + 1]) - 1], index + 1


def _check(fit: Any) -> None:
    """Raises ValueError for a fit that could not be followed."""
    try:
        times, rows = list(fit["flow_times"]), [list(row) for row in fit["weights"]]
    except (KeyError, TypeError):
        raise ValueError(f"a fit is {fit!r:.80}; give flow_times and weights, or {REMEDY}.") from None
    if len(times) != len(rows) + 1 or not rows:
        raise ValueError(f"a fit has {len(times)} flow times for {len(rows)} steps, not one more; {REMEDY}.")
    if not all(map(is_number, times)) or times[0] < 0 or times[-1] > 1 or any(b <= a for a, b in itertools.pairwise(times)):
        raise ValueError(f"the flow times of a fit are {times}; give increasing numbers from 0 to 1, or {REMEDY}.")
    for i, row in enumerate(rows):
        if not 1 <= len(row) <= i + 1 or not all(map(is_number, row)):
            raise ValueError(f"step {i} of a fit has the weights {row}; give 1 to {i + 1} finite numbers, or {REMEDY}.")
    if fit.get("mu") is not None and not is_number(fit["mu"]):
        raise ValueError(f"a fit has mu={fit['mu']!r}; give a finite number, or leave it out.")
