"""What ``kts publish`` builds loads in a clean process with the hub offline, with and without this package installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pipelines import call_kwargs, tiny_sd3

from diffusers_kts import PRESETS, ClassConditionalFlowPipeline, KPEMonitorPipeline, KTSFlowMatchScheduler, embedded_model
from diffusers_kts.publish.folders import BUILDERS
from diffusers_kts.publish.settings import PublishSettings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny_sd3().save_pretrained(folder / "sd3")
    for kind, preset in (("scheduler", "balanced"), ("model", "touchdown")):
        (folder / kind).mkdir()
        BUILDERS[kind](folder / kind, PublishSettings(kind, preset=preset, results=RESULTS, dry_run=True))
    return folder


@pytest.mark.parametrize("mode", ["with", "without"])
def test_published_folders_load_in_a_clean_process(root, mode):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / f"modules-{mode}")}
    script = Path(__file__).parents[1] / "hub_loading.py"
    done = subprocess.run([sys.executable, script, mode, root], capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    found = json.loads(lines[0].removeprefix("FOUND "))

    assert found["scheduler"] == ["KTSFlowMatchScheduler", 0.01]
    pipe = tiny_sd3()
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, beta_0=0.02)
    expected = pipe(**call_kwargs("sd3")).images
    assert found["sd3"] == pytest.approx([3.0, float(expected.sum()), float(pipe.scheduler.kpe.path_energy.total)], rel=1e-4)

    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **PRESETS["touchdown"])
    images = pipe(["Bag"], num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert found["model"][:3] == ["ClassConditionalFlowPipeline", "KTSFlowMatchScheduler", 0.7]
    assert found["model"][3] == pytest.approx(float(images.sum()), rel=1e-4)
    assert found["saved"] == ["diffusers_kts", "KTSFlowMatchScheduler"]  # so it loads where the package is

    monitor = KPEMonitorPipeline.from_pipe(tiny_sd3())
    out = monitor(**call_kwargs("sd3"))
    assert found["monitor"] == pytest.approx([True, float(out.images.sum()), float(out.kpe.path_energy.total)], rel=1e-4)

    assert found["modular"][:2] == ["KTSFlowMatchScheduler", [1, 4]] and found["modular"][2] > 0
    shaped, plain = found["modular_gains"]
    assert plain == [1.0] * 4 and shaped != plain
    if mode == "without":
        assert "trust_remote_code" in found["untrusted"]
