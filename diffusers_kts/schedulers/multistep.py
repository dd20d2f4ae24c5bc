"""Shaping of the multistep solvers: of the data estimates they are made of."""

from collections.abc import Callable
from typing import Any

import torch

from ..flow_coordinates import wide_dtype
from .base import KTSSchedulerMixin, has_settings


class KTSMultistepMixin(KTSSchedulerMixin):
    """Goes before a multistep scheduler of diffusers that works with data estimates ``D = X + (1 - t) v``.

    These solvers integrate ``dX/dt = (D - X)/(1 - t)`` for any ``D(X, t)``. Given ``D_eta = X + eta(t) (D - X)`` they
    integrate ``dX/dt = eta(t) v(X, t)``, with their own history, corrector and last step, at their own order: 2 at most,
    since the gain has a kink at ``tau_split``; a gain that jumps there ("constant" shapes) makes the steps over it
    first-order. Multiplying their displacements by eta would not do: the history makes them no velocities.

    The last step, to sigma 0, ends on ``D_eta``; at the touchdown, where eta is 1, on the data estimate.
    """

    quadrature = "trapezoid"
    _step_index: int

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers; configurations of flow-matching schedulers bring their ``shift`` along as ``flow_shift``.

        Raises:
            TypeError: unknown setting. ValueError: the schedule counts upwards, which multistep solvers cannot.
        """
        if has_settings(config) and "shift" in config and "beta_schedule" not in config:
            config = dict(config)
            if config.get("invert_sigmas"):
                raise ValueError(f"invert_sigmas=True is not supported by {cls.__name__}; use KTSFlowMatchScheduler.")
            config |= {"flow_shift": config.pop("shift"), "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def check_configuration(self) -> None:
        """Refuse a flow model on the noise levels of a diffusion model."""
        if self.config.prediction_type == "flow_prediction" and not self.config.use_flow_sigmas:
            raise ValueError('prediction_type="flow_prediction" needs the noise levels of a flow; set use_flow_sigmas=True.')

    def convert_model_output(self, model_output: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The shaped data estimate, (B, C, ...)."""
        data = super().convert_model_output(model_output, *args, **kwargs)  # type: ignore[misc]
        gain = self.plan.gains[self._step_index]
        if gain == 1:
            return data
        state = kwargs["sample"] / sum(self.schedule.scales[self._step_index])  # type: ignore[index]
        return state + gain * (data - state)

    def shaped_step(
        self, step: Callable[..., tuple], model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """The parent's ``step``, in fp32 where it shapes (a gain of one per cent is lost in bf16), and its energy."""
        self.check_step(model_output[:, : sample.shape[1]] if sample.ndim > 1 else model_output, sample, self._step_index)
        given = model_output, sample
        if not self.plan.is_off:
            wide = wide_dtype(sample, model_output)
            model_output, sample = model_output.to(wide), sample.to(wide)
        (prev_sample,) = step(model_output, timestep, sample, return_dict=False, **kwargs)
        index = self._step_index - 1
        self.observe(index, self.velocity(index, *given), self.plan.gains[index], source=self.source(index, *given))
        return prev_sample

    @property
    def levels_are_free(self) -> bool:  # type: ignore[override]
        return self.config.use_flow_sigmas
