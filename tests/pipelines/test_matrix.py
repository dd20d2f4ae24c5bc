"""Every flow pipeline class of diffusers, tiny, against the checks of `matrix.checks`: a slice, or all by --all-pipelines."""

import functools
import re
from pathlib import Path

import pytest
from matrix.checks import CHECKS, Case
from matrix.derive import NOT_FLOW, flow_pipelines
from matrix.registry import BUILDERS, NOT_BUILT, load_families

from diffusers_kts import KTSFlowMatchScheduler

SLICE = {  # what each stands for
    "FluxPipeline": "packed latents, a shift that depends on the resolution",
    "FluxInpaintPipeline": "late start, latents blended between steps",
    "StableDiffusion3Img2ImgPipeline": "late start",
    "QwenImagePipeline": "two forward passes a step",
    "ZImagePipeline": "lists of latents, a negated velocity",
    "BriaPipeline": "an exact test of the scheduler's type",
    "VisualClozePipeline": "schedulers of pipelines inside it",
    "SanaPipeline": "DPM-Solver, converted",
    "SanaSprintPipeline": "trigonometric flow, refused",
    "WanPipeline": "UniPC, converted",
    "LTXConditionPipeline": "a noise level per token",
    "LTX2Pipeline": "a copy of the scheduler for audio",
    "MochiPipeline": "flow time counts upwards",
    "Cosmos2TextToImagePipeline": "noise levels up to 80, written by the pipeline",
    "HunyuanVideoFramepackPipeline": "several runs a call",
    "LongCatAudioDiTPipeline": "a scheduler that is lost on saving",
    "FluxModularPipeline": "blocks, without callbacks",
}

load_families()


@functools.lru_cache(maxsize=1)
def case_of(name):
    return Case(BUILDERS[name]())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SLICE else pytest.mark.beyond_slice) for name in BUILDERS], scope="module"
)
@pytest.mark.parametrize("check", CHECKS)
def test_pipeline(name, check):
    case = case_of(name)
    if limit := case.tiny.limits.get(check):
        with pytest.raises(Exception, match=limit.error):
            CHECKS[check](case)
    else:
        CHECKS[check](case)


def test_a_scheduler_set_on_the_combined_visualcloze_pipeline_alone_is_never_asked():
    """Its two parts hold schedulers of their own, so this one shapes nothing: set those of the parts."""
    pipe = BUILDERS["VisualClozePipeline"]()
    pipe.pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.pipe.scheduler.config, alpha_0=0.2)
    pipe.pipe(**pipe.call())
    assert pipe.pipe.scheduler.kpe is None


def test_the_support_table_lists_every_class():
    table = (Path(__file__).parents[2] / "docs" / "pipelines.md").read_text("utf-8")
    listed = re.findall(r"^\| (\w+(?:Pipeline|Refiner)) \|", table, re.M)
    assert sorted(listed) == sorted(flow_pipelines()), "run python tools/pipeline_support.py"


def test_every_flow_pipeline_of_diffusers_is_built_or_has_a_reason():
    derived = set(flow_pipelines())
    missing = derived - BUILDERS.keys() - NOT_BUILT.keys()
    assert not missing, f"not covered yet: {', '.join(sorted(missing))}; add builders to tests/matrix, or reasons to NOT_BUILT"
    assert BUILDERS.keys().isdisjoint(NOT_BUILT)
    assert BUILDERS.keys() | NOT_BUILT.keys() <= derived, "built or excused, but no flow pipeline of this diffusers"
    assert derived.isdisjoint(NOT_FLOW) and derived >= SLICE.keys()
