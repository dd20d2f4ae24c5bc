"""What shaping, measuring and loading cost, in counts: operations, network calls, waits, modules, arithmetic."""

import copy
import importlib
import json
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import diffusers_kts
from benchmarks.counting import Traffic, Waits
from diffusers_kts.memorization.neighbors import nearest_neighbors

ROOT = Path(__file__).parents[2]
STOCK = {
    "KTSFlowMatchScheduler": "FlowMatchEulerDiscreteScheduler",
    "KTSFlowMatchHeunScheduler": "FlowMatchHeunDiscreteScheduler",
    "KTSDDIMScheduler": "DDIMScheduler",
    "KTSEulerDiscreteScheduler": "EulerDiscreteScheduler",
    "KTSUniPCMultistepScheduler": "UniPCMultistepScheduler",
    "KTSDPMSolverMultistepScheduler": "DPMSolverMultistepScheduler",
}


def scheduler(name, **settings):
    return getattr(diffusers_kts, name)(**settings)


def operations(scheduler, steps):
    with Traffic() as traffic:
        scheduler.set_timesteps(steps)
    return traffic.calls


@pytest.mark.parametrize(("name", "stock"), STOCK.items())
def test_a_new_schedule_takes_no_more_operations_than_the_stock_one(name, stock):
    levels = 9 if name == "KTSDDIMScheduler" else 0  # which the stock one has not
    for steps in (20, 100):
        assert len(operations(scheduler(name), steps)) <= len(operations(getattr(diffusers, stock)(), steps)) + levels


def test_a_plan_stands_until_a_level_or_a_setting_changes():
    ours = scheduler("KTSFlowMatchScheduler", touchdown=0.7)
    ours.set_timesteps(20)
    first = ours.plan
    ours.sigmas = ours.sigmas.clone()
    assert ours.plan is first
    ours.sigmas[3] += 0.01
    second = ours.plan
    assert second is not first and second.levels[3] == pytest.approx(first.levels[3] + 0.01)
    ours.alpha_0 = 0.05
    assert ours.plan.gains[0] == 1.05 and ours.config.alpha_0 == 0.05


def state(scheduler):
    """All that a run goes by: no records, and no copies."""
    values = vars(scheduler) | {"gains": scheduler.gains}
    kept = {name: values[name] for name in values.keys() - {"recorder", "_schedule"}}
    return {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in kept.items()}


def edit_levels(scheduler):
    scheduler.sigmas[1] *= 0.9


def edit_timesteps(scheduler):
    scheduler.timesteps[0] += 1


def replace_levels(scheduler):
    scheduler.sigmas = scheduler.sigmas * 0.5


def cut_timesteps(scheduler):
    scheduler.timesteps = scheduler.timesteps[1:]


def shift(scheduler):
    if hasattr(scheduler, "set_shift"):
        scheduler.set_shift(3.0)


def begin_late(scheduler):
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(1)


def renumber(scheduler):
    scheduler.num_inference_steps = 3


MEDDLE = [edit_levels, edit_timesteps, replace_levels, cut_timesteps, shift, begin_late, renumber, lambda _: None]


@pytest.mark.parametrize("name", [name for name in STOCK if "Multistep" not in name])
@settings(max_examples=25, deadline=None)
@given(
    meddling=st.lists(st.sampled_from(MEDDLE), max_size=2),
    steps=st.sampled_from([4, 5]),
    copied=st.booleans(),
    inference=st.booleans(),
    touchdown=st.sampled_from([None, 0.6]),
)
def test_whatever_happened_before_set_timesteps_sets_what_it_does_on_a_fresh_scheduler(
    name, meddling, steps, copied, inference, touchdown
):
    used, fresh = scheduler(name, touchdown=touchdown), scheduler(name, touchdown=touchdown)
    if shift in meddling:
        shift(fresh)
    with torch.inference_mode(inference):
        used.set_timesteps(4)
        for meddle in meddling:
            meddle(used)
        if copied:
            used = copy.deepcopy(used)
        used.set_timesteps(steps)
        fresh.set_timesteps(steps)
        assert state(used) == state(fresh)


def test_a_copy_made_after_levels_were_written_into_goes_by_them():
    ours = scheduler("KTSFlowMatchScheduler")
    ours.set_timesteps(4)
    ours.sigmas[1] = 0.5
    twin = copy.deepcopy(ours)
    assert twin.gains.tolist() == pytest.approx(twin.gain(1 - twin.sigmas[:-1].double()).tolist())


