"""The record of classifier-free guidance: against predictions computed apart, and where the velocity is no such thing."""

import warnings

import matrix.ltx
import matrix.qwenimage
import matrix.z_image  # noqa: F401 (the three register their builders)
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks
from matrix.registry import BUILDERS
from tiny_diffusion import DIFFUSION, diffusion_call
from tiny_pipelines import TINY, call_kwargs

from diffusers_kts import (
    ClassConditionalFlowPipeline,
    KPECallback,
    KPEMonitorPipeline,
    KPETrace,
    KTSAdaptiveFlowMatchScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    embedded_model,
)
from diffusers_kts.kpe.recording import recording


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipe():
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model("generalizing"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def call():
    return {"class_labels": [3, 8, 0], "latents": randn(3, 1, 28, 28), "num_inference_steps": 5, "output_type": "latent"}


def monitored(pipe, **arguments):
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    monitor.record_guidance = True
    return monitor(**arguments)[0], monitor.kpe


def parts(pipe, call, scale, sigmas, interval):
    """(B, N) ``||v_c||^2``, ``||v_c - v_u||`` and ``<v_c, v_c - v_u>`` of an Euler run written out."""
    x, labels, rows = call["latents"], torch.tensor(call["class_labels"]), []
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        with torch.no_grad():
            c, u = (
                pipe.transformer(x, timestep=(1000 * sigma).expand(len(x)), class_labels=classes, return_dict=False)[0]
                for classes in (labels, torch.full_like(labels, pipe.num_classes))
            )
        guided = interval[0] <= 1 - sigma <= interval[1]
        d = c - u if guided else torch.zeros_like(c)
        rows.append([part.flatten(1).sum(1) for part in (c * c, d * d, c * d)])
        x = x + (after - sigma) * (c + (scale - 1) * d)
    power, squared, cross = (torch.stack(column, 1) for column in zip(*rows, strict=True))
    return power, squared.sqrt(), cross


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("shaped", [False, True])
def test_the_parts_are_those_of_the_networks_two_predictions(pipe, call, interval, shaped, monkeypatch):
    if shaped:
        monkeypatch.setattr(pipe, "scheduler", KTSFlowMatchScheduler(alpha_0=0.0, beta_0=0.0))
    guidance = {"guidance_scale": 2.0, "guidance_start": interval[0], "guidance_end": interval[1]}
    images, trace = monitored(pipe, **guidance, **call)
    assert torch.equal(images, pipe(**guidance, **call).images)
    assert not pipe.transformer._forward_hooks and (not shaped or pipe.scheduler.recorder.predictions is None)
    power, norm, cross = parts(pipe, call, 2.0, trace.sigmas, interval)
    torch.testing.assert_close(trace.conditional_power, power, rtol=1e-4, atol=0)
    torch.testing.assert_close(trace.guidance_norm, norm, rtol=1e-3, atol=1e-6)
    guided = (trace.t[:-1] >= interval[0]) & (trace.t[:-1] <= interval[1])
    torch.testing.assert_close(trace.guidance_scale, (1.0 + guided).expand(3, 5), rtol=1e-4, atol=0)
    rest = trace.model_energy.total - trace.conditional_energy.total - trace.guidance_energy.total
    torch.testing.assert_close(rest, cross @ trace.weights.float(), rtol=1e-3, atol=1e-3)
    assert (trace.guidance_energy.early > 0).all() and trace.guidance_energy.d == 784


def test_without_two_predictions_there_is_nothing_to_record(pipe, call):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = monitored(pipe, **call)[1]
        distilled = monitored(TINY["flux"](), **call_kwargs("flux"))[1]  # its guidance is an input of the network
    for trace in (plain, distilled):
        assert trace.guidance_scale is trace.conditional_power is trace.guidance_norm is None
        assert "mean_guidance_norm" not in trace.to_dict()
        with pytest.raises(ValueError, match="record_guidance = True"):
            _ = trace.conditional_energy


def ask_more(pipe, step, timestep, tensors):
    classes = torch.tensor([1, 1, 1])
    pipe.transformer(tensors["latents"], timestep=timestep.expand(3), class_labels=classes)
    return tensors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"guidance_scale": 0.5}, "at step 0 the velocity is no"),
        ({"guidance_scale": 2.0, "callback_on_step_end": ask_more}, "at step 1 the network gave more than two predictions"),
    ],
)
def test_what_is_no_such_guidance_is_left_out_with_one_warning(pipe, call, arguments, reason):
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        trace = monitored(pipe, **arguments, **call)[1]
    assert len(warned) == 1 and trace.guidance_norm is None and trace.num_steps == 5


