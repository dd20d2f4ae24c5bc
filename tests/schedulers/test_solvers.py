"""The solvers beside Euler: all converge, at their order, to one fine solution of the shaped equation."""

import inspect
import json

import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from shaped_reference import field, noise, order, run, solve
from tiny_pipelines import TINY, call_kwargs, tiny_sd3_img2img, tiny_wan

import diffusers_kts
from diffusers_kts import (
    PRESETS,
    KPEMonitorPipeline,
    KTSDPMSolverMultistepScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
)

OFF = PRESETS["off"]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
SHAPED = {"alpha_0": 0.3, "beta_0": 0.04}
SINGLE_STEP = (KTSFlowMatchScheduler, KTSFlowMatchHeunScheduler)
MULTISTEP = {KTSUniPCMultistepScheduler: UniPCMultistepScheduler, KTSDPMSolverMultistepScheduler: DPMSolverMultistepScheduler}


def flow_scheduler(cls, **settings):
    return cls(**(FLOW if cls in MULTISTEP or cls in MULTISTEP.values() else {}), **settings)


def errors(make, steps, put_grid=None):
    """Relative errors of end and path energy, for every number of steps."""
    ends, energies = [], []
    for n in steps:
        scheduler = make(n)
        if put_grid is not None:
            scheduler.sigmas = put_grid(n)
        t = 1 - scheduler.sigmas[[0, -1]].double()
        end, energy = solve(scheduler.gain, 0, *t.tolist())
        ends.append(float((run(scheduler, noise()) - end).norm() / end.norm()))
        energies.append(float((scheduler.kpe.path_energy.total - energy).norm() / energy.norm()))
    return ends, energies


@pytest.mark.parametrize(("cls", "expected"), [(KTSFlowMatchScheduler, 1), (KTSFlowMatchHeunScheduler, 2)])
@pytest.mark.parametrize("settings", [SHAPED, OFF, {"alpha_0": 0.3, "beta_0": 0.3, "late_schedule": "linear"}])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_of_first_and_heun_of_second_order(cls, expected, settings, shift):
    def make(n):
        scheduler = cls(shift=shift, **settings)
        scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        return scheduler

    steps = (40, 80, 160)
    ends, energies = errors(make, steps)
    assert order(ends, steps) == pytest.approx(expected, abs=0.25) and ends[-1] < 0.03 / expected**5
    assert order(energies, steps) > expected - 0.25


SOLVERS = [
    (KTSUniPCMultistepScheduler, {"solver_order": 2}),
    (KTSUniPCMultistepScheduler, {"solver_order": 3}),
    (KTSDPMSolverMultistepScheduler, {"solver_order": 2}),
    (KTSDPMSolverMultistepScheduler, {"solver_order": 2, "solver_type": "heun"}),
    (KTSDPMSolverMultistepScheduler, {"solver_order": 3}),
]


@pytest.mark.parametrize(("cls", "options"), SOLVERS)
@pytest.mark.parametrize("settings", [SHAPED, OFF])
def test_multistep_solvers_are_of_second_order_where_their_analysis_holds(cls, options, settings):
    """Even steps in log-SNR, away from its infinite ends."""

    def make(n):
        scheduler = flow_scheduler(cls, **options, **settings)
        scheduler.set_timesteps(n)
        return scheduler

    steps = (30, 60, 120)
    ends, energies = errors(make, steps, lambda n: torch.linspace(3, -3, n + 1, dtype=torch.float64).sigmoid().float())
    assert order(ends, steps) > 1.75 and ends[-1] < 2e-4
    assert order(energies, steps) > 1.6 and energies[-1] < 1e-3


