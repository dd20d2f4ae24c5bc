"""KTSFlowMatchScheduler: parity with the equations, identity with the parent when off, options, refusals."""

import inspect
import itertools

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    MiniMaxH3Scheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import diffusers_kts
from diffusers_kts import PRESETS, KTSEulerDiscreteScheduler, KTSFlowMatchScheduler, KTSUniPCMultistepScheduler
from diffusers_kts.gain import SCHEDULES, Gain
from diffusers_kts.sampling.settings import ShapingSettings

OFF = PRESETS["off"]


def field(x, t):
    """Some smooth velocity field that couples space and time; ``dx/dsigma``."""
    return torch.sin(2 * x + t) - 0.5 * x


def run(scheduler, x, v=field, dtype=None):
    """The sampler loop of every pipeline: the network is told the honest flow time."""
    for i, timestep in enumerate(scheduler.timesteps):
        t = 1 - scheduler.sigmas[i].to(dtype or x.dtype)
        x = scheduler.step(v(x, t), timestep, x, return_dict=False)[0]
    return x


def reference(gain, sigmas, x, v=field):
    """The paper's Euler loop in float64."""
    sigmas = sigmas.double()
    for sigma, after in itertools.pairwise(sigmas):
        t = 1 - sigma
        x = x + gain(t) * (after - sigma) * v(x, t)
    return x


GRIDS = {
    "uniform": ({}, {"sigmas": [1 - i / 23 for i in range(23)]}),
    "stock": ({}, {"num_inference_steps": 17}),
    "shift": ({"shift": 3.0}, {"num_inference_steps": 28}),
    "dynamic": ({"use_dynamic_shifting": True}, {"num_inference_steps": 9, "mu": 1.15}),
    "terminal": ({"use_dynamic_shifting": True, "shift_terminal": 0.02}, {"num_inference_steps": 9, "mu": 0.8}),
    "karras": ({"use_karras_sigmas": True}, {"num_inference_steps": 11}),
    "exponential": ({"use_exponential_sigmas": True}, {"num_inference_steps": 11}),
    "beta": ({"use_beta_sigmas": True}, {"num_inference_steps": 11}),
    "timesteps": ({}, {"timesteps": [1000.0, 700.0, 333.0, 50.0]}),
}


@pytest.mark.parametrize("shapes", list(itertools.product(SCHEDULES, SCHEDULES)))
@pytest.mark.parametrize("grid", ["uniform", "shift"])
def test_euler_path_is_the_paper_s(shapes, grid):
    config, call = GRIDS[grid]
    gain = Gain(0.3, 0.04, 0.55, 2.5, *shapes)
    scheduler = KTSFlowMatchScheduler(
        alpha_0=0.3, beta_0=0.04, tau_split=0.55, k=2.5, early_schedule=shapes[0], late_schedule=shapes[1], **config
    )
    x = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scheduler.set_timesteps(**call)
    exact = reference(gain, scheduler.sigmas, x)
    torch.testing.assert_close(run(scheduler, x), exact, rtol=1e-12, atol=1e-12)
    scheduler.set_timesteps(**call)
    torch.testing.assert_close(run(scheduler, x.float()).double(), exact, rtol=1e-6, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    alpha_0=st.floats(-0.9, 2),
    beta_0=st.floats(-0.5, 0.05),
    tau_split=st.floats(0.05, 0.95),
    shift=st.floats(0.3, 8),
    steps=st.integers(1, 30),
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=4),
)
def test_euler_path_is_the_paper_s_for_any_settings_and_shape(alpha_0, beta_0, tau_split, shift, steps, shape):
    scheduler = KTSFlowMatchScheduler(shift=shift, alpha_0=alpha_0, beta_0=beta_0, tau_split=tau_split)
    scheduler.set_timesteps(steps)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = reference(Gain(alpha_0, beta_0, tau_split), scheduler.sigmas, x)
    torch.testing.assert_close(run(scheduler, x), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "expected"), [(10, 8.788e-3), (28, 6.142e-3), (100, 2.693e-3), (250, 1.356e-3)])
