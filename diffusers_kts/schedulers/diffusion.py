"""Shaping of the first-order samplers of diffusion models, which are Euler steps in flow coordinates."""

from typing import Any

import torch

from ..flow_coordinates import shaped_step, wide_dtype
from ..kpe.stock_schedulers import is_known_diffusion
from .base import KTSSchedulerMixin, has_settings


class KTSDiffusionMixin(KTSSchedulerMixin):
    """Goes before a scheduler whose steps are ``X' = X + (t' - t) v`` in flow coordinates; they become ``X + eta (X' - X)``.

    Where the data estimate is clipped or thresholded, the motion is shaped as it is, and energies are of the network's field.
    The network knows only the timesteps it was trained on: a touchdown happens at the first of the schedule that is not
    before it.
    """

    levels_are_free = False

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, but unknown settings and configurations of flow-matching models are refused.

        Raises:
            TypeError: unknown setting. ValueError: the model is a flow-matching one.
        """
        if has_settings(config) and (config.get("use_flow_sigmas") or "beta_schedule" not in config):
            raise ValueError(
                f"the configuration of {config.get('_class_name', 'this scheduler')} is flow matching or unknown; "
                "use KTSFlowMatchScheduler."
            )
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    def check_configuration(self) -> None:
        """Refuse models that this scheduler does not know."""
        if not is_known_diffusion(self) or self.config.prediction_type == "flow_prediction":
            raise ValueError(
                f"prediction_type is {self.config.prediction_type!r}; this scheduler knows epsilon, sample and v_prediction."
            )

    def refuse_noise(self, name: str, value: float) -> None:
        """Refuse noise in every step where shaping acts."""
        if value and not self.is_off:
            raise ValueError(f"{name} is {value}: it adds noise, shaping is defined for the ODE only; set {name}=0.")

    def widened(self, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in at least fp32 where shaping acts: a gain of one per cent is lost in bf16."""
        if self.plan.is_off:
            return model_output, sample
        dtype = wide_dtype(sample, model_output)
        return model_output.to(dtype), sample.to(dtype)

    def shape(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, prev_sample: torch.Tensor, scale: Any, after: Any
    ) -> torch.Tensor:
        """The parent's step to ``prev_sample``, shaped and recorded; scales are ``alpha + sigma`` before and after it."""
        gain = self.plan.gains[index]
        given = index, model_output, sample
        self.observe(index, self.velocity(*given), gain, source=self.source(*given))
        return prev_sample if gain == 1 else shaped_step(sample, prev_sample, scale, after, gain)
