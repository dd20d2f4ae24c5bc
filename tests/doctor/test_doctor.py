"""kts doctor and diagnose: on real tiny pipelines, and on what is none."""

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LongCatAudioDiTPipeline,
    PNDMScheduler,
    SCMScheduler,
    StableDiffusion3InpaintPipeline,
    VisualClozePipeline,
)
from tiny_diffusion import DIFFUSION
from tiny_pipelines import (
    TINY,
    _flux_components,
    _image_vae,
    _sd3_components,
    tiny_flux,
    tiny_sd3,
    tiny_sd3_img2img,
    tiny_wan,
)

import diffusers_kts
from diffusers_kts import KTSFlowMatchScheduler, KTSUniPCMultistepScheduler, diagnose
from diffusers_kts.sampling.find import load_schedulers

USED = {
    "sd3": "KTSFlowMatchScheduler",
    "flux": "KTSFlowMatchScheduler",
    "wan": "KTSUniPCMultistepScheduler",
    "sd15": "KTSDDIMScheduler",
    "sdxl": "KTSEulerDiscreteScheduler",
}


@pytest.mark.parametrize("name", USED)
def test_the_line_to_paste_works_and_does_what_was_said(name):
    pipe = (TINY | DIFFUSION)[name]()
    before = vars(pipe).copy()
    diagnosis = diagnose(pipe, alpha_0=0.2)
    assert vars(pipe) == before and diagnosis.can_shape
    (found,) = diagnosis.schedulers
    assert found.use == USED[name] and found.found == type(pipe.scheduler).__name__
    assert "as it is: energy per dim" in diagnosis.trial and "the result changes by" in diagnosis.trial
    exec(found.code, {"pipe": pipe})
    ours = pipe.scheduler
    assert type(ours) is getattr(diffusers_kts, found.use) and ours.config.alpha_0 == 0.2
    steps = diagnosis.num_inference_steps
    as_flux = {"sigmas": [1 - i / steps for i in range(steps)], "mu": 1.15}
    ours.set_timesteps(**(as_flux if name == "flux" else {"num_inference_steps": steps}))
    assert found.table == ours.schedule_table() and found.landing_steps > 0
    assert found.net_displacement == pytest.approx(ours.net_displacement())
    text = str(diagnosis)
    assert found.code.splitlines()[1] in text and f"{found.net_displacement:.4f} of 1" in text and "landing" in text
    again = diagnose(pipe, trial=False)
    assert "shapes already" in again.schedulers[0].code and not again.trial


def test_a_late_start_is_told_with_the_displacement_that_remains():
    (found,) = diagnose(tiny_sd3_img2img(), trial=False, beta_0=0.05, alpha_0=0.0).schedulers
    begin, displacement = found.late_start
    assert begin == 20 and displacement < found.net_displacement  # strength 0.6 of 50 steps
    assert any("stays in the image as noise" in warning for warning in found.warnings)
    assert "at the default strength it begins at step 20" in str(found)


def test_few_steps_and_runs_without_landing_are_told():
    found = diagnose(tiny_flux(), num_inference_steps=2, trial=False).schedulers[0]
    assert any("distilled" in warning for warning in found.warnings)
    assert any("beta_0 does nothing" in warning for warning in found.warnings)


def test_a_single_training_timestep_has_a_schedule_all_the_same():
    pipe = tiny_sd3()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1)  # StableAudio3, AceStep
    found = diagnose(pipe, trial=False).schedulers[0]
    assert found.landing_steps == 11 and found.schedule == "sigmas from 1 to 1/28, shift 1"


def test_schedulers_that_pipelines_hide_or_lose_are_told():
    with torch.random.fork_rng(devices=[]):
        cloze = VisualClozePipeline(**_flux_components())
        lost = LongCatAudioDiTPipeline(_image_vae(), None, None, tiny_sd3().transformer)
        inpaint = StableDiffusion3InpaintPipeline(**_sd3_components())
    diagnosis = diagnose(cloze, trial=False)
    by_name = {found.name: found for found in diagnosis.schedulers}
    assert set(by_name) == {"scheduler", "generation_pipe.scheduler", "upsampling_pipe.scheduler"}
    assert "takes no step" in by_name["scheduler"].warnings[0]
    for name in ("generation_pipe.scheduler", "upsampling_pipe.scheduler"):
        assert f"set pipe.{name} too" in by_name[name].warnings[0]
        exec(by_name[name].code, {"pipe": cloze})
    assert type(cloze.generation_pipe.scheduler) is KTSFlowMatchScheduler
    found = diagnose(lost, trial=False).schedulers[0]
    assert "save_pretrained does not save it" in found.warnings[0]
    assert found.table[0]["t"] == pytest.approx(0, abs=1e-3) and found.table[0]["phase"] == "launch"  # it counts upwards
    assert any("known region is overwritten" in note for note in diagnose(inpaint, trial=False).notes)