@pytest.mark.parametrize(("cls", "options"), SOLVERS)
def test_multistep_solvers_converge_on_the_schedule_of_the_pipelines_as_unshaped(cls, options):
    """There the first and last steps in log-SNR never get small, which costs diffusers' solvers part of their order too."""

    def make(settings):
        def made(n):
            scheduler = flow_scheduler(cls, flow_shift=3.0, **options, **settings)
            scheduler.set_timesteps(n)
            return scheduler

        return made

    steps = (20, 40, 80)
    (shaped, energies), (plain, _) = errors(make(SHAPED), steps), errors(make(OFF), steps)
    assert order(shaped, steps) > 1.2 and order(energies, steps) > 1.2
    assert shaped[-1] < 2 * plain[-1] + 1e-3


@pytest.mark.parametrize("cls", [*SINGLE_STEP, *MULTISTEP])
def test_one_data_point_is_missed_by_what_the_shaped_equation_leaves(cls):
    """``dx/dt = eta (a - x)/(1 - t)`` from t to the last level; unshaped, every solver ends on the point."""
    a, ends = -1.5, {}
    for name, settings in (("shaped", SHAPED), ("off", OFF)):
        scheduler = flow_scheduler(cls, **settings)
        scheduler.set_timesteps(50)
        ends[name] = run(scheduler, noise(), lambda x, t: (x - a) / (1 - t))
    torch.testing.assert_close(ends["off"], torch.full_like(noise(), a), atol=1e-5, rtol=0)
    missed = (ends["shaped"] - a) / (noise() - a)
    torch.testing.assert_close(missed, missed[:1, :1, :1].expand_as(missed), rtol=1e-3, atol=1e-7)  # the same share everywhere
    assert missed.abs().mean() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cls", MULTISTEP)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver_order": 1},
        {"solver_order": 3},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min", "use_flow_sigmas": False, "prediction_type": "sample"},
        {"flow_shift": 5.0},
        {"use_exponential_sigmas": True, "use_flow_sigmas": False, "prediction_type": "sample"},
        {"prediction_type": "epsilon", "use_flow_sigmas": False},
        {"prediction_type": "v_prediction", "use_flow_sigmas": False, "thresholding": True},
        {"prediction_type": "sample", "use_flow_sigmas": False},
    ],
)
def test_off_is_bit_equal_to_the_parent(cls, options, dtype):
    stock = MULTISTEP[cls](**(FLOW | options))
    ours = cls.from_config(stock.config, **OFF)
    ends = []
    for scheduler in (stock, ours):
        for steps in (5, 9):
            scheduler.set_timesteps(steps)
            x = noise(dtype=dtype)
            for timestep in scheduler.timesteps:
                x = scheduler.step(field(x.float(), timestep / 1000).to(dtype), timestep, x).prev_sample
            ends.append(x)
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])
    assert ours.kpe.num_steps == 9 and torch.isfinite(ends[3]).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun_off_is_bit_equal_to_the_stock_one(dtype, shift):
    stock = FlowMatchHeunDiscreteScheduler(shift=shift)
    ours = KTSFlowMatchHeunScheduler.from_config(stock.config, **OFF)
    ends = []
    for scheduler in (stock, ours):
        scheduler.set_timesteps(7)
        x = noise(dtype=dtype)
        for timestep in scheduler.timesteps:
            x = scheduler.step(field(x.float(), timestep / 1000).to(dtype), timestep, x).prev_sample
        ends.append(x)
    assert torch.equal(stock.sigmas, ours.sigmas) and torch.equal(stock.timesteps, ours.timesteps)
    assert torch.equal(*ends)


@pytest.mark.parametrize("corrected", [False, True])
def test_heun_is_the_paper_s(corrected):
    ours = KTSFlowMatchHeunScheduler(alpha_0=0.3, beta_0=0.04, correct_last_step=corrected)
    ours = KTSFlowMatchHeunScheduler.from_config(ours.config)
    ours.set_timesteps(sigmas=[1 - i / 6 for i in range(6)])
    sigmas = ours.sigmas[[0, 1, 3, 5, 7, 9, 11]].double()
    assert len(ours.timesteps) == 11 + corrected and sigmas.tolist() == pytest.approx([1 - i / 6 for i in range(7)])
    x, eta, energy = noise(), ours.gain, 0.0
    for i in range(6):
        t, dt = 1 - sigmas[i], sigmas[i + 1] - sigmas[i]
        first = field(x, t)
        energy = energy - dt / 2 * eta(t) ** 2 * first.flatten(1).square().sum(1)
        if i < 5 or corrected:
            second = field(x + eta(t) * dt * first, t - dt)
            x = x + dt * (eta(t) + eta(t - dt)) / 2 * (first + second) / 2
        else:
            x = x + eta(t) * dt * first
    torch.testing.assert_close(run(ours, noise()), x, rtol=1e-9, atol=1e-9)
    left = ours.kpe.with_quadrature("left").path_energy.total
    torch.testing.assert_close(left, energy.to(left.dtype), rtol=1e-6, atol=0)