def test_one_data_point_is_missed_by_the_known_share(n, expected):
    scheduler, a, x0 = KTSFlowMatchScheduler(), -1.5, torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
    end = run(scheduler, x0, v=lambda x, t: (x - a) / (1 - t))
    torch.testing.assert_close((end - a) / (x0 - a), torch.full_like(x0, expected), rtol=1e-3, atol=0)


def test_net_displacement_is_the_limit_of_the_sum_on_the_grid():
    scheduler = KTSFlowMatchScheduler(alpha_0=0.05, beta_0=0.02)
    errors = []
    for n in (100, 200, 400):
        scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        total = float((scheduler.gains * -scheduler.sigmas.double().diff()).sum())
        errors.append(abs(total - scheduler.gain.net_displacement()))
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)  # left Riemann sum: first order
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("extra", [{}, {"invert_sigmas": True}, {"stochastic_sampling": True}])
def test_off_is_bit_equal_to_the_parent(grid, dtype, extra):
    config, call = GRIDS[grid]
    stock = FlowMatchEulerDiscreteScheduler(**config, **extra)
    ours = KTSFlowMatchScheduler.from_config(stock.config, **OFF)
    stock.set_timesteps(**call)
    ours.set_timesteps(**call)
    assert torch.equal(stock.sigmas, ours.sigmas) and torch.equal(stock.timesteps, ours.timesteps)
    ends = []
    for scheduler in (stock, ours):
        x = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
        noise = torch.Generator().manual_seed(1)
        for timestep in scheduler.timesteps:
            v = field(x.float(), timestep / 1000).to(dtype)
            x = scheduler.step(v, timestep, x, generator=noise).prev_sample
        ends.append(x)
    assert ends[0].dtype == dtype
    assert torch.equal(*ends)


@pytest.mark.parametrize("alpha_0", [0.002, 0.005, 0.01, 0.05])
@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_small_gain_acts_in_half_precision(dtype, scale, alpha_0):
    scheduler = KTSFlowMatchScheduler(alpha_0=alpha_0, beta_0=0.0, early_schedule="constant")
    scheduler.set_timesteps(28)
    g = torch.Generator().manual_seed(0)
    # the sample in float32: on the bf16 grid, the rounding of the result (not ours to avoid) correlates with the step
    x, v = scale * torch.randn(1, 1_000_000, generator=g), torch.randn(1, 1_000_000, generator=g).to(dtype)
    moved = scheduler.step(v, scheduler.timesteps[0], x)[0].double() - x.double()
    dt = (scheduler.sigmas[1] - scheduler.sigmas[0]).double()
    acts = (moved * v.double()).sum() / (dt * v.double().square().sum())
    assert float(acts) == pytest.approx(1 + alpha_0, abs=1e-4)


