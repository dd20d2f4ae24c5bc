"""KPE: closed-form energies with their order of convergence, layouts, bad numbers, files."""

import copy
import json
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffusers_kts import PRESETS, KPETrace, KTSFlowMatchScheduler


def cosine_grid(n):
    return [math.cos(math.pi / 2 * i / n) ** 2 for i in range(n)]


GRIDS = {
    "uniform": (1.0, lambda n: [1 - i / n for i in range(n)]),
    "shifted": (3.0, lambda n: [1 - i / n for i in range(n)]),
    "cosine": (1.0, cosine_grid),
}


def measure(x, v, n=20, grid="uniform", **shaping):
    shift, sigmas = GRIDS[grid]
    scheduler = KTSFlowMatchScheduler(shift=shift, **(PRESETS["off"] | shaping))
    scheduler.set_timesteps(sigmas=sigmas(n))
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(v(x, 1 - scheduler.sigmas[i].double()), timestep, x)[0]
    return scheduler.kpe


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("n", [1, 7, 50])
def test_a_straight_path_has_half_its_squared_length(grid, n):
    x0, x1 = torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(3, 2, 5, dtype=torch.float64)
    trace = measure(x0, lambda x, t: x0 - x1, n, grid)
    torch.testing.assert_close(trace.path_energy.total, 0.5 * (x1 - x0).square().sum((1, 2)), rtol=1e-12, atol=0)
    torch.testing.assert_close(trace.path_energy.early + trace.path_energy.late, trace.path_energy.total)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("s", [1.0, 0.5])
def test_gaussian_data_converge_at_first_order_to_the_closed_form(grid, s):
    x0 = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def v(x, t):
        return -x * (t * s * s - (1 - t)) / (t * t * s * s + (1 - t) ** 2)  # dx/dsigma = -dx/dt

    if s == 1:
        exact = (1 - math.pi / 4) * x0.square().sum(1)
    else:
        t = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
        rate = (t * s * s - (1 - t)) ** 2 / (t * t * s * s + (1 - t) ** 2)
        exact = 0.5 * rate.mean() * x0.square().sum(1)
    errors = [float(((measure(x0, v, n, grid).model_energy.total - exact) / exact).abs().max()) for n in (200, 400, 800)]
    assert errors[-1] < 0.01
    order = math.log2(errors[0] / errors[2]) / 2
    # on a grid and field that are symmetric in time the first-order terms cancel
    assert order > 0.9


def test_path_energy_is_weighted_by_the_gain_and_model_energy_is_not():
    v = torch.randn(2, 6, dtype=torch.float64)
    trace = measure(torch.zeros_like(v), lambda x, t: v, 10, alpha_0=0.5, beta_0=0.05)
    dt, half = -trace.sigmas.double().diff(), 0.5 * v.square().sum(1)
    torch.testing.assert_close(trace.model_energy.total, half)
    torch.testing.assert_close(trace.path_energy.total, half * (trace.gains**2 * dt).sum(), rtol=1e-6, atol=0)
    early = trace.t[:-1] < 0.6
    assert int(early.sum()) == 6  # t = .6 is landing
    torch.testing.assert_close(trace.path_energy.early, half * (trace.gains**2 * dt)[early].sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(trace.per_dim, trace.path_energy.total / 6)
    torch.testing.assert_close(trace.path_energy.per_dim.total, trace.per_dim)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 5), min_size=0, max_size=4), batch=st.integers(1, 5))
def test_energy_does_not_depend_on_layout_or_batch(shape, batch):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=g)
    field = measure(x, lambda x, t: torch.sin(3 * x), 5)
    flat = measure(x.reshape(batch, -1), lambda x, t: torch.sin(3 * x), 5)
    alone = [measure(x[i : i + 1], lambda x, t: torch.sin(3 * x), 5).power for i in range(batch)]
    torch.testing.assert_close(field.power, flat.power, rtol=1e-6, atol=0)
    torch.testing.assert_close(field.power, torch.cat(alone), rtol=1e-6, atol=0)
    assert field.d == flat.d == math.prod(shape)


def test_half_precision_velocities_are_summed_in_float32():
    v = torch.full((1, 4096), 300.0, dtype=torch.float16)  # its square overflows
    trace = measure(torch.zeros_like(v), lambda x, t: v, 3)
    assert float(trace.model_energy.total) == pytest.approx(0.5 * 4096 * 9e4, rel=1e-6)


def test_a_late_start_is_marked():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    x = torch.ones(2, 3)
    for timestep in scheduler.timesteps[4:]:
        x = scheduler.step(x, timestep, x)[0]
    trace = scheduler.kpe
    assert trace.late_start and trace.t_start == pytest.approx(1 - float(scheduler.sigmas[4]))
    assert trace.num_steps == 6 and len(trace.sigmas) == 7
    assert "2 samples, 6 steps" in repr(trace) and "late start" in repr(trace)


def test_a_velocity_that_is_not_finite_is_told_once_and_stays_with_its_sample():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(4)
    x = torch.ones(3, 2)
    for i, timestep in enumerate(scheduler.timesteps):
        v = torch.ones(3, 2)
        if i >= 2:
            v[1, 0] = float("nan")
        x = scheduler.step(v, timestep, x)[0]
    with pytest.warns(RuntimeWarning, match="sample 1 from step 2") as told:
        trace = scheduler.kpe
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _ = scheduler.kpe
    assert trace.nonfinite.tolist() == [-1, 2, -1]
    assert torch.isfinite(trace.path_energy.total).tolist() == [True, False, True]