def test_a_corrected_last_step_ends_nearer_and_leaves_a_touchdown_whole():
    def end(n, **settings):
        scheduler = KTSFlowMatchHeunScheduler(**(OFF | settings))
        scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        return run(scheduler, noise())

    exact = end(400)
    far, near = ((end(20, correct_last_step=corrected) - exact).norm() for corrected in (False, True))
    assert near < 0.8 * far
    assert torch.equal(end(20, touchdown=0.7, correct_last_step=True), end(20, touchdown=0.7))


@pytest.mark.parametrize("cls", [KTSFlowMatchHeunScheduler, *MULTISTEP])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_gain_acts_in_half_precision(cls, dtype):
    v = torch.randn(1, 1_000_000, generator=torch.Generator().manual_seed(0)).to(dtype)

    def moved(v, alpha_0):
        scheduler = flow_scheduler(cls, alpha_0=alpha_0, beta_0=0.0, early_schedule="constant")
        scheduler.set_timesteps(28)
        x = torch.zeros(1, 1_000_000)  # in float32, see test_scheduler
        for timestep in scheduler.timesteps[:3]:
            x = scheduler.step(v, timestep, x, return_dict=False)[0].float()
        return float((x.double() * v.double()).sum())

    assert moved(v.float(), 0.005) / moved(v.float(), 0.0) == pytest.approx(1.005, abs=2e-4)
    assert moved(v, 0.005) / moved(v.float(), 0.005) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize("cls", [KTSFlowMatchHeunScheduler, *MULTISTEP])
@pytest.mark.parametrize("touchdown", [0.05, 0.6, 0.77])
def test_touchdown_ends_on_the_data_estimate_with_fewer_calls(cls, touchdown):
    plain, cut = flow_scheduler(cls), flow_scheduler(cls, **(OFF | SHAPED | {"touchdown": touchdown}))
    plain.set_timesteps(20)
    cut.set_timesteps(20)
    table = cut.schedule_table()
    assert len(cut.timesteps) < len(plain.timesteps) and [row["phase"] for row in table].count("touchdown") == 1
    assert table[-1]["phase"] == "touchdown" and table[-1]["t"] == pytest.approx(touchdown, abs=1e-6) and table[-1]["eta"] == 1
    told = [row["sigma"] * 1000 for row in table]
    torch.testing.assert_close(cut.timesteps.double(), torch.tensor(told, dtype=torch.float64), atol=1.5, rtol=0)
    end = run(cut, noise(), lambda x, t: (x + 1.5) / (1 - t))
    torch.testing.assert_close(end, torch.full_like(end, -1.5), atol=1e-5, rtol=0)


def test_energies_count_every_evaluation_once():
    for cls, evaluations in ((KTSFlowMatchHeunScheduler, 19), (KTSUniPCMultistepScheduler, 10)):
        scheduler = flow_scheduler(cls, **OFF)
        scheduler.set_timesteps(10)
        run(scheduler, noise(), lambda x, t: torch.ones_like(x))
        trace = scheduler.kpe
        assert trace.num_steps == evaluations and trace.quadrature == "trapezoid"
        spanned = trace.t[-1] - trace.t[0]
        assert float(trace.weights.sum()) == pytest.approx(float(spanned))
        torch.testing.assert_close(trace.model_energy.total, torch.full((3,), 10.0).double() * spanned)