def test_touchdown_ends_on_the_data_estimate():
    scheduler = KTSFlowMatchScheduler(alpha_0=0.0, beta_0=0.0, touchdown=0.7)
    scheduler.set_timesteps(sigmas=[1 - i / 50 for i in range(50)])
    assert len(scheduler.timesteps) == 36  # 35 steps to t = .7, one to the end
    table = scheduler.schedule_table()
    assert [row["phase"] for row in table][-2:] == ["landing", "touchdown"]
    assert table[-1]["t"] == pytest.approx(0.7) and table[-1]["eta"] == 1.0
    a, x0 = 0.25, torch.randn(2, 3, dtype=torch.float64)
    end = run(scheduler, x0, v=lambda x, t: (x - a) / (1 - t))
    torch.testing.assert_close(end, torch.full_like(end, a), atol=1e-6, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("touchdown", [0.05, 0.5, 0.77, 0.999])
def test_touchdown_never_adds_a_network_call(grid, inverted, touchdown):
    config, call = GRIDS[grid]
    plain = KTSFlowMatchScheduler(invert_sigmas=inverted, **config)
    cut = KTSFlowMatchScheduler.from_config(plain.config, touchdown=touchdown)
    plain.set_timesteps(**call)
    cut.set_timesteps(**call)
    times = [row["t"] for row in plain.schedule_table()]
    before = sum(t < touchdown for t in times)
    assert len(cut.timesteps) == (before + 1 if before < len(times) else len(times)) <= len(times)
    if before < len(times):
        assert cut.schedule_table()[-1]["t"] == pytest.approx(touchdown, abs=1e-6)
        assert float(cut.sigmas[-1]) == float(plain.sigmas[-1])
        if grid != "timesteps":  # the network is told the noise level it gets
            torch.testing.assert_close(cut.timesteps, 1000 * cut.sigmas[:-1], rtol=1e-4, atol=0.05)


def test_flow_time_follows_the_convention_of_the_schedule():
    upward = KTSFlowMatchScheduler(invert_sigmas=True, alpha_0=0.1, beta_0=0.0)
    upward.set_timesteps(10)
    assert upward.gains[0] == pytest.approx(1.1, abs=1e-3) and upward.gains[-1] == 1.0
    exploding = KTSFlowMatchScheduler(alpha_0=0.1, beta_0=0.0)
    exploding.set_timesteps(sigmas=[80.0, 10.0, 1.0, 0.1, 0.002])
    assert [row["t"] for row in exploding.schedule_table()] == pytest.approx([1 / 81, 1 / 11, 0.5, 1 / 1.1, 1 / 1.002])


def test_schedule_edited_by_the_pipeline_is_followed():
    scheduler = KTSFlowMatchScheduler(alpha_0=0.5, beta_0=0.0)
    scheduler.set_timesteps(4)
    scheduler.sigmas = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.7])
    assert scheduler.gains[-1] == pytest.approx(1 + 0.5 * (1 - 0.3 / 0.6), abs=1e-6)
    x, v = torch.zeros(1, 2), torch.ones(1, 2)
    moved = scheduler.step(v, scheduler.timesteps[0], x)[0]
    torch.testing.assert_close(moved, torch.full_like(x, -0.15))


def test_begin_index_and_scale_noise_as_the_parent():
    stock, ours = FlowMatchEulerDiscreteScheduler(shift=3.0), KTSFlowMatchScheduler(shift=3.0)
    x, noise = torch.randn(2, 4), torch.randn(2, 4)
    for scheduler in (stock, ours):
        scheduler.set_timesteps(10)
        scheduler.set_begin_index(6)
    late = stock.timesteps[6:7]
    assert torch.equal(stock.scale_noise(x, late, noise), ours.scale_noise(x, late, noise))
    ours.step(noise, late[0], x)
    assert ours.step_index == 7 and ours.kpe.late_start
    assert ours.kpe.gains[0] == ours.gains[6]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_with_a_time_of_their_own_are_shaped_by_it(dtype):
    stock = FlowMatchEulerDiscreteScheduler()
    off = KTSFlowMatchScheduler.from_config(stock.config, **OFF)
    ours = KTSFlowMatchScheduler(alpha_0=0.2, beta_0=0.03)
    for scheduler in (stock, off, ours):
        scheduler.set_timesteps(8)
    x, v = torch.randn(2, 3, 4).to(dtype), torch.randn(2, 3, 4).to(dtype)
    times = torch.stack([stock.timesteps[[2, 5, 7]], torch.tensor([0.0, 1000.0, float(stock.timesteps[2])])])
    plain = stock.step(v, stock.timesteps[2], x, per_token_timesteps=times)[0]
    same = off.step(v, stock.timesteps[2], x, per_token_timesteps=times)[0]
    assert torch.equal(plain, same)
    shaped = ours.step(v, stock.timesteps[2], x, per_token_timesteps=times)[0]
    assert shaped.dtype == plain.dtype
    eta = ours.gain(1 - times.double() / 1000)[..., None].float()
    torch.testing.assert_close(shaped - x.float(), eta * (plain - x.float()), rtol=1e-3, atol=1e-6)
    assert torch.equal(shaped[1, 0], x[1, 0].float())  # a clean token stays
    dt = ((plain.double() - x.double()) / v.double()).mean(-1)
    energy = 0.5 * (dt * v.double().square().sum(-1)).sum(1)
    torch.testing.assert_close(ours.kpe.model_energy.total.double(), energy, rtol=2e-2, atol=1e-3)