def test_a_run_begins_at_set_timesteps():
    scheduler = KTSFlowMatchScheduler()
    assert scheduler.kpe is None
    for batch, steps in ((2, 3), (5, 2)):
        scheduler.set_timesteps(steps)
        for timestep in scheduler.timesteps:
            scheduler.step(torch.ones(batch, 2), timestep, torch.ones(batch, 2))
        assert scheduler.kpe.power.shape == (batch, steps)


def test_another_batch_size_is_another_run():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(3)
    for batch, timestep in zip((2, 5, 5), scheduler.timesteps, strict=True):
        scheduler.step(torch.ones(batch, 2), timestep, torch.ones(batch, 2))
    assert scheduler.kpe.power.shape == (5, 2) and scheduler.kpe.late_start


def test_copies_record_for_themselves():
    scheduler = KTSFlowMatchScheduler()
    scheduler.set_timesteps(2)
    twin = copy.deepcopy(scheduler)
    scheduler.step(torch.ones(1, 2), scheduler.timesteps[0], torch.ones(1, 2))
    twin.step(torch.ones(3, 7), twin.timesteps[0], torch.ones(3, 7))
    assert scheduler.kpe.power.tolist() == [[2.0]] and twin.kpe.power.tolist() == [[7.0]] * 3


def test_gradients_do_not_pile_up_in_the_record():
    scheduler = KTSFlowMatchScheduler(alpha_0=0.1)
    scheduler.set_timesteps(2)
    v = torch.ones(1, 3, requires_grad=True)
    end = scheduler.step(v, scheduler.timesteps[0], torch.zeros(1, 3))[0]
    end.sum().backward()
    torch.testing.assert_close(v.grad, torch.full_like(v, float(scheduler.gains[0] * scheduler.sigmas.diff()[0])))
    assert not scheduler.kpe.power.requires_grad


def test_saved_records_come_back_and_others_are_refused(tmp_path):
    trace = measure(torch.randn(3, 4), lambda x, t: x, 6, alpha_0=0.2)
    path = tmp_path / "run.safetensors"
    trace.save(path)
    again = KPETrace.load(path)
    for name in ("power", "sigmas", "t", "gains"):
        assert torch.equal(getattr(again, name), getattr(trace, name))
    assert again.settings == trace.settings and (again.tau_split, again.d, again.stream) == (0.6, 4, "scheduler")
    whole = path.read_bytes()
    for cut in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="damaged"):
            KPETrace.load(path)
    save_file({"power": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="not an energy record"):
        KPETrace.load(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        KPETrace.load(tmp_path / "nothing")


def test_a_flipped_bit_and_metadata_of_a_wrong_type_are_found(tmp_path):
    trace, path = measure(torch.randn(3, 4), lambda x, t: x, 6), tmp_path / "run.safetensors"
    trace.save(path)
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    for at in (start, start + 17, len(whole) - 1, bytes(whole).index(b"tau_split") + 13):
        flipped = bytearray(whole)
        flipped[at] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            KPETrace.load(path)
    tensors = {"power": trace.power, "sigmas": trace.sigmas, "t": trace.t, "gains": trace.gains}
    about = {"tau_split": 0.6, "d": 4, "stream": "scheduler", "run": 0, "settings": {}, "quadrature": "left"}
    metadata = {"format": "diffusers-kts/kpe", "version": "1"}
    save_file(tensors, path, metadata=metadata | {"trace": json.dumps(about)})
    assert torch.equal(KPETrace.load(path).power, trace.power)  # as releases before the checksum wrote it
    for wrong in ({"d": "4"}, {"settings": []}, {"tau_split": None}, {"stream": 3}, {"run": True}, {"quadrature": "right"}):
        save_file(tensors, path, metadata=metadata | {"trace": json.dumps(about | wrong)})
        with pytest.raises(ValueError, match="damaged energy record"):
            KPETrace.load(path)


def test_a_record_is_saved_as_what_its_name_says(tmp_path):
    with pytest.raises(ValueError, match=r"to_csv"):
        measure(torch.randn(3, 4), lambda x, t: x, 6).save(tmp_path / "kpe.csv")
    assert not list(tmp_path.iterdir())


def test_records_of_batches_join():
    x = torch.randn(5, 4)
    parts = [measure(part, lambda x, t: x, 6) for part in x.split(2)]
    joined, whole = KPETrace.cat(parts), measure(x, lambda x, t: x, 6)
    torch.testing.assert_close(joined.power, whole.power)
    with pytest.raises(ValueError, match="differ"):
        KPETrace.cat([parts[0], measure(x, lambda x, t: x, 7)])


def test_tables():
    trace = measure(torch.randn(3, 4), lambda x, t: x, 6, alpha_0=0.2)
    rows = trace.to_pandas()
    assert len(rows) == 3 and rows["path_energy_total"].tolist() == trace.path_energy.total.tolist()
    assert set(trace.to_dict()) == set(rows.columns)
    steps = trace.to_pandas(per_step=True)
    assert len(steps) == 18 and steps["eta"].iloc[0] == pytest.approx(1.2)
