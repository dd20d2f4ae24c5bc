"""Modular Diffusers: a block that puts KTSFlowMatchScheduler in place and one that hands out the energy record.

blocks = KTSBlock().around(StableDiffusion3AutoBlocks())
pipe = blocks.init_pipeline("stabilityai/stable-diffusion-3.5-medium")
pipe.load_components()
state = pipe(prompt="a photo of a cat", beta_0=0.02)
state.get("kpe").path_energy.total                          # (B,)
"""

from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines import (
    ComponentSpec,
    InputParam,
    ModularPipelineBlocks,
    OutputParam,
    SequentialPipelineBlocks,
)

from ..gain import Gain
from ..kpe.trace import KPETrace
from ..schedulers.scheduling_kts_flow_match import KTSFlowMatchScheduler
from ..shaping import SHAPING


class KTSBlock(ModularPipelineBlocks):
    """Goes before all blocks: replaces the pipeline's flow scheduler by a `KTSFlowMatchScheduler` of the same configuration.

    Shaping settings are inputs of the pipeline call, with the scheduler's names and defaults; ``alpha_0=0, beta_0=0`` measures
    only.
    """

    @property
    def description(self) -> str:
        return "Replaces the flow scheduler by KTSFlowMatchScheduler, which shapes the steps and records their energy."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", FlowMatchEulerDiscreteScheduler)]

    @property
    def inputs(self) -> list[InputParam]:
        described = "see KTSFlowMatchScheduler"
        return [InputParam(name, default=getattr(Gain, name, None), description=described) for name in SHAPING]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        settings = {name: getattr(self.get_block_state(state), name) for name in SHAPING}
        components.scheduler = KTSFlowMatchScheduler.from_config(components.scheduler.config, **settings)
        return components, state

    def around(self, blocks: ModularPipelineBlocks) -> SequentialPipelineBlocks:
        """``blocks`` with this block before them and a `KPEBlock` after them."""
        return SequentialPipelineBlocks.from_blocks_dict({"kts": self, "pipeline": blocks, "kpe": KPEBlock()})


class KPEBlock(ModularPipelineBlocks):
    """Goes after all blocks: puts the energy record of the run into the state as ``kpe`` (`KPETrace`)."""

    @property
    def description(self) -> str:
        return "Outputs the kinetic path energy of every sample of the run."

    @property
    def expected_components(self) -> list[ComponentSpec]:
        return [ComponentSpec("scheduler", FlowMatchEulerDiscreteScheduler)]

    @property
    def intermediate_outputs(self) -> list[OutputParam]:
        return [OutputParam("kpe", type_hint=KPETrace, description="energy record, (B, N) per sample and step")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        block_state = self.get_block_state(state)
        block_state.kpe = components.scheduler.kpe
        self.set_block_state(state, block_state)
        return components, state