def test_parent_s_signature_is_kept():
    def parameters(f):
        return {name: p.default for name, p in inspect.signature(f).parameters.items()}

    stock, ours = FlowMatchEulerDiscreteScheduler, KTSFlowMatchScheduler
    assert parameters(stock.__init__).items() <= parameters(ours.__init__).items()
    assert parameters(stock.step) == parameters(ours.step)
    assert parameters(stock.set_timesteps) == parameters(ours.set_timesteps)
    assert "eta" not in parameters(ours.step)


def test_configuration_round_trips(tmp_path):
    stock = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=0.1, use_karras_sigmas=True, base_shift=0.7)
    ours = KTSFlowMatchScheduler.from_config(stock.config, alpha_0=0.2, touchdown=0.8)
    assert ours.shift == 3.0 and ours.config.base_shift == 0.7 and ours.config.use_karras_sigmas
    ours.save_pretrained(tmp_path)
    again = KTSFlowMatchScheduler.from_pretrained(tmp_path)
    public = {key: value for key, value in ours.config.items() if key[0] != "_"}
    assert {key: value for key, value in again.config.items() if key[0] != "_"} == public
    assert KTSFlowMatchScheduler.from_pretrained(tmp_path, alpha_0=0.4).config.alpha_0 == 0.4
    back = FlowMatchEulerDiscreteScheduler.from_config(ours.config)
    assert {key: back.config[key] for key in stock.config if key[0] != "_"} == {
        key: value for key, value in stock.config.items() if key[0] != "_"
    }
    assert KTSFlowMatchScheduler.from_config(back.config).config.touchdown == 0.8
    assert FlowMatchEulerDiscreteScheduler in ours.compatibles
    assert KTSFlowMatchScheduler.__module__ == "diffusers_kts" and diffusers_kts.SchedulerMixin is SchedulerMixin


@pytest.mark.parametrize("cls", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_multistep_flow_configurations_bring_their_shift(cls):
    other = cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    ours = KTSFlowMatchScheduler.from_config(other.config)
    assert ours.shift == 5.0
    assert not hasattr(ours.config, "use_flow_sigmas")  # FLUX pipelines would drop their own sigmas


def test_karras_levels_of_a_flow_configuration_are_those_of_its_own_scheduler():
    """Cosmos 2.5: Karras' levels from 200 to 0.01, put on ``sigma / (1 + sigma)``; unmapped they are 40 times the noise."""
    karras = {"use_karras_sigmas": True, "sigma_max": 200.0, "sigma_min": 0.01}
    other = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, **karras)
    ours = KTSFlowMatchScheduler.from_config(KTSFlowMatchScheduler.from_config(other.config).config)
    for scheduler in (other, ours):
        scheduler.set_timesteps(6)
    torch.testing.assert_close(ours.sigmas, other.sigmas, rtol=1e-6, atol=1e-6)
    shifted = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    twice = KTSFlowMatchScheduler.from_config(KTSFlowMatchScheduler.from_config(shifted.config).config)
    assert twice.shift == 5.0


