"""Run in a clean process by test_hub_loading.py, with the hub offline: loads what ``kts publish`` built, from local folders.

    python hub_loading.py without|with FOLDER

``without``: diffusers_kts cannot be imported. ``FOLDER`` holds "scheduler", "model" and "sd3", a stock pipeline.
"""

import json
import sys
from pathlib import Path

mode, root = sys.argv[1], Path(sys.argv[2])
if mode == "without":
    sys.modules["diffusers_kts"] = None  # as where it is not installed
sys.path.insert(0, str(Path(__file__).parent))

import torch  # noqa: E402
from diffusers import AutoModel, DiffusionPipeline, StableDiffusion3Pipeline  # noqa: E402
from tiny_pipelines import call_kwargs  # noqa: E402

found: dict = {}
repo = str(root / "scheduler")
NOISE = torch.Generator


def images(pipe, **kwargs):
    return pipe(["Bag"], num_inference_steps=4, generator=NOISE().manual_seed(0), output_type="pt", **kwargs).images


# the scheduler
if mode == "with":
    from diffusers_kts import ClassConditionalFlowPipeline, KTSFlowMatchScheduler

    scheduler = KTSFlowMatchScheduler.from_pretrained(repo, subfolder="scheduler")
else:
    scheduler = AutoModel.from_pretrained(repo, subfolder="scheduler", trust_remote_code=True)
    try:
        AutoModel.from_pretrained(repo, subfolder="scheduler")
    except ValueError as error:
        found["untrusted"] = str(error)
found["scheduler"] = [type(scheduler).__name__, scheduler.config.beta_0]
pipe = StableDiffusion3Pipeline.from_pretrained(root / "sd3")
pipe.scheduler = type(scheduler).from_config(pipe.scheduler.config, beta_0=0.02)
shaped = pipe(**call_kwargs("sd3")).images
found["sd3"] = [pipe.scheduler.shift, float(shaped.sum()), float(pipe.scheduler.kpe.path_energy.total)]

# a pipeline folder that names our scheduler
model = str(root / "model")
if mode == "with":
    pipe = ClassConditionalFlowPipeline.from_pretrained(model, trust_remote_code=True)
else:
    pipe = DiffusionPipeline.from_pretrained(model, custom_pipeline=model, trust_remote_code=True)
found["model"] = [
    type(pipe).__name__,
    type(pipe.scheduler).__name__,
    pipe.scheduler.config.touchdown,
    float(images(pipe).sum()),
]
pipe.save_pretrained(root / f"saved-{mode}")
found["saved"] = json.loads((root / f"saved-{mode}" / "model_index.json").read_text())["scheduler"]

# the monitor as a community pipeline
# diffusers keeps local files by name alone, so a process that has the pipeline.py of the model needs another name here
renamed = root / f"monitor_{mode}.py"
renamed.write_text(Path(repo, "pipeline.py").read_text())
for custom in (repo, str(renamed)) if mode == "with" else (str(renamed),):
    pipe = DiffusionPipeline.from_pretrained(root / "sd3", custom_pipeline=custom, trust_remote_code=True)
    out = pipe(**call_kwargs("sd3"))
    found["monitor"] = [isinstance(pipe, StableDiffusion3Pipeline), float(out.images.sum()), float(out.kpe.path_energy.total)]

# a modular block
from diffusers.modular_pipelines import ModularPipelineBlocks, StableDiffusion3AutoBlocks  # noqa: E402

block = ModularPipelineBlocks.from_pretrained(repo, trust_remote_code=True)
modular = block.around(StableDiffusion3AutoBlocks()).init_pipeline()
modular.update_components(**{n: c for n, c in StableDiffusion3Pipeline.from_pretrained(root / "sd3").components.items()
                             if n in modular.component_names})  # fmt: skip
call = {"prompt": "a red fox in the snow", "height": 32, "width": 32, "num_inference_steps": 4, "output_type": "latent"}
state = modular(**call, generator=NOISE().manual_seed(0), beta_0=0.02)
found["modular"] = [type(modular.scheduler).__name__, list(state.get("kpe").power.shape), float(state.get("kpe").per_dim[0])]
plain = modular(**call, generator=NOISE().manual_seed(0), alpha_0=0.0, beta_0=0.0)
found["modular_gains"] = [state.get("kpe").gains.tolist(), plain.get("kpe").gains.tolist()]
print("FOUND " + json.dumps(found))