TWO = {"prompt": ["a fox", "a hare"], "negative_prompt": ["blurry", ""]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "scale", "guided", "unguided"),
    [
        ("sd3", 3.5, TWO, {"guidance_scale": 1.0}),  # one call of twice the batch
        ("flux", 3.0, TWO | {"true_cfg_scale": 3.0}, {"negative_prompt": None}),  # two calls
        ("wan", 3.5, {}, {"guidance_scale": 1.0}),
        ("sd15", 7.5, {}, {"guidance_scale": 1.0}),  # the network predicts noise
    ],
)
def test_pipelines_of_either_form_are_split(name, scale, guided, unguided, dtype):
    pipe = (DIFFUSION | TINY)[name]().to(dtype=dtype)
    arguments = lambda more: (diffusion_call if name in DIFFUSION else call_kwargs)(name, **guided | more)  # noqa: E731
    energy = KPECallback(pipe, record_guidance=True)
    images = pipe(**arguments({}), callback_on_step_end=energy)[0]
    assert torch.equal(images, pipe(**arguments({}))[0])
    tolerance = 1e-3 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(energy.kpe.guidance_scale, torch.full_like(energy.kpe.power, scale), rtol=tolerance, atol=0)
    pipe(**arguments(unguided), callback_on_step_end=(alone := KPECallback(pipe)))
    first = energy.kpe.conditional_power[:, 0]  # the conditional prediction of the same noise
    torch.testing.assert_close(first, alone.kpe.power[:, 0], rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("scheduler", "settings"),
    [
        (KTSFlowMatchScheduler, {}),
        (KTSFlowMatchHeunScheduler, {}),
        (KTSAdaptiveFlowMatchScheduler, {"energy_budget": 1.0}),
    ],
)
def test_levels_above_one_are_split_as_with_the_stock_scheduler(scheduler, settings):
    pipe, traces = TINY["sd3"](), []
    for twin in (pipe.scheduler, scheduler.from_config(pipe.scheduler.config, **settings)):
        pipe.scheduler = twin
        traces.append(monitored(pipe, **call_kwargs("sd3", guidance_scale=3.5, sigmas=[4.0, 2.0, 1.0, 0.5]))[1])
    stock, ours = traces
    torch.testing.assert_close(ours.guidance_scale, torch.full_like(ours.power, 3.5), rtol=1e-3, atol=0)
    for name in ("conditional_power", "guidance_norm"):  # at the noise, where both runs are the same
        torch.testing.assert_close(getattr(ours, name)[:, 0], getattr(stock, name)[:, 0])