@pytest.mark.parametrize(
    ("scheduler", "use", "words"),
    [
        (FlowMatchLCMScheduler(), None, "re-noises"),
        (SCMScheduler(), None, "no plain solver"),
        (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), None, "re-noises every step"),
        (DEISMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"), "KTSFlowMatchScheduler", "Euler"),
        (PNDMScheduler(skip_prk_steps=True), "KTSDPMSolverMultistepScheduler", "takes its place"),
    ],
)
def test_other_schedulers_get_a_substitute_or_a_reason(scheduler, use, words):
    pipe = tiny_sd3()
    pipe.scheduler = scheduler
    diagnosis = diagnose(pipe, trial=False)
    assert diagnosis.schedulers[0].use == use and diagnosis.can_shape == (use is not None)
    assert words in str(diagnosis)


def test_the_trial_says_what_failed():
    pipe = tiny_sd3()
    pipe.tokenizer = None
    assert "not possible with guessed arguments" in diagnose(pipe).trial
    pipe.transformer = pipe.vae = pipe.text_encoder = pipe.text_encoder_2 = pipe.text_encoder_3 = None
    assert diagnose(pipe).trial == "none, since its models are not loaded"


def test_command_on_folders(kts, tmp_path):
    pipe = tiny_wan()
    pipe.scheduler = KTSUniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "wan")
    code, out, _ = kts("doctor", "--model", tmp_path / "wan", "--num-inference-steps", 6)
    assert code == 0 and "WanPipeline, 6 steps" in out and "energy per dim" in out
    code, out, _ = kts("doctor", "--model", "memorizing", "--touchdown", 0.7, "--no-trial")
    assert code == 0 and "touchdown" in out and "touchdown=0.7" in out and "trial" not in out
    pipe = tiny_sd3()
    pipe.scheduler = FlowMatchLCMScheduler()
    pipe.save_pretrained(tmp_path / "lcm")
    code, out, err = kts("doctor", "--model", tmp_path / "lcm", "--no-trial")
    assert code == 2 and "re-noises" in out and "Traceback" not in err


def test_only_the_schedulers_of_large_models_are_loaded(monkeypatch, tmp_path):
    tiny_sd3().save_pretrained(tmp_path)
    monkeypatch.setattr("diffusers_kts.sampling.find.LIGHT_BYTES", 0)
    pipe = load_schedulers(str(tmp_path))
    assert isinstance(pipe, DiffusionPipeline) and pipe.transformer is None and pipe.vae is None
    diagnosis = diagnose(pipe)
    assert diagnosis.schedulers[0].use == "KTSFlowMatchScheduler" and "not loaded" in diagnosis.trial


@pytest.mark.parametrize("broken", ["missing", "empty", "damaged"])
def test_what_is_no_pipeline_is_refused_in_one_sentence(kts, tmp_path, broken):
    if broken != "missing":
        (tmp_path / "model").mkdir()
    if broken == "damaged":
        (tmp_path / "model" / "model_index.json").write_text("{")
    code, out, err = kts("doctor", "--model", tmp_path / "model")
    assert code == 2 and err.startswith("kts: ") and "Traceback" not in err and not out
    assert "no folder; give a pipeline folder, a Hub id" in err or broken != "missing"


def test_wrong_arguments_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="give a diffusers pipeline"):
        diagnose("stabilityai/stable-diffusion-3.5-medium")
    with pytest.raises(ValueError, match="at most 0.0524"):
        diagnose(tiny_sd3(), beta_0=0.5)


def test_a_shift_that_acts_twice_is_told():
    pipe = tiny_sd3()
    (found,) = diagnose(pipe, trial=False).schedulers
    assert any("13243" in note and "0.0089, not 0.0030" in note for note in found.notes)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    assert not any("13243" in note for note in diagnose(pipe, trial=False).schedulers[0].notes)
    assert not any("13243" in note for note in diagnose(tiny_flux(), trial=False).schedulers[0].notes)