def test_signatures_are_the_parents_so_that_pipelines_see_what_they_look_for():
    def parameters(f):
        return {name: p.default for name, p in inspect.signature(f).parameters.items()}

    for ours, stock in MULTISTEP.items():
        assert parameters(ours.__init__) == parameters(stock.__init__) | dict(OFF, alpha_0=0.01, beta_0=0.01, gain=None)
        for name in ("step", "set_timesteps"):
            assert list(parameters(getattr(ours, name))) == list(parameters(getattr(stock, name)))
    for name in ("__init__", "step", "set_timesteps"):
        ours, euler = getattr(KTSFlowMatchHeunScheduler, name), getattr(KTSFlowMatchScheduler, name)
        own = {"correct_last_step": False} if name == "__init__" else {}
        assert parameters(ours) == parameters(euler) | own


def public(scheduler):
    return {key: value for key, value in scheduler.config.items() if key[0] != "_"}


@pytest.mark.parametrize("cls", [KTSFlowMatchHeunScheduler, *MULTISTEP])
def test_configurations_go_from_class_to_class(cls, tmp_path):
    for stock in (
        FlowMatchEulerDiscreteScheduler(shift=5.0),
        *(flow_scheduler(s, flow_shift=5.0) for s in MULTISTEP.values()),
    ):
        ours = cls.from_config(stock.config, **PRESETS["balanced"])
        assert (ours.config.flow_shift if cls in MULTISTEP else ours.shift) == 5.0
        ours.set_timesteps(10)
        assert float(ours.sigmas[5]) == pytest.approx(5 / 6, abs=0.12)
    ours = cls.from_config(ours.config, alpha_0=0.2, touchdown=0.8)
    assert stock.__class__ in ours.compatibles or FlowMatchEulerDiscreteScheduler in ours.compatibles
    ours.save_pretrained(tmp_path)
    assert public(cls.from_pretrained(tmp_path)) == public(ours) and cls.__module__ == "diffusers_kts"
    parent = MULTISTEP.get(cls, FlowMatchEulerDiscreteScheduler)
    back = parent.from_config(ours.config)
    assert cls.from_config(back.config).config.touchdown == 0.8
    euler = KTSFlowMatchScheduler.from_config(ours.config)
    assert euler.shift == 5.0 and euler.config.touchdown == 0.8
    assert getattr(diffusers_kts, cls.__name__) is cls


IN_PIPELINES = [(name, cls) for name in ("sd3", "flux", "wan") for cls in (KTSFlowMatchHeunScheduler, *MULTISTEP)]
IN_PIPELINES.remove(("flux", KTSDPMSolverMultistepScheduler))  # FLUX gives sigmas, which diffusers' DPM-Solver does not take


@pytest.mark.parametrize(("name", "cls"), IN_PIPELINES)
def test_they_drop_into_pipelines(name, cls, tmp_path):
    pipe = TINY[name]()
    ours = cls.from_config(pipe.scheduler.config, **SHAPED)
    off = cls.from_config(pipe.scheduler.config, **OFF)
    pipe.scheduler = ours
    shaped = KPEMonitorPipeline.from_pipe(pipe)(**call_kwargs(name))
    assert shaped.kpe.num_steps == len(ours.timesteps) == (7 if cls is KTSFlowMatchHeunScheduler else 4)
    pipe.scheduler = off
    assert not torch.allclose(pipe(**call_kwargs(name))[0], shaped[0], atol=1e-4)
    pipe.scheduler = ours
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"] == ["diffusers_kts", cls.__name__]
    again = DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(again(**call_kwargs(name))[0], shaped[0], atol=1e-5, rtol=1e-5)


def test_wan_with_unipc_off_is_the_stock_video():
    pipe = tiny_wan()
    plain = KPEMonitorPipeline.from_pipe(pipe)(**call_kwargs("wan"))
    pipe.scheduler = KTSUniPCMultistepScheduler.from_config(pipe.scheduler.config, **OFF)
    ours = pipe(**call_kwargs("wan"))
    assert torch.equal(ours[0], plain[0])
    torch.testing.assert_close(pipe.scheduler.kpe.model_energy.total, plain.kpe.model_energy.total)