def test_presets_are_complete_and_sourced():
    for preset in PRESETS.values():
        assert set(preset) == {"alpha_0", "beta_0", "tau_split", "k", "early_schedule", "late_schedule", "touchdown"}
        assert preset.purpose and preset.source
        KTSFlowMatchScheduler(**preset)
    shaped = KTSFlowMatchScheduler(touchdown=0.5)
    assert KTSFlowMatchScheduler.from_config(shaped.config, **PRESETS["quality"]).config.touchdown is None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta_0": 0.06}, "at most 0.0524"),
        ({"alpha_0": float("nan")}, "alpha_0 is nan"),
        ({"tau_split": 0.0}, "tau_split is 0.0"),
        ({"early_schedule": "cosine"}, "choose one of linear, constant, exponential"),
        ({"touchdown": 1.0}, "touchdown is 1.0"),
        ({"touchdown": "late"}, "touchdown is 'late'"),
        ({"stochastic_sampling": True}, "stochastic_sampling=False"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(settings, words):
    with pytest.raises(ValueError, match=words):
        KTSFlowMatchScheduler(**settings)


def test_a_saved_scheduler_of_another_convention_is_refused(tmp_path):
    MiniMaxH3Scheduler().save_pretrained(tmp_path)  # the configuration in memory is a shift alone: nobody could tell
    with pytest.raises(ValueError, match="MiniMax-H3 cannot be shaped"):
        KTSFlowMatchScheduler.from_pretrained(tmp_path)


def test_wrong_calls_are_refused_with_the_remedy():
    ours = KTSFlowMatchScheduler()
    x = torch.zeros(1, 4)
    with pytest.raises(TypeError, match="did you mean 'alpha_0'"):
        KTSFlowMatchScheduler.from_config(ours.config, alpha0=0.1)
    with pytest.raises(ValueError, match="not flow matching"):
        KTSFlowMatchScheduler.from_config(DDIMScheduler().config)
    with pytest.raises(RuntimeError, match="call set_timesteps"):
        ours.step(x, ours.timesteps[0], x)
    with pytest.raises(RuntimeError, match="call set_timesteps"):
        ours.schedule_table()
    for call in ({}, {"num_inference_steps": 0}, {"num_inference_steps": 2.5}):
        with pytest.raises(ValueError, match="num_inference_steps"):
            ours.set_timesteps(**call)
    with pytest.raises(ValueError, match="not finite"):
        ours.set_timesteps(sigmas=[1.0, float("nan")])
    ours.set_timesteps(2)
    with pytest.raises(ValueError, match="integer"):
        ours.step(x, 0, x)
    with pytest.raises(ValueError, match="same shape"):
        ours.step(torch.zeros(1, 3), ours.timesteps[0], x)
    with pytest.raises(ValueError, match="not in the schedule"):
        ours.step(x, torch.tensor(0.5), x)
    for timestep in ours.timesteps:
        ours.step(x, timestep, x)
    with pytest.raises(RuntimeError, match="more often"):
        ours.step(x, ours.timesteps[1], x)


@pytest.mark.parametrize("cls", [KTSFlowMatchScheduler, KTSUniPCMultistepScheduler, KTSEulerDiscreteScheduler])
def test_a_scheduler_in_the_place_of_its_configuration_is_told(cls):
    with pytest.raises(
        TypeError, match=r"got a FlowMatchEulerDiscreteScheduler; give its configuration, pipe.scheduler.config"
    ):
        cls.from_config(FlowMatchEulerDiscreteScheduler())


def test_a_mistyped_preset_is_told_with_those_there_are():
    with pytest.raises(KeyError, match="'anti-memorization' is not a preset; choose one of off, .*touchdown"):
        PRESETS["anti-memorization"]


def test_the_old_name_of_a_preset_warns_and_names_the_new_one():
    with pytest.warns(FutureWarning, match=r"is called 'touchdown' now; the old name goes in release 0\.3\.0"):
        assert PRESETS["anti_memorization"] == PRESETS["touchdown"]
    assert "anti_memorization" in PRESETS and "anti_memorization" not in list(PRESETS)
    with pytest.warns(FutureWarning, match="touchdown"):
        assert ShapingSettings(preset="anti_memorization").shaping.touchdown == 0.7


def test_a_part_of_the_schedule_table_is_a_table():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(5)
    table = scheduler.schedule_table()
    assert repr(table[-2:]).splitlines() == [repr(table).splitlines()[i] for i in (0, -2, -1)] and table[0]["step"] == 0
