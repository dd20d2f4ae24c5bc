"""KTSAdaptiveFlowMatchScheduler: closed forms of the budget, the definition of the decision, every sample by itself."""

import copy
import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_pipelines import call_kwargs, tiny_sd3_img2img
from torch.utils._python_dispatch import TorchDispatchMode

from diffusers_kts import (
    PRESETS,
    ClassConditionalFlowPipeline,
    KPEMonitorPipeline,
    KPETrace,
    KTSAdaptiveFlowMatchScheduler,
    KTSFlowMatchScheduler,
    embedded_model,
    save_with_stock_scheduler,
)
from diffusers_kts.schedulers.adaptive_gain import budget_factor

OFF = PRESETS["off"]
RULES = {
    "cap": {"energy_budget": 0.4},
    "target": {"energy_budget": 0.9, "max_gain": 1.3},
    "touchdown": {"turning": 0.55, "turning_from": 0.3},
    "landing": {"turning": 0.55, "turning_from": 0.3, "turning_action": "landing", "beta_0": 0.05},
}


def noise(dtype=torch.float64):
    x = torch.randn(6, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (x * torch.linspace(0.2, 2, 6, dtype=torch.float64).reshape(-1, 1, 1)).to(dtype)


def field(x, t):
    """Some smooth field, ``dx/dsigma``; samples far from 0 turn more."""
    return torch.sin(2 * x + t) - 0.5 * x


def run(x, v=field, n=20, sigmas=None, scheduler=None, **setting):
    scheduler = scheduler or KTSAdaptiveFlowMatchScheduler(**(OFF | setting))
    scheduler.set_timesteps(sigmas=sigmas or [1 - i / n for i in range(n)])
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(v(x, 1 - scheduler.sigmas[i].double()).to(x.dtype), timestep, x)[0]
    return x, scheduler.kpe


@pytest.mark.parametrize("shaping", [{}, {"alpha_0": 0.3, "beta_0": 0.03}])
@pytest.mark.parametrize("grid", [[1 - i / 7 for i in range(7)], [1.0, 0.8, 0.75, 0.3, 0.01], [1.0]])
@pytest.mark.parametrize("max_gain", [1.0, 1.2])
def test_straight_paths_use_their_budget_with_one_factor(grid, shaping, max_gain):
    v, budget = noise() * 2, 0.6
    _, plain = run(torch.zeros_like(v), lambda x, t: v, sigmas=grid, **shaping)
    _, trace = run(torch.zeros_like(v), lambda x, t: v, sigmas=grid, energy_budget=budget, max_gain=max_gain, **shaping)
    factor = (budget / plain.per_dim).sqrt().clamp(max=max_gain)
    assert (factor < 1).any() and (factor == max_gain).any()
    torch.testing.assert_close(trace.gains, plain.gains * factor[:, None], rtol=1e-6, atol=0)
    torch.testing.assert_close(trace.per_dim, plain.per_dim * factor**2, rtol=1e-6, atol=0)


def gaussian(s):
    """``dx/dsigma`` where the data are ``N(0, s^2 I)``."""
    return lambda x, t: -x * (t * s * s - (1 - t)) / (t * t * s * s + (1 - t) ** 2)


def test_gaussian_data_held_back_move_at_constant_speed():
    """At s = 1 the field is fastest at the start, so that a low budget holds from there on, until the field is slower."""
    x, budget, n = noise(), 0.02, 50
    radius, speed = x.flatten(1).norm(dim=1), math.sqrt(2 * budget * 6)
    for steps in (5, 10, 15):
        held = radius * (1 - 2 * steps / n) > 2 * speed  # still faster than allowed, with room to spare
        assert held.any()
        scheduler = KTSAdaptiveFlowMatchScheduler(**OFF, energy_budget=budget)
        scheduler.set_timesteps(sigmas=[1 - i / n for i in range(n)])
        moved = x
        for i, timestep in enumerate(scheduler.timesteps[:steps]):
            moved = scheduler.step(gaussian(1)(moved, i / n), timestep, moved)[0]
        torch.testing.assert_close(moved.flatten(1).norm(dim=1)[held], (radius - speed * steps / n)[held], rtol=1e-6, atol=0)
        torch.testing.assert_close(
            scheduler.kpe.per_dim[held], torch.full_like(radius, budget * steps / n)[held], rtol=1e-6, atol=0
        )


def test_gaussian_data_end_on_the_budget_or_untouched():
    """At s = 3 the speed grows up to the end: either the budget holds at last, or it never does."""
    x = noise()
    plain_end, plain = run(x, gaussian(3), n=100)
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    exact = 0.5 * ((t * 9 - (1 - t)) ** 2 / (t * t * 9 + (1 - t) ** 2)).mean() * x.square().flatten(1).mean(1)
    torch.testing.assert_close(plain.per_dim, exact, rtol=0.05, atol=0)
    budget = float(exact.sort().values[3:5].mean())
    end, trace = run(x, gaussian(3), n=100, energy_budget=budget)
    over = plain.per_dim > budget
    assert over.sum() == 2
    torch.testing.assert_close(trace.per_dim[over], torch.full((2,), budget, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(end[~over], plain_end[~over])
    assert (trace.gains[~over] == 1).all()
    assert (trace.gains[over][:, 20] == 1).all() and (trace.gains[over][:, -1] < 1).all()


@settings(max_examples=60, deadline=None)
@given(
    powers=st.lists(st.floats(0, 1e4), min_size=1, max_size=8),
    widths=st.lists(st.floats(0, 1), min_size=8, max_size=8),
    etas=st.lists(st.floats(0.1, 2), min_size=8, max_size=8),
    budget=st.floats(1e-3, 1e3),
    max_gain=st.floats(1, 3),
)
def test_no_path_exceeds_its_budget_and_one_that_can_reaches_it(powers, widths, etas, budget, max_gain):
    n = len(powers)
    power = torch.tensor([powers], dtype=torch.float64)
    weights, planned = (torch.tensor(values[:n], dtype=torch.float64) for values in (widths, etas))
    gains = torch.empty(1, 0, dtype=torch.float64)
    for i in range(n):
        seen = torch.cat([gains, torch.full((1, 1), torch.nan)], 1)[:, : i + 1].nan_to_num(7.0)
        factor = budget_factor(power[:, : i + 1], seen, planned, weights, budget, max_gain)
        assert 0 <= factor <= max_gain
        gains = torch.cat([gains, (planned[i] * factor)[:, None]], 1)
    total = float(0.5 * (gains**2 * power * weights).sum())
    assert total <= budget * (1 + 1e-9)
    if factor < max_gain and power[0, -1] * weights[-1] > 1e-9:
        assert total == pytest.approx(budget, rel=1e-9)


def test_a_decided_sample_goes_to_its_data_estimate_and_rests():
    x, seen = noise(), []

    def watched(x, t):
        v = field(x, t)
        seen.append((x, v, 1 - t))
        return v

    end, trace = run(x, watched, turning=0.55, turning_from=0.3)
    plain_end, _ = run(x)
    estimates = torch.stack([x - sigma * v for x, v, sigma in seen])
    speed = torch.stack([v.flatten(1).norm(dim=1) for _, v, _ in seen], 1)
    # up to its touchdown a sample's path is the plain one, where the definition can be taken from the estimates
    rests = (trace.gains == 0).int().argmax(1)
    assert (rests == 0).any() and (rests == 7).any() and (rests > 7).any()
    for b, rest in enumerate(rests.tolist()):
        if rest == 0:
            torch.testing.assert_close(end[b], plain_end[b])
            continue
        i = rest - 1
        moved = [(estimates[j, b] - estimates[j - 1, b]).norm() for j in range(1, i + 1)]
        score = torch.stack(moved).cumsum(0) / speed[b, 1 : i + 1]
        assert score[i - 1] >= 0.55 and (i == 6 or score[i - 2] < 0.55)
        torch.testing.assert_close(trace.turning[b, i], score[i - 1], rtol=1e-6, atol=0)
        torch.testing.assert_close(end[b], estimates[i, b], rtol=1e-6, atol=1e-7)
        assert trace.gains[b, i] == pytest.approx((1 - i / 20) * 20, rel=1e-5)
        assert (trace.gains[b, :i] == 1).all() and (trace.gains[b, rest:] == 0).all()


def test_a_decided_sample_lands_and_the_others_do_not():
    x, shaping = noise(), {"alpha_0": 0.2, "beta_0": 0.05}
    _, landed = run(x, **shaping)
    _, trace = run(x, **shaping, turning=0.8, turning_from=0.7, turning_action="landing")
    t, late = trace.t[:-1], trace.t[:-1] >= 0.6
    lands = (trace.turning >= 0.8) & (t >= 0.7 - 1e-6)
    lands = lands.cumsum(1) > 0
    assert lands.any(1).any() and not lands.any(1).all()
    expected = torch.where(lands | ~late, landed.gains, 1.0)
    torch.testing.assert_close(trace.gains, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_a_sample_does_not_depend_on_its_neighbors_or_its_future(rule):
    x = noise()
    together, trace = run(x, **RULES[rule])
    alone = [run(part, **RULES[rule]) for part in x.split(1)]
    assert torch.equal(together, torch.cat([end for end, _ in alone]))
    assert torch.equal(trace.gains, torch.cat([record.gains for _, record in alone]))
    assert torch.equal(KPETrace.cat([record for _, record in alone]).gains, trace.gains)
    assert len(trace.gains.unique(dim=0)) > 1
    _, other = run(x, lambda x, t: field(x, t) * (1 if t < 0.52 else 3), **RULES[rule])
    assert torch.equal(other.gains[:, :11], trace.gains[:, :11]) and not torch.equal(other.gains, trace.gains)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_a_rule_no_bit_changes_and_a_rule_that_does_not_act_changes_nothing(dtype):
    shaping = {"alpha_0": 0.1, "beta_0": 0.03}
    x = noise(dtype)
    fixed, expected = run(x, scheduler=KTSFlowMatchScheduler(**(OFF | shaping)))
    off, trace = run(x, **shaping)
    assert torch.equal(off, fixed) and torch.equal(trace.power, expected.power) and torch.equal(trace.gains, expected.gains)
    for setting in ({"energy_budget": 1e6}, {"turning": 1e6}):
        end, trace = run(x, **shaping, **setting)
        assert end.dtype == dtype
        torch.testing.assert_close(end, fixed)
        torch.testing.assert_close(trace.gains, expected.gains.expand(6, -1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_to_the_budget(dtype):
    end, trace = run(noise(dtype), **RULES["cap"])
    wide, exact = run(noise(), **RULES["cap"])
    assert end.dtype == dtype and trace.gains.ndim == 2
    assert (trace.per_dim <= 0.4 * (1 + 1e-5)).all() and (trace.per_dim > 0.4 * (1 - 1e-5)).any()
    torch.testing.assert_close(trace.gains, exact.gains, rtol=0.05, atol=0.02)
    torch.testing.assert_close(end.double(), wide, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("rule", RULES)
def test_other_conventions_take_the_same_path(rule):
    """Sigmas that count upwards (Mochi) or beyond 1 (Cosmos), whose state is ``(1 + sigma) X``."""
    x = noise()
    levels = torch.tensor([80.0, 9.0, 4.0, 2.0, 1.5, 1.0, 0.6, 0.3, 0.1], dtype=torch.float64)
    flow = (levels / (1 + levels)).tolist()
    end, trace = run(x, sigmas=flow, **RULES[rule])
    assert trace.gains.std(0).max() > 0.01
    up = KTSAdaptiveFlowMatchScheduler(**(OFF | RULES[rule]), invert_sigmas=True)
    up.set_timesteps(sigmas=flow)
    moved = x
    for i, timestep in enumerate(up.timesteps):
        moved = up.step(-field(moved, up.sigmas[i].double()), timestep, moved)[0]
    torch.testing.assert_close(moved, end, rtol=1e-4, atol=1e-4)

    exploding = KTSAdaptiveFlowMatchScheduler(**(OFF | RULES[rule]))
    exploding.set_timesteps(sigmas=levels.tolist())
    moved = x * (1 + levels[0])
    for i, timestep in enumerate(exploding.timesteps):
        sigma = exploding.sigmas[i].double()
        state = moved / (1 + sigma)
        predicted_noise = state + field(state, 1 / (1 + sigma)) / (1 + sigma)
        moved = exploding.step(predicted_noise, timestep, moved)[0]
    torch.testing.assert_close(exploding.kpe.gains, trace.gains, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved, end, rtol=1e-3, atol=1e-3)


class NoWaiting(TorchDispatchMode):
    """Refuses what would wait for the device: reading a number from it, or making a tensor of the host's numbers for it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        assert func.overloadpacket not in (aten._local_scalar_dense, aten.nonzero, aten.lift_fresh), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", RULES)
def test_no_step_after_the_first_waits_for_the_device(rule):
    scheduler, x = KTSAdaptiveFlowMatchScheduler(**(OFF | RULES[rule])), noise()
    scheduler.set_timesteps(sigmas=[1 - i / 9 for i in range(9)])
    scheduler.set_begin_index(0)
    first, *others = scheduler.timesteps
    x = scheduler.step(torch.sin(2 * x), first, x)[0]  # takes the planned gains to the device
    with NoWaiting():
        for timestep in others:
            x = scheduler.step(torch.sin(2 * x), timestep, x)[0]
    assert scheduler.kpe.gains.shape == (6, 9)


def test_records_with_a_gain_per_sample_work_everywhere(tmp_path):
    _, trace = run(noise(), **RULES["cap"])
    trace.save(tmp_path / "trace")
    again = KPETrace.load(tmp_path / "trace")
    assert torch.equal(again.gains, trace.gains) and again.settings == trace.settings
    assert trace.settings["energy_budget"] == 0.4 and trace.settings["turning"] is None
    steps = trace.to_pandas(per_step=True)
    assert steps["eta"].tolist() == trace.gains.flatten().tolist()
    energy = (0.5 * trace.path_power * trace.weights).sum(1)
    torch.testing.assert_close(torch.tensor(trace.to_pandas()["path_energy_total"].values), energy)
    below = trace.plot().figure.axes[1]
    assert below.get_lines()[0].get_ydata()[:-1] == pytest.approx(trace.gains.quantile(0.5, 0).numpy())


def test_copies_go_on_alone_and_a_second_run_starts_afresh():
    for rule in RULES.values():
        scheduler, x = KTSAdaptiveFlowMatchScheduler(**(OFF | rule)), noise()
        first = run(x, scheduler=scheduler)
        second = run(x, scheduler=scheduler)
        assert torch.equal(first[0], second[0]) and torch.equal(first[1].gains, second[1].gains)
        scheduler.set_timesteps(4)
        x = scheduler.step(field(x, 0), scheduler.timesteps[0], x)[0]
        twin, ends = copy.deepcopy(scheduler), []
        for other in (scheduler, twin):
            y = x
            for timestep in scheduler.timesteps[1:]:
                y = other.step(field(y, 0.5), timestep, y)[0]
            ends.append(y)
        assert torch.equal(*ends) and torch.equal(scheduler.kpe.gains, twin.kpe.gains)


@pytest.mark.parametrize("rule", ["cap", "touchdown"])
def test_a_late_start_spends_its_budget_on_the_rest_of_the_path(rule):
    pipe = tiny_sd3_img2img()
    call = {"strength": 0.5, "num_inference_steps": 20}
    pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **OFF)
    pipe(**call_kwargs("sd3_img2img", **call))
    plain = pipe.scheduler.kpe
    setting = {"cap": {"energy_budget": 0.5 * float(plain.per_dim)}, "touchdown": {"turning": 1e-6, "turning_from": 0.6}}[rule]
    pipe.scheduler = KTSAdaptiveFlowMatchScheduler.from_config(pipe.scheduler.config, **setting)
    monitor = KPEMonitorPipeline.from_pipe(pipe)
    monitor(**call_kwargs("sd3_img2img", **call))
    trace = monitor.kpe
    assert trace.late_start and trace.gains.shape == (1, 10)
    if rule == "cap":
        torch.testing.assert_close(trace.per_dim, 0.5 * plain.per_dim, rtol=1e-5, atol=0)
    else:
        assert float(trace.t[:-1][trace.gains[0] > 1]) == pytest.approx(0.6, abs=0.05)
        assert not getattr(pipe.scheduler, "record_turn", True)  # as it was before the call


def test_pipelines_take_it_and_keep_it(tmp_path):
    pipe = ClassConditionalFlowPipeline.from_pretrained(embedded_model())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = KTSAdaptiveFlowMatchScheduler.from_config(pipe.scheduler.config, **OFF, energy_budget=0.7)
    call = {"num_inference_steps": 10, "output_type": "latent"}
    images = pipe([3, 8, 1], generator=torch.Generator().manual_seed(0), **call).images
    assert float(pipe.scheduler.kpe.per_dim.max()) == pytest.approx(0.7, rel=1e-5)
    pipe.save_pretrained(tmp_path / "ours")
    again = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "ours")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is KTSAdaptiveFlowMatchScheduler
    assert torch.equal(again([3, 8, 1], generator=torch.Generator().manual_seed(0), **call).images, images)
    save_with_stock_scheduler(pipe, tmp_path / "stock")
    plain = ClassConditionalFlowPipeline.from_pretrained(tmp_path / "stock").scheduler
    assert type(plain) is FlowMatchEulerDiscreteScheduler
    assert KTSAdaptiveFlowMatchScheduler.from_config(plain.config).config.energy_budget == 0.7


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"energy_budget": 0}, "energy_budget is 0; give an energy per dimension above 0"),
        ({"energy_budget": float("nan")}, "energy_budget is nan"),
        ({"energy_budget": "low"}, "energy_budget is 'low'"),
        ({"energy_budget": 0.8, "max_gain": 0.9}, "max_gain is 0.9; give 1"),
        ({"turning": -1}, "turning is -1; give a threshold above 0"),
        ({"turning": 0.5, "turning_from": 1.0}, "turning_from is 1.0"),
        ({"turning": 0.5, "turning_action": "stop"}, "choose one of touchdown, landing"),
        ({"turning": 0.5, "energy_budget": 0.8}, "leave one out"),
        ({"turning": 0.5, "turning_action": "landing", "beta_0": 0}, "set beta_0"),
        ({"energy_budget": 0.8, "stochastic_sampling": True}, "stochastic_sampling=False"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(setting, words):
    with pytest.raises(ValueError, match=words):
        KTSAdaptiveFlowMatchScheduler(**(OFF | setting))


def test_wrong_calls_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="did you mean 'energy_budget'"):
        KTSAdaptiveFlowMatchScheduler.from_config({}, energy_buget=0.8)
    scheduler, x = KTSAdaptiveFlowMatchScheduler(energy_budget=0.8), torch.zeros(1, 4, 2)
    with pytest.raises(RuntimeError, match="call set_timesteps"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="use KTSFlowMatchScheduler, or leave energy_budget"):
        scheduler.step(x, scheduler.timesteps[0], x, per_token_timesteps=torch.ones(1, 4))
    with pytest.raises(ValueError, match="the turn was not recorded"):
        _ = run(noise(), **RULES["cap"])[1].turning
