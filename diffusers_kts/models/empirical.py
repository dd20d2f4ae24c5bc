"""Empirical flow matching (EFM): the exact optimum of flow matching on a finite training set, as a model (arXiv 2602.07928).

With training points ``x_i`` and Gaussian noise, ``x = t x_i + (1 - t) eps``, the velocity that minimises the training loss is

    v*(x, t) = sum_i w_i (x_i - x) / (1 - t),    w = softmax_i(-||x - t x_i||^2 / (2 (1 - t)^2))

Every path of it ends on a training point: it is the memorizing limit that a learned network is compared with.

    pipe = ClassConditionalFlowPipeline(EmpiricalVelocity(2 * images - 1), scheduler)
"""

import math
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import nn

CHUNK_SIZE = 4096
_SMALLEST_SIGMA = 1e-100  # stands for 0: its square is still a float64


class EmpiricalVelocity(nn.Module):
    """The exact velocity on a finite data set, with a transformer's call, for `ClassConditionalFlowPipeline` and others whose
    transformer is given latents (B, C, H, W) and ``1000 sigma``.

    Distances and weights are float64 throughout, whatever ``dtype`` is: near t = 1 a logit is a difference of distances
    divided by ``(1 - t)^2``. Data are read in chunks, and the softmax runs along with them, so that nothing of size B x n is
    kept (except by `posterior_weights`).

    Args:
        data (`torch.Tensor`, (n, ...)): training points in the space of the latents; for a pipeline without a VAE pixels in
            [-1, 1].
        labels (`torch.Tensor`, (n,), *optional*): class of each point, from 0. With it the velocity of a class is that of the
            data of this class, and the number behind the last class stands for all data, as in classifier-free guidance.
            Without it class labels are ignored.
        dtype (`torch.dtype`, defaults to float32): of the data kept, and of the latents a pipeline then draws.
        chunk_size (`int`, defaults to 4096): data points held against a batch at a time.
        num_train_timesteps (`int`, defaults to 1000): what a timestep is divided by to give sigma; the scheduler's.

    Raises:
        TypeError: data or dtype are not floating point. ValueError: no data, data that are not finite, labels that do not
            fit, or ``chunk_size`` < 1.
    """

    data: torch.Tensor
    labels: torch.Tensor | None

    def __init__(
        self,
        data: torch.Tensor,
        labels: torch.Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        chunk_size: int = CHUNK_SIZE,
        num_train_timesteps: int = 1000,
    ) -> None:
        super().__init__()
        if not data.is_floating_point() or not dtype.is_floating_point:
            raise TypeError(f"data are {data.dtype}, dtype is {dtype}; give floating point, pixels scaled as the model's.")
        if data.ndim < 2 or not len(data):
            raise ValueError(f"data are {tuple(data.shape)}; give (n, ...) with at least one point.")
        if not torch.isfinite(data).all():
            raise ValueError("data hold NaN or infinity; give finite numbers.")
        if chunk_size < 1:
            raise ValueError(f"chunk_size is {chunk_size}; give at least 1.")
        num_classes = 1
        if labels is not None:
            counts = torch.bincount(_checked(labels, len(data)))
            if not counts.all():
                raise ValueError(f"class {int(counts.argmin())} has no data; number the classes 0, 1, ... without a gap.")
            num_classes = len(counts)
        self.register_buffer("data", data.detach().to(dtype).flatten(1))
        self.register_buffer("labels", labels)
        self.shape, self.chunk_size = tuple(data.shape[1:]), chunk_size
        square = data.ndim == 4 and data.shape[2] == data.shape[3]
        self.config = FrozenDict(
            num_train_timesteps=num_train_timesteps,
            in_channels=data.shape[1],
            sample_size=data.shape[2] if square else self.shape[1:],
            num_embeds_ada_norm=num_classes,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def device(self) -> torch.device:
        return self.data.device

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        **conditioning: Any,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """``dx/dsigma = -v*`` (B, ...), as diffusers' transformers predict it; other conditioning is ignored.

        Args:
            hidden_states (`torch.Tensor`, (B, ...)): latents.
            timestep (`torch.Tensor`, scalar or (B,)): ``1000 sigma``, ``1000 (1 - t)``.
            class_labels (`torch.Tensor`, (B,), *optional*): used where the data have labels.
            return_dict (`bool`): a `Transformer2DModelOutput`, or a tuple.
            **conditioning: what pipelines pass on; not used.
        """
        sigma = torch.as_tensor(timestep, device=self.device).double() / self.config.num_train_timesteps
        output = -self._velocity(hidden_states, sigma, class_labels)
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def velocity(self, x: torch.Tensor, t: torch.Tensor | float, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        """``v*(x, t)``, in the shape and dtype of ``x`` (B, ...); ``t`` is a number or (B,).

        At ``t = 1`` the weight is all on the nearest point: there the velocity is 0, anywhere else it diverges.
        """
        return self._velocity(x, self._sigma(t), class_labels)

    def posterior_weights(
        self, x: torch.Tensor, t: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B, n) float64 probability of every training point to be the one ``x`` was made of: the ``w_i``, which sum to 1."""
        x, sigma = self._prepared(x, self._sigma(t))
        return torch.cat([logits for _, logits in self._chunks(x, sigma, class_labels)], 1).softmax(1)

    def neg_log_density(
        self, x: torch.Tensor, t: torch.Tensor | float, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(B,) float64 ``-log p_t(x)`` of the mixture ``p_t = 1/n sum_i N(t x_i, (1 - t)^2 I)``; ``t`` below 1.

        Differentiable: ``grad log p_t(x) = (t v*(x, t) - x) / (1 - t)``.
        """
        x, sigma = self._prepared(x, self._sigma(t))
        log_sum, _ = self._softmax(x, sigma, class_labels)
        own = self._own(class_labels, 0, len(self.data))
        n = torch.full_like(sigma, len(self.data)) if own is None else own.sum(1)
        return n.log() - log_sum + x.shape[1] * (sigma.log() + 0.5 * math.log(2 * math.pi))

    def _sigma(self, t: torch.Tensor | float) -> torch.Tensor:
        return 1 - torch.as_tensor(t, dtype=torch.float64, device=self.device)

    def _velocity(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> torch.Tensor:
        flat, sigma = self._prepared(x, sigma)
        _, mean = self._softmax(flat, sigma, class_labels)
        return ((mean - flat) / sigma[:, None]).reshape(x.shape).to(x.dtype)

    def _prepared(self, x: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, d) float64 points and (B,) float64 noise levels."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"the latents are {tuple(x.shape[1:])}, the data {self.shape}; give the same shape.")
        return x.flatten(1).double(), sigma.expand(len(x)).clamp(min=_SMALLEST_SIGMA)

    def _chunks(self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None) -> Any:
        """Chunks (m, d) of the data, and the logits (B, m) of their weights: -inf for data of another class."""
        t, squares = (1 - sigma)[:, None], x.square().sum(1, keepdim=True)
        for start in range(0, len(self.data), self.chunk_size):
            chunk = self.data[start : start + self.chunk_size].double()
            distances = squares - 2 * t * (x @ chunk.T) + t.square() * chunk.square().sum(1)
            logits = -distances / (2 * sigma.square())[:, None]
            own = self._own(class_labels, start, start + self.chunk_size)
            if own is not None:
                logits = logits.masked_fill(~own, -torch.inf)
            yield chunk, logits

    def _softmax(
        self, x: torch.Tensor, sigma: torch.Tensor, class_labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B,) log of the sum of ``exp(logits)`` and (B, d) mean of the data under the weights, in one pass."""
        top = x.new_full((len(x), 1), torch.finfo(x.dtype).min)
        total, mean = x.new_zeros((len(x), 1)), torch.zeros_like(x)
        for chunk, logits in self._chunks(x, sigma, class_labels):
            before, top = top, torch.maximum(top, logits.detach().amax(1, keepdim=True))
            shares, kept = (logits - top).exp(), (before - top).exp()
            total, mean = total * kept + shares.sum(1, keepdim=True), mean * kept + shares @ chunk
        return (top + total.log())[:, 0], mean / total

    def _own(self, class_labels: torch.Tensor | None, start: int, stop: int) -> torch.Tensor | None:
        """(B, stop - start) bool, which data a sample may be made of; None for all."""
        if self.labels is None or class_labels is None:
            return None
        wanted = _checked(class_labels, None, self.config.num_embeds_ada_norm)[:, None]
        return (self.labels[start:stop] == wanted) | (wanted == self.config.num_embeds_ada_norm)


def _checked(labels: torch.Tensor, count: int | None, largest: int | None = None) -> torch.Tensor:
    if labels.is_floating_point() or labels.ndim != 1 or (count is not None and len(labels) != count):
        raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}; give one whole number per point, (n,).")
    low, high = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
    if low < 0 or (largest is not None and high > largest):
        raise ValueError(f"labels go from {low} to {high}; give 0 to {'the last class' if largest is None else largest}.")
    return labels
