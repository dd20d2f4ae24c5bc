"""Diffusion models (epsilon, sample, v prediction) measured and shaped in flow coordinates."""

import itertools
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from shaped_reference import field, noise, order, run, solve
from tiny_diffusion import DIFFUSION, STABLE_DIFFUSION, diffusion_call

from diffusers_kts import (
    PRESETS,
    KPEMonitorPipeline,
    KTSDDIMScheduler,
    KTSDPMSolverMultistepScheduler,
    KTSEulerDiscreteScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
    save_with_stock_scheduler,
)
from diffusers_kts.kpe.recording import Session, attach, main_trace
from diffusers_kts.kpe.stock_schedulers import Schedule

OFF = PRESETS["off"]
SHAPED = {"alpha_0": 0.3, "beta_0": 0.04}
FIRST_ORDER = {KTSDDIMScheduler: DDIMScheduler, KTSEulerDiscreteScheduler: EulerDiscreteScheduler}
SECOND_ORDER = {
    KTSDPMSolverMultistepScheduler: DPMSolverMultistepScheduler,
    KTSUniPCMultistepScheduler: UniPCMultistepScheduler,
}
ALL = FIRST_ORDER | SECOND_ORDER
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def levels(scheduler):
    """(N + 1,) ``1 - t`` of the schedule."""
    return torch.tensor(Schedule.of(scheduler).levels, dtype=torch.float64)


def make(cls, steps, **settings):
    if issubclass(cls, DDIMScheduler):
        settings = {"clip_sample": False} | settings
    scheduler = cls(timestep_spacing="leading", **(STABLE_DIFFUSION | settings))
    scheduler.set_timesteps(steps)
    return scheduler


def state_scales(scheduler, i):
    """alpha and sigma of the sampler's state ``alpha x_0 + sigma eps`` before step i, or at the end for i = N."""
    t = 1 - levels(scheduler)[i]
    if isinstance(scheduler, EulerDiscreteScheduler):
        return torch.ones(()).double(), (1 - t) / t
    length = (t**2 + (1 - t) ** 2).sqrt()  # alpha^2 + sigma^2 = 1
    return t / length, (1 - t) / length


def predict(scheduler, i, x, v):
    """What a diffusion network says whose field in flow coordinates is ``v(X, t)``, as ``dX/d(1 - t)``."""
    alpha, sigma = state_scales(scheduler, i)
    t, flow = alpha / (alpha + sigma), x / (alpha + sigma)
    data, eps = flow - (1 - t) * v(flow, t), flow + t * v(flow, t)
    length = (alpha**2 + sigma**2).sqrt()
    kinds = {"epsilon": eps, "sample": data, "v_prediction": (alpha * eps - sigma * data) / length}
    return kinds[scheduler.config.prediction_type]


def run_diffusion(scheduler, x, v=field):
    """From the flow state ``x`` to the flow state at the end, with the sampler loop of diffusers' pipelines."""
    x = x * sum(state_scales(scheduler, 0))
    for i, timestep in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, timestep)  # Euler wants to be asked
        x = scheduler.step(predict(scheduler, i, x, v), timestep, x, return_dict=False)[0]
    return x / sum(state_scales(scheduler, len(scheduler.timesteps)))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("cls", FIRST_ORDER)