def test_the_record_begins_anew_on_a_schedule_that_stands():
    ours, x = scheduler("KTSFlowMatchScheduler"), torch.ones(2, 3)
    for scale in (1.0, 2.0):
        ours.set_timesteps(3)
        assert ours.step_index is None and ours.kpe is None
        for timestep in ours.timesteps:
            ours.step(scale * x, timestep, x)
        assert ours.kpe.power.tolist() == [[3 * scale**2] * 3] * 2


@pytest.fixture(scope="module")
def bench():
    names = ("report", "cost.stopwatch", "cost.trajectory_energy", "cost.performance_table")
    return type("Bench", (), {name.split(".")[-1]: importlib.import_module(f"benchmarks.{name}") for name in names})


class Counted(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network, self.shape, self.calls = network, network.shape, 0

    def forward(self, x, t):
        self.calls += 1
        return self.network(x, t)


def test_a_batch_of_trajectories_calls_the_network_once_a_step_and_waits_as_often_for_many_as_for_few(bench):
    energy = bench.trajectory_energy
    network, noise = Counted(energy.Mlp(2, 8)), torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    waits = {}
    for batch, steps in ((4, 5), (32, 5), (32, 20)):
        network.calls = 0
        with Waits() as counted:
            energies = energy.as_a_batch(network, noise[:batch], steps)
        assert network.calls == steps and energies.shape == (batch,)
        waits[batch, steps] = len(counted.seen)
    assert waits[4, 5] == waits[32, 5]  # those of set_timesteps, of reading the record, and of looking at the levels
    network.calls = 0
    with Waits() as counted:
        alone = energy.one_at_a_time(network, noise, 20)
    assert network.calls == counted.seen.count("item") == 32 * 20
    torch.testing.assert_close(alone, energies, rtol=1e-5, atol=0)


def test_our_scheduler_loads_nothing_beyond_the_stock_one_but_schedulers():
    code = (
        "import json, sys; from diffusers import FlowMatchEulerDiscreteScheduler; before = set(sys.modules);"
        "from diffusers_kts import KTSFlowMatchScheduler; print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    beyond = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in beyond if not name.startswith(("diffusers_kts", "diffusers.schedulers."))] == []
    assert len(beyond) <= 20


def test_neighbors_take_one_matrix_product():
    g = torch.Generator().manual_seed(0)
    samples, training = torch.rand(50, 10, 10, generator=g), torch.rand(5000, 10, 10, generator=g)
    with FlopCounterMode(display=False) as counter:
        nearest_neighbors(samples, training)
    assert counter.get_total_flops() == 2 * 50 * 5000 * 100


def test_ratios_are_of_the_same_round_and_their_interval_holds_them(bench):
    race = bench.stopwatch.Race({"a": [1.0, 4.0, 9.0, 2.0, 6.0, 8.0], "b": [1.0, 2.0, 3.0, 1.0, 3.0, 4.0]})
    ratio = race.ratio("a", "b")
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 3.0)
    order = []
    bench.stopwatch.race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=6, at_least=0)
    assert "".join(order) == "aabb" + "abba" * 3
    with pytest.raises(ValueError, match="six"):
        bench.stopwatch.race({}, rounds=5)


def test_the_table_holds_every_row_and_its_verdict(bench, monkeypatch, tmp_path):
    out = tmp_path / "benchmarks"
    start, end = bench.report.marks("cost/performance_table")
    page = out / "results" / "performance.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n{start}\nold\n{end}\nafter\n")
    ratio = {"median": 0.5, "low": 0.4, "high": 0.6}
    measure = bench.stopwatch.measure
    rows = [measure("less", 0.7, ratio, "0.1"), measure("more", 20, ratio, "30", at_least=True)]
    environment = bench.stopwatch.machine(0.0)
    bench.report.write_json(out, "schedule_cost", {"measures": rows, "environment": environment})
    step = {"microseconds_at_the_limit": 1.0, "microseconds": {"stock": 4.0}}
    steps = {
        f"{name}, batch 1, float32": step | {"ratio_to_stock": {"shaped and measured": ratio | {"median": median}}}
        for name, median in (("A", 0.9), ("B", 1.1))
    }
    bench.report.write_json(out, "step_cost", {"steps": steps, "environment": environment})
    on_cuda = {"steps": steps, "environment": environment | {"accelerator": "A GPU"}}
    bench.report.write_json(out, "step_cost_cuda", on_cuda)
    monkeypatch.setattr(sys, "argv", ["performance_table", "--output", str(out)])
    bench.performance_table.main()
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert (
        "| less | <= 0.7 | 0.5 (0.4 to 0.6) | 0.1 | reached |" in text and "| >= 20 | 0.5 (0.4 to 0.6) | 30 | missed |" in text
    )
    assert text.count("stock step") == 4 and "A, batch 1, float32, A GPU | <= 1 | 0.9" in text