@pytest.mark.parametrize("shaped", [False, True])
def test_tokens_are_split_by_their_own_intervals(shaped):
    """LTX with a picture given at half strength: its tokens begin at flow time 0.5."""
    tiny, seen = BUILDERS["LTXConditionPipeline"](), []
    if shaped:
        tiny.pipe.scheduler = KTSFlowMatchScheduler.from_config(tiny.pipe.scheduler.config, alpha_0=0.1)
    keep = lambda network, args, kwargs, output: seen.append((kwargs["timestep"].chunk(2)[0] / 1000, *output[0].chunk(2)))  # noqa: E731
    tiny.pipe.transformer.register_forward_hook(keep, with_kwargs=True)
    trace = monitored(tiny.pipe, **tiny.call() | {"strength": 0.5})[1]
    powers, norms, shares = [], [], []
    for i, (sigmas, u, c) in enumerate(seen):
        lower = [[max(level for level in (*trace.sigmas, 0.0) if level < s - 1e-6) for s in row] for row in sigmas]
        share = (sigmas - torch.tensor(lower))[..., None] / (trace.sigmas[i] - trace.sigmas[i + 1])
        powers.append((share * c**2).sum((1, 2)))
        norms.append((share * (c - u) ** 2).sum((1, 2)).sqrt())
        shares.append(share)
    assert any(((share > 0) & (share < 0.99)).any() for share in shares)
    torch.testing.assert_close(trace.conditional_power, torch.stack(powers, 1), rtol=1e-4, atol=0)
    torch.testing.assert_close(trace.guidance_norm, torch.stack(norms, 1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(trace.guidance_scale, torch.full_like(trace.power, 3.0), rtol=1e-3, atol=0)


class Exported:
    """A network that is no torch module, as one exported to another runtime."""

    def __init__(self, network):
        self.run, self.config, self.dtype = network.forward, network.config, network.dtype

    def __call__(self, *args, **kwargs):
        return self.run(*args, **kwargs)


def test_a_network_that_is_no_module_is_run_but_not_seen(pipe, call, monkeypatch):
    expected = pipe(guidance_scale=2.0, **call).images
    monkeypatch.setitem(vars(pipe), "transformer", Exported(pipe.transformer))
    with pytest.warns(RuntimeWarning, match="at step 0 no output of the pipeline's transformer or unet was seen"):
        images, trace = monitored(pipe, guidance_scale=2.0, **call)
    assert torch.equal(images, expected) and trace.guidance_norm is None and (trace.power > 0).all()


def test_a_callback_asks_on_a_monitored_pipeline_too(pipe, call):
    expected, monitor = monitored(pipe, guidance_scale=2.0, **call)[1], KPEMonitorPipeline.from_pipe(pipe)
    for measured in (monitor, None):
        energy = KPECallback(measured, record_turn=True, record_guidance=True)
        monitor(guidance_scale=2.0, callback_on_step_end=MultiPipelineCallbacks([energy]), **call)
        assert torch.equal(energy.kpe.guidance_norm, expected.guidance_norm)
        assert monitor.kpe.turn is not None and monitor.kpe.guidance_norm is not None
    monitor(guidance_scale=2.0, **call)
    assert monitor.kpe.turn is None and monitor.kpe.guidance_norm is None


@pytest.mark.parametrize("shaped", [False, True])
def test_a_record_within_another_uses_its_predictions(pipe, call, shaped, monkeypatch):
    if shaped:
        monkeypatch.setattr(pipe, "scheduler", KTSFlowMatchScheduler())
    expected, hooks = monitored(pipe, guidance_scale=2.0, **call)[1], set()

    def look(*arguments):
        hooks.add(len(pipe.transformer._forward_hooks))
        return arguments[-1]

    with recording(pipe, record_guidance=True) as outer:
        inner = monitored(pipe, guidance_scale=2.0, callback_on_step_end=look, **call)[1]
        predictions = pipe.scheduler.recorder.predictions
        assert predictions is not None and not predictions.outputs and hooks == {1}
        again = pipe(guidance_scale=2.0, **call) and outer.traces()[-1]
    for trace in (inner, again):
        assert torch.equal(trace.guidance_norm, expected.guidance_norm)
    assert not pipe.transformer._forward_hooks


def test_negated_velocities_and_rescaled_guidance():
    tiny = BUILDERS["ZImagePipeline"]()
    trace = monitored(tiny.pipe, **tiny.call() | {"guidance_scale": 4.0})[1]
    torch.testing.assert_close(trace.guidance_scale, torch.full_like(trace.power, 5.0))  # c + 4 (c - u)
    tiny = BUILDERS["QwenImagePipeline"]()
    with pytest.warns(RuntimeWarning, match="rescaled"):
        assert monitored(tiny.pipe, **tiny.call())[1].guidance_scale is None


def test_a_prediction_that_is_not_finite_spoils_no_other_sample(pipe, call):
    whole = monitored(pipe, guidance_scale=2.0, **call)[1]
    call["latents"][1] = float("nan")
    with pytest.warns(RuntimeWarning, match="not finite"):
        trace = monitored(pipe, guidance_scale=2.0, **call)[1]
    rows = [0, 2]
    torch.testing.assert_close(trace.take(rows).guidance_norm, whole.take(rows).guidance_norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(trace.guidance_scale, whole.guidance_scale)


def test_warnings_point_to_the_line_that_reads_the_record(pipe, call):
    call["latents"][1] = float("nan")
    with recording(pipe, record_guidance=True) as session:
        pipe(guidance_scale=0.5, **call)
    with pytest.warns(RuntimeWarning) as warned:
        session.recorders[0].trace()
    assert [warning.filename for warning in warned] == [__file__, __file__]


def test_the_record_is_kept_joined_and_tabulated(pipe, call, tmp_path):
    trace = monitored(pipe, guidance_scale=2.0, **call)[1]
    trace.save(tmp_path / "trace")
    joined = KPETrace.cat([KPETrace.load(tmp_path / "trace"), trace.take([2])])
    assert torch.equal(joined.guidance_energy.total, trace.guidance_energy.total[[0, 1, 2, 2]])
    table = joined.to_pandas()
    assert table["conditional_energy_total"].tolist() == joined.conditional_energy.total.tolist()
    assert table["mean_guidance_norm"].tolist() == joined.guidance_norm.mean(1).tolist()
    assert joined.to_pandas(per_step=True)["guidance_norm"].tolist() == joined.guidance_norm.flatten().tolist()
    with pytest.raises(ValueError, match="differ"):
        KPETrace.cat([trace, monitored(pipe, **call)[1]])
    with pytest.raises(ValueError, match=r"guidance_norm is \(3,\)"):
        KPETrace(trace.power, trace.sigmas, trace.t, trace.gains, 0.6, trace.d, guidance_norm=torch.ones(3))