@pytest.mark.parametrize("settings", [SHAPED, OFF])
def test_ddim_and_euler_are_the_flow_scheduler_on_the_same_levels(cls, prediction, settings):
    """Path, gains and energies; and the energies of DDIM, of Euler and of a flow model compare."""
    ours = make(cls, 20, prediction_type=prediction, **settings)
    flow = KTSFlowMatchScheduler(**settings)
    flow.set_timesteps(sigmas=levels(ours)[:-1].tolist())
    flow.sigmas[-1] = levels(ours)[-1]  # DDIM of Stable Diffusion ends just above 0
    torch.testing.assert_close(run_diffusion(ours, noise()), run(flow, noise()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.gains, flow.gains, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.kpe.power, flow.kpe.power.to(ours.kpe.power.dtype), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.kpe.path_energy.early, flow.kpe.path_energy.early, rtol=1e-3, atol=1e-4)


# betas of a training schedule whose levels are even in flow time, where orders show without long transients
_T = 1 - torch.arange(1, 1001, dtype=torch.float64) / 1001
_SIGNAL = _T**2 / (_T**2 + (1 - _T) ** 2)
EVEN = {"trained_betas": (1 - _SIGNAL / torch.cat([torch.ones(1), _SIGNAL[:-1]])).tolist(), "steps_offset": 0}


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_shaped_samplers_converge_at_their_order_to_the_shaped_equation(cls, prediction):
    """The second-order ones on steps even in log-SNR, away from its infinite ends, where their analysis holds."""
    steps, ends, energies = (25, 50, 100), [], []
    for n in steps:
        scheduler = make(cls, n, prediction_type=prediction, **EVEN, **SHAPED)
        if cls in SECOND_ORDER:
            scheduler.sigmas = torch.linspace(3, -3, n + 1).exp()
        t = 1 - levels(scheduler)[[0, -1]]
        end, energy = solve(scheduler.gain, 0, *t.tolist())
        ends.append(float((run_diffusion(scheduler, noise()) - end).norm() / end.norm()))
        energies.append(float((scheduler.kpe.path_energy.total - energy).norm() / energy.norm()))
    expected = 0.9 if cls in FIRST_ORDER else 1.8
    assert order(ends, steps) > expected and order(energies, steps) > expected
    assert ends[-1] < (0.01 if cls in FIRST_ORDER else 2e-4)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("s", [1.0, 0.5])
def test_energies_have_the_closed_form_on_gaussian_data(cls, s):
    """Data ``N(0, s^2 I)``: ``v = X (t s^2 - (1 - t)) / g``, ``X_t = X_0 sqrt(g)``, ``g = t^2 s^2 + (1 - t)^2``."""

    def v(x, t):
        return -x * (t * s * s - (1 - t)) / (t * t * s * s + (1 - t) ** 2)

    errors = []
    for n in (50, 100, 200):
        scheduler = make(cls, n, **EVEN, **OFF)
        run_diffusion(scheduler, noise(), v)
        trace = scheduler.kpe
        start, end = trace.t[0], trace.t[-1]
        t = start + (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * (end - start)
        g = t * t * s * s + (1 - t) ** 2
        rate = ((t * s * s - (1 - t)) ** 2 / g).mean() * (end - start)
        exact = 0.5 * rate * noise().square().sum((1, 2)) / (start**2 * s * s + (1 - start) ** 2)
        errors.append(float(((trace.model_energy.total - exact) / exact).abs().max()))
    assert errors[-1] < (0.02 if cls in FIRST_ORDER else 2e-3)
    assert order(errors, (50, 100, 200)) > (0.8 if cls in FIRST_ORDER else 1.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", FIRST_ORDER)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"prediction_type": "sample", "timestep_spacing": "linspace"},
    ],
)
def test_off_is_bit_equal_to_the_parent(cls, options, dtype):
    if cls is KTSDDIMScheduler:
        options = options | {"clip_sample": True}
    stock = FIRST_ORDER[cls](**(STABLE_DIFFUSION | options))
    ours = cls.from_config(stock.config, **OFF)
    ends = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(7)
        x = noise(dtype=dtype)
        for timestep in scheduler.timesteps:
            x = scheduler.scale_model_input(x, timestep)
            out = scheduler.step(field(x.float(), timestep / 1000).to(dtype), timestep, x)
            x = out.prev_sample
        ends.append((x, out.pred_original_sample))
    assert torch.equal(ends[0][0], ends[1][0]) and torch.equal(ends[0][1], ends[1][1])
    assert torch.isfinite(ours.kpe.model_energy.total).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", FIRST_ORDER)
def test_a_small_gain_acts_in_half_precision(cls, dtype):
    moved, eps = [], torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0)).to(dtype)
    for alpha_0, v in ((0.005, eps), (0.005, eps.float()), (0.0, eps.float())):
        scheduler = make(cls, 10, alpha_0=alpha_0, beta_0=0.0, early_schedule="constant")
        x = 3 * torch.ones(1, 1_000_000)
        before = x / sum(state_scales(scheduler, 0))
        scheduler.scale_model_input(x, scheduler.timesteps[0])
        x = scheduler.step(v, scheduler.timesteps[0], x, return_dict=False)[0].double()
        moved.append(float(((x / sum(state_scales(scheduler, 1)) - before) * eps.double()).sum()))
    assert moved[1] / moved[2] == pytest.approx(1.005, abs=1e-4)
    assert moved[0] / moved[1] == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("cls", ALL)
