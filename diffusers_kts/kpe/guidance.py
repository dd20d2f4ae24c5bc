"""Guidance, told from the outputs of the network itself: which part of ``v = v_u + s (v_c - v_u)`` is whose.

A scheduler sees the guided velocity alone. Where the network gave two predictions for a step, the velocity lies on the line
through both, at ``s`` times the way from the unconditional to the conditional one, if the guidance is classifier-free
(arXiv 2207.12598): least squares give ``s``, and what is left shows whether it is.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..flow_coordinates import wide_dtype
from .sums import distance, squared_norm

NETWORKS = ("transformer", "transformer_2", "unet")
KEPT = 4  # outputs: more than a step of guidance has, so that a scheduler that never steps does not fill the memory
EXACT = 1e-4  # share of the velocity that may be left in fp32; two units in the last place of narrower dtypes


class Guidance(NamedTuple):
    """The guidance of one evaluation; every tensor on the device of the velocity.

    Attributes:
        scale: () the ``s`` of the batch; 1 where the network gave one prediction.
        conditional_power: (B,) ``||v_c||^2``.
        norm: (B,) ``||v_c - v_u||``.
        misfit: () how far the velocity is from such a combination, relative to what rounding explains: above 1 it is none.
        predictions: how many the network gave.
    """

    scale: torch.Tensor
    conditional_power: torch.Tensor
    norm: torch.Tensor
    misfit: torch.Tensor
    predictions: int


class Predictions:
    """What the networks of a pipeline have put out since the last step of its scheduler."""

    def __init__(self) -> None:
        self.outputs: deque[Any] = deque(maxlen=KEPT)

    def keep(self, network: torch.nn.Module, args: Any, output: Any) -> None:
        """A forward hook."""
        self.outputs.append(output)

    @torch.no_grad()
    def split(self, output: torch.Tensor, to_velocity: Callable[[torch.Tensor], torch.Tensor]) -> Guidance | str:
        """The guidance of ``output`` (B, ...), which the scheduler was given, or why it is not known. Does not wait for the
        device.

        Args:
            output: of the network as the pipeline combined it.
            to_velocity: makes the velocity of the flow of such an output.
        """
        outputs = [_tensor(kept) for kept in self.outputs]
        self.outputs.clear()
        if not outputs:
            return "no output of the pipeline's transformer or unet was seen"
        parts = [part for kept in outputs if kept is not None for part in kept.split(len(output))]
        if any(kept is None for kept in outputs) or not parts[0].is_floating_point():
            return "the network's output has a form that is not known"
        if len(parts) > 2:
            return "the network gave more than two predictions for each sample"
        shapes = {tuple(part.shape) for part in parts}
        parts = [_as_stepped(part, output) for part in parts]
        if any(part.shape != output.shape for part in parts):
            return (
                f"the network's predictions are {', '.join(map(str, sorted(shapes)))}, the scheduler's {tuple(output.shape)}"
            )
        narrowest = max(torch.finfo(tensor.dtype).eps for tensor in (output, *parts))
        tolerance = max(2 * narrowest, EXACT)
        wide = wide_dtype(output, parts[0])
        v, a, b = output.to(wide), parts[0].to(wide), parts[-1].to(wide)
        same, negated = (_fit(v, sign * a, sign * b, to_velocity) for sign in (1, -1))  # pipelines may step -v (Z-Image)
        better = same[-1] <= negated[-1]
        scale, power, norm, misfit = (torch.where(better, x, y) for x, y in zip(same, negated, strict=True))
        return Guidance(scale, power, norm, misfit / tolerance, len(parts))


def watch(pipeline: Any, recorder: Any) -> Callable[[], None]:
    """Let ``recorder`` see what the networks of the pipeline put out, unless it does; the result ends that."""
    if recorder.predictions is not None:  # a record around this one has begun it, and will end it
        return lambda: None
    predictions = recorder.predictions = Predictions()
    networks = {network for name in NETWORKS if isinstance(network := getattr(pipeline, name, None), torch.nn.Module)}
    handles = [network.register_forward_hook(predictions.keep) for network in networks]

    def undo() -> None:
        recorder.predictions = None
        for handle in handles:
            handle.remove()

    return undo


def _fit(
    v: torch.Tensor, a: torch.Tensor, b: torch.Tensor, to_velocity: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scale, conditional power, norm and relative misfit of ``v = a + s (b - a)``. The conditional one is the nearer: with
    a scale of at least 1, ``v`` lies beyond it."""
    d = b - a
    along, length = ((v - a) * d).flatten(1).sum(1), squared_norm(d)
    tiny = torch.finfo(length.dtype).tiny
    # samples that are not finite do not spoil the others
    s = _finite(along).sum() / _finite(length).sum().clamp(min=tiny)
    is_first = s < 0.5
    scale = torch.where(is_first, 1 - s, s)
    reach = squared_norm(v).sqrt() + s.abs() * length.sqrt()
    off = distance(v - a, s * d) + (1 - scale).clamp(min=0) * length.sqrt()
    misfit = _finite(off / reach.clamp(min=tiny)).amax()
    power = squared_norm(to_velocity(torch.where(is_first, a, b)))
    return scale, power, distance(to_velocity(b), to_velocity(a)), misfit


def _finite(values: torch.Tensor) -> torch.Tensor:
    return values.nan_to_num(0, 0, 0)


def _tensor(output: Any) -> torch.Tensor | None:
    """The prediction in what a network returned: a tensor, a list of one for each sample (Z-Image), or what begins with
    either; None of anything else."""
    if isinstance(output, Mapping):  # diffusers' outputs, too
        output = tuple(output.values())
    if isinstance(output, tuple) and output:
        return _tensor(output[0])
    if isinstance(output, list) and all(isinstance(one, torch.Tensor) for one in output):
        output = torch.stack(output) if len({one.shape for one in output}) == 1 else None
    return output if isinstance(output, torch.Tensor) and output.ndim else None


def _as_stepped(part: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Without the channels or tokens that the scheduler does not step, and with its empty dimensions, if that is all."""
    if part.ndim == output.ndim:
        part = part[:, : output.shape[1]]
    return part.reshape(output.shape) if part.squeeze().shape == output.squeeze().shape else part