def test_heun_starts_late_where_the_pipeline_means_it():
    """SD3 counts steps, of two evaluations; FLUX gives sigmas and counts evaluations as steps."""
    pipe = tiny_sd3_img2img()
    pipe.scheduler = KTSFlowMatchHeunScheduler.from_config(pipe.scheduler.config, **SHAPED)
    pipe(**call_kwargs("sd3_img2img", strength=0.5))
    assert pipe.scheduler.order == 2 and pipe.scheduler.kpe.num_steps == 3
    assert float(pipe.scheduler.kpe.sigmas[0]) == float(pipe.scheduler.sigmas[4])
    for off in (True, False):
        ours = KTSFlowMatchHeunScheduler(**(OFF if off else SHAPED))
        ours.set_timesteps(sigmas=[1 - i / 4 for i in range(4)])
        start = int(len(ours.timesteps) * 0.5) * ours.order  # as FluxImg2ImgPipeline.get_timesteps
        assert ours.order == 1 and float(ours.sigmas[start]) == 0.5 and start % 2
        ours.set_begin_index(start)
        x, seen = noise(dtype=torch.float32), []
        for timestep in ours.timesteps[start:]:
            x = ours.step(field(x, 1 - timestep / 1000), timestep, x)[0]
            seen.append(x)
        assert torch.equal(seen[0], noise(dtype=torch.float32))  # the call without a predictor moves nothing
        again = KTSFlowMatchHeunScheduler(**(OFF if off else SHAPED))
        again.set_timesteps(sigmas=[0.5, 0.25])
        torch.testing.assert_close(x, run(again, noise(dtype=torch.float32)), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.kpe.path_energy.total, again.kpe.path_energy.total, atol=0, rtol=1e-5)


@pytest.mark.parametrize(
    ("cls", "settings", "words"),
    [
        (KTSUniPCMultistepScheduler, {"predict_x0": False}, "predict_x0=True"),
        (KTSUniPCMultistepScheduler, {"use_flow_sigmas": False}, "use_flow_sigmas=True"),
        (KTSDPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, 'algorithm_type="dpmsolver\\+\\+"'),
        (KTSDPMSolverMultistepScheduler, {"beta_0": 0.06}, "at most 0.0524"),
        (KTSUniPCMultistepScheduler, {"touchdown": 1.5}, "touchdown is 1.5"),
    ],
)
def test_what_has_no_shaped_meaning_is_refused_with_the_remedy(cls, settings, words):
    with pytest.raises(ValueError, match=words):
        cls(**(FLOW | settings))


def test_wrong_calls_are_refused_with_the_remedy():
    x = torch.zeros(1, 4)
    heun = KTSFlowMatchHeunScheduler()
    heun.set_timesteps(3)
    with pytest.raises(ValueError, match="use KTSFlowMatchScheduler"):
        heun.step(x, heun.timesteps[0], x, per_token_timesteps=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="s_churn=0"):
        heun.step(x, heun.timesteps[0], x, s_churn=1.0)
    for cls in MULTISTEP:
        ours = flow_scheduler(cls)
        with pytest.raises(RuntimeError, match="call set_timesteps"):
            ours.step(x, ours.timesteps[0], x)
        with pytest.raises(TypeError, match="did you mean 'alpha_0'"):
            cls.from_config(ours.config, alpha0=0.1)
        with pytest.raises(ValueError, match="use KTSFlowMatchScheduler"):
            cls.from_config(FlowMatchEulerDiscreteScheduler(invert_sigmas=True).config)
        ours.set_timesteps(2)
        with pytest.raises(ValueError, match="same shape"):
            ours.step(torch.zeros(1, 3), ours.timesteps[0], x)
        run(ours, x)
        with pytest.raises(RuntimeError, match="more often"):
            ours.step(x, ours.timesteps[1], x)