def test_touchdown_ends_on_the_data_estimate_from_a_timestep_of_the_schedule(cls):
    cut, plain = make(cls, 20, touchdown=0.5, **SHAPED), make(cls, 20, **SHAPED)
    table = cut.schedule_table()
    assert len(cut.timesteps) < 20 and cut.timesteps.tolist() == plain.timesteps[: len(cut.timesteps)].tolist()
    assert [row["phase"] for row in table].count("touchdown") == 1
    assert table[-2]["t"] < 0.5 <= table[-1]["t"] and table[-1]["eta"] == 1
    x = noise() * sum(state_scales(cut, 0))
    for i, timestep in enumerate(cut.timesteps):
        cut.scale_model_input(x, timestep)
        x = cut.step(predict(cut, i, x, lambda x, t: (x + 1.5) / (1 - t)), timestep, x, return_dict=False)[0]
    torch.testing.assert_close(x, torch.full_like(x, -1.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", DIFFUSION)
def test_monitored_pipelines_give_the_same_bits_and_comparable_energies(name):
    pipe = DIFFUSION[name]()
    config = pipe.scheduler.config
    for stock in (DDIMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler):
        pipe.scheduler = stock.from_config(config)
        plain = torch.as_tensor(pipe(**diffusion_call(name))[0])
        monitor = KPEMonitorPipeline.from_pipe(pipe)
        out = monitor(**diffusion_call(name))
        assert torch.equal(torch.as_tensor(out[0]), plain) and type(pipe.scheduler) is stock
        assert out.kpe.num_steps == 4 and (out.kpe.model_energy.total > 0).all()
        assert not [key for key in vars(pipe.scheduler) if "kpe" in key]
        ours = next(ours for ours, parent in ALL.items() if parent is stock)
        pipe.scheduler = ours.from_config(config, **OFF)
        assert torch.equal(torch.as_tensor(pipe(**diffusion_call(name))[0]), plain)
        for field_name in ("power", "t", "sigmas", "weights"):
            torch.testing.assert_close(getattr(pipe.scheduler.kpe, field_name), getattr(out.kpe, field_name))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
@pytest.mark.parametrize("cls", ALL)
def test_shaping_drops_into_diffusion_pipelines(name, cls, tmp_path):
    pipe = DIFFUSION[name]()
    unclipped = {"clip_sample": False} if cls is KTSDDIMScheduler else {}
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **SHAPED, **unclipped)
    seen, step = [], type(pipe.scheduler).step

    class Spy(cls):
        def step(self, model_output, timestep, sample, *args, **kwargs):
            seen.append((model_output.clone(), sample.clone()))
            return step(self, model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler.__class__ = Spy
    shaped = pipe(**diffusion_call(name))[0]
    pipe.scheduler.__class__ = cls
    ours = pipe.scheduler
    if cls in FIRST_ORDER:  # the equation, by hand
        for i, ((eps, x), (_, after)) in enumerate(itertools.pairwise(seen)):
            (alpha, sigma), (alpha_after, sigma_after) = state_scales(ours, i), state_scales(ours, i + 1)
            v = (x - sigma * eps) / alpha - eps
            dt = alpha_after / (alpha_after + sigma_after) - alpha / (alpha + sigma)
            flow = x / (alpha + sigma) + ours.gains[i] * dt * v
            hand = flow * (alpha_after + sigma_after)
            torch.testing.assert_close(after.double(), hand.double(), rtol=1e-3, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers_kts", cls.__name__]
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(again(**diffusion_call(name))[0], shaped, atol=1e-4, rtol=1e-4)
    again.scheduler = cls.from_config(ours.config, **OFF)
    assert not torch.allclose(again(**diffusion_call(name))[0], shaped, atol=1e-3)


@pytest.mark.parametrize("cls", ALL)
def test_saved_for_those_without_this_package(cls, tmp_path):
    pipe = DIFFUSION["sd15"]()
    pipe.scheduler = cls.from_config(pipe.scheduler.config, **SHAPED)
    save_with_stock_scheduler(pipe, tmp_path)
    plain = DiffusionPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is cls and type(plain.scheduler) is ALL[cls]
    assert cls.from_config(plain.scheduler.config).config.alpha_0 == 0.3


def exploding(flow_levels):
    """Levels ``1 - t`` as Cosmos counts them, ``sigma / alpha``."""
    return [level / (1 - level) for level in flow_levels]


@pytest.mark.parametrize("cls", [KTSFlowMatchScheduler, KTSFlowMatchHeunScheduler])
@pytest.mark.parametrize("settings", [SHAPED, OFF, SHAPED | {"touchdown": 0.7}])
def test_sigmas_beyond_one_are_the_same_flow(cls, settings):
    """Cosmos 2 works with ``x_0 + (sigma / alpha) eps`` and predicts eps; Heun off is diffusers' own, in those."""
    flow_levels = [80 / 81, 0.9, 0.8, 0.6, 0.3, 0.1, 0.002]
    ours, flow = cls(**settings), cls(**settings)
    ours.set_timesteps(sigmas=exploding(flow_levels))
    flow.set_timesteps(sigmas=flow_levels)
    if settings.get("touchdown") is None:
        ours.sigmas[-1] = ours.sigmas[-2]  # as the pipeline does
        flow.sigmas[-1] = flow.sigmas[-2]
    else:
        ours.sigmas[-1] = ours.sigmas[-2]  # the touchdown goes to the data all the same
    x = noise() * (1 + ours.sigmas[0].double())
    for i, timestep in enumerate(ours.timesteps):
        sigma = ours.sigmas[i].double()
        t, state = 1 / (1 + sigma), x / (1 + sigma)
        x = ours.step(state + t * field(state, t), timestep, x)[0]
    exact = not (cls is KTSFlowMatchHeunScheduler and settings is OFF)
    end = run(flow, noise())
    torch.testing.assert_close(x / (1 + ours.sigmas[-1].double()), end, atol=1e-4 if exact else 0.2, rtol=1e-4)
    if exact:
        torch.testing.assert_close(ours.gains, flow.gains, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.kpe.path_energy.total, flow.kpe.path_energy.total, rtol=1e-4, atol=1e-4)


def test_energies_of_stock_cosmos_schedules_are_those_of_the_flow():
    stock, session = FlowMatchEulerDiscreteScheduler(), Session()
    undo = attach(stock, "scheduler", session)
    ours = KTSFlowMatchScheduler(**OFF)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(sigmas=[80.0, 20.0, 3.0, 0.5, 0.002])
        x = 80 * noise(dtype=torch.float32)
        for i, timestep in enumerate(scheduler.timesteps):
            state = x / (1 + scheduler.sigmas[i])
            x = scheduler.step(torch.sin(state), timestep, x)[0]
    torch.testing.assert_close(main_trace(session.traces()).model_energy.total, ours.kpe.model_energy.total)
    torch.testing.assert_close(main_trace(session.traces()).t, ours.kpe.t)
    undo()


def test_what_cannot_be_shaped_is_refused_with_the_remedy():
    flow = FlowMatchEulerDiscreteScheduler().config
    x = torch.zeros(1, 4)
    for cls in FIRST_ORDER:
        with pytest.raises(ValueError, match="use KTSFlowMatchScheduler"):
            cls.from_config(flow)
        with pytest.raises(ValueError, match="use KTSFlowMatchScheduler"):
            cls.from_config(KTSUniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True).config)
        with pytest.raises(ValueError, match="knows epsilon, sample and v_prediction"):
            cls(prediction_type="flow_prediction")
        with pytest.raises(TypeError, match="did you mean 'beta_0'"):
            cls.from_config(cls().config, beta0=0.1)
        with pytest.raises(RuntimeError, match="call set_timesteps"):
            cls().step(x, 999, x)
    ddim, euler = make(KTSDDIMScheduler, 4), make(KTSEulerDiscreteScheduler, 4)
    with pytest.raises(ValueError, match="set eta=0"):
        ddim.step(x, ddim.timesteps[0], x, eta=1.0)
    with pytest.raises(ValueError, match="set s_churn=0"):
        euler.step(x, euler.timesteps[0], x, s_churn=1.0)
    with pytest.raises(ValueError, match="not in the schedule"):
        ddim.step(x, 3, x)
    with pytest.raises(ValueError, match="KTSDDIMScheduler"):
        KTSFlowMatchScheduler.from_config(ddim.config)
    pipe = DIFFUSION["sd15"]()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="or for a diffusion model a DDIMScheduler"):
        KPEMonitorPipeline.from_pipe(pipe)
