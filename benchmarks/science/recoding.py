"""The same flow for data coded in another way: a network trained on data ``x`` moves ``y = (x - m) / a``, without training.

The reference code of arXiv 2602.07928 centers its data and gives them a range of 1; the embedded models know pixels in
[-1, 1]. Let ``s`` be the flow time of ``y``, and ``c = s + a (1 - s)``. The state ``y_s = s y + (1 - s) eps`` shows the data
through as much noise as ``x_t = (a y_s + s m) / c`` does at ``t = s / c``, so that ``E[y | y_s] = (E[x | x_t] - m) / a``, and
with ``E[x | x_t] = x_t + (1 - t) v_x`` the velocity ``(E[y | y_s] - y_s) / (1 - s)`` is

    v_y = (v_x - m - (a - 1) y_s) / c

which is regular at both ends.
"""

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

NUM_TRAIN_TIMESTEPS = 1000  # of every scheduler here


class RecodedVelocity(nn.Module):
    """A velocity network for ``y = (x - mean) / scale``, made of one for ``x``.

    Args:
        network (`nn.Module`): takes latents (B, C, H, W), ``1000 (1 - t)`` and labels, gives ``dx/dsigma``; the embedded ones.
        mean (`torch.Tensor`, (C, H, W)): ``m``, a fixed point of the data's space.
        scale (`float`, defaults to 2): ``a > 0``; 2 takes [-1, 1] to a range of 1.
    """

    def __init__(self, network: nn.Module, mean: torch.Tensor, scale: float = 2.0) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("scale", torch.tensor(scale, dtype=mean.dtype))

    @property
    def config(self) -> Any:
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def device(self) -> torch.device:
        return self.mean.device

    def decode(self, y: torch.Tensor) -> torch.Tensor:
        """The data ``x`` of ``y``."""
        return self.scale * y + self.mean

    def forward(
        self, hidden_states: torch.Tensor, timestep: torch.Tensor, return_dict: bool = True, **conditioning: Any
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """``dy/dsigma`` at ``timestep = 1000 (1 - s)``, (B,) or a scalar."""
        y, a = hidden_states, self.scale
        sigma = torch.as_tensor(timestep).to(y) / NUM_TRAIN_TIMESTEPS
        c = 1 - sigma + a * sigma
        time = NUM_TRAIN_TIMESTEPS * a * sigma / c
        s, c = (value.reshape(-1, *[1] * (y.ndim - 1)) for value in (1 - sigma, c))
        x = (a * y + s * self.mean) / c
        output = self.network(x, timestep=time, return_dict=False, **conditioning)[0]
        output = (output + self.mean + (a - 1) * y) / c
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)
