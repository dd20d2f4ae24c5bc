"""The step and its energy: exact, in few passes over memory, without waiting for the device."""

import contextlib
import copy
import math

import pytest
import torch
import torch._dynamo
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny_pipelines import call_kwargs, tiny_sd3

from benchmarks.counting import Traffic, Waits
from diffusers_kts import (
    PRESETS,
    KPEMonitorPipeline,
    KTSDDIMScheduler,
    KTSDPMSolverMultistepScheduler,
    KTSEulerDiscreteScheduler,
    KTSFittedFlowMatchScheduler,
    KTSFlowMatchHeunScheduler,
    KTSFlowMatchScheduler,
    KTSUniPCMultistepScheduler,
)
from diffusers_kts.kpe.recording import recording
from diffusers_kts.kpe.sums import squared_norm
from diffusers_kts.schedulers import fused

OFF, SHAPED = PRESETS["off"], {"alpha_0": 0.05, "beta_0": 0.02}
BIG = (2, 16, 256, 256)  # 8 MiB of fp32, 4 of bf16: more than is counted as cached
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def randn(*shape, dtype=torch.float32, seed=0, device="cpu"):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def ready(cls=KTSFlowMatchScheduler, steps=50, device="cpu", **settings):
    scheduler = cls(**settings)
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def stepped(scheduler, v, x):
    return scheduler.step(v, scheduler.timesteps[scheduler.step_index or 0], x, return_dict=False)[0]


# --- exact


@pytest.mark.parametrize("sample_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_off_is_bit_equal_to_the_parent_in_vectorised_kernels_and_mixed_dtypes(dtype, sample_dtype, device):
    """Small tensors never reach them; there, the order of the factors of ``dt v`` already changes bits."""
    x, v = randn(1, 300_007, dtype=sample_dtype, device=device), randn(1, 300_007, dtype=dtype, seed=1, device=device)
    stock, ours = ready(FlowMatchEulerDiscreteScheduler, device=device), ready(device=device, **OFF)
    for _ in range(3):
        one, other = stepped(stock, v, x), stepped(ours, v, x)
        assert one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("settings", [OFF, SHAPED])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_laid_out_in_memory_as_the_parent_s(dtype, settings):
    """The next network call may round otherwise on other strides (Sana's linear attention does)."""
    dense = randn(2, 3, 8, 6, dtype=dtype)
    layouts = [dense, dense.to(memory_format=torch.channels_last), dense.transpose(2, 3).contiguous().transpose(2, 3)]
    for sample_dtype in DTYPES:
        for x in layouts:
            for v in layouts:
                stock, ours = ready(FlowMatchEulerDiscreteScheduler), ready(**settings)
                one, other = (stepped(scheduler, v, x.to(sample_dtype)) for scheduler in (stock, ours))
                assert one.stride() == other.stride()
                assert settings is SHAPED or torch.equal(one, other)


@pytest.mark.parametrize("sample_dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_shaped_step_is_rounded_once(dtype, sample_dtype, device):
    x, v = randn(1, 300_007, dtype=sample_dtype, device=device), randn(1, 300_007, dtype=dtype, seed=1, device=device)
    ours = ready(device=device, **SHAPED)
    dt = (ours.sigmas[1].double() - ours.sigmas[0].double()) * ours.gains[0]
    exact = x.double() + dt * v.double()
    ours_step = stepped(ours, v, x)
    assert ours_step.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(ours_step, exact, rtol=1e-14, atol=1e-14)
    else:  # fp32 on the way moves a value over the edge between two of the dtype now and then; a factor in bf16 does to 4 %
        share = 0.5 if dtype == torch.float32 else 1e-3
        assert (ours_step != exact.to(dtype)).double().mean() < share
        torch.testing.assert_close(ours_step.double(), exact, rtol=torch.finfo(dtype).eps, atol=5e-7)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("d", [1, 7, 96, 600, 4096 * 64, 16 * 21 * 60 * 104, 1_000_003])
def test_energies_of_millions_of_dimensions_are_as_exact_as_fp32_can_tell(d, dtype, device):
    for v in (randn(2, d, dtype=dtype, device=device), torch.full((1, d), 0.1, dtype=dtype, device=device)):
        exact = v.double().square().sum(1)
        torch.testing.assert_close(squared_norm(v).double(), exact, rtol=1e-6, atol=0)


def test_energies_do_not_depend_on_strides(device):
    v = randn(2, 64, 8, 48, device=device)
    for other in (v.transpose(1, 3), v.to(memory_format=torch.channels_last), v[:, :, 1:], v.expand(2, 2, 64, 8, 48)[0]):
        torch.testing.assert_close(squared_norm(other), other.double().square().sum((1, 2, 3)).float(), rtol=1e-6, atol=0)


class Elsewhere(torch.Tensor):
    """On the CPU, and says it is not."""

    is_cpu = False


@pytest.mark.parametrize("shape", [(3,), (3, 5), (3, 4, 8, 8)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_energies_of_other_devices_are_summed_in_one_kernel(shape, dtype):
    v = randn(*shape, dtype=dtype)
    found = squared_norm(v.as_subclass(Elsewhere)).as_subclass(torch.Tensor)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), v.double().square().reshape(3, -1).sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [7, 1037, 384 * 37, 300_007, 64 * 32_771])
def test_a_sample_does_not_depend_on_its_neighbors_or_its_place_in_memory(d, dtype):
    x, v = randn(5, d, dtype=dtype), randn(5, d, dtype=dtype, seed=1)
    together = ready(**SHAPED)
    whole = stepped(together, v, x)
    for i in range(5):
        alone = ready(**SHAPED)
        assert torch.equal(stepped(alone, v[i : i + 1], x[i : i + 1].clone())[0], whole[i])
        assert torch.equal(alone.kpe.power[0], together.kpe.power[i])
    transposed = stepped(ready(**SHAPED), v.T.contiguous().T, x)
    assert torch.equal(transposed, whole)


# --- the schedule on the host


@pytest.mark.parametrize("inference", [False, True])
def test_a_schedule_that_is_replaced_or_written_into_is_followed(inference):
    x, v = torch.zeros(1, 2), torch.ones(1, 2)
    with torch.inference_mode(inference):
        ours = ready(steps=4, alpha_0=0.1, beta_0=0.0, early_schedule="constant")
        ours.sigmas[1] = 0.9  # as Cosmos does
        torch.testing.assert_close(stepped(ours, v, x), torch.full_like(x, 1.1 * -0.1))
        ours.sigmas = torch.tensor([1.0, 0.9, 0.7, 0.6, 0.0])
        torch.testing.assert_close(stepped(ours, v, x), torch.full_like(x, 1.1 * -0.2))
        twin = copy.deepcopy(ours)
        for scheduler in (ours, twin):
            scheduler.sigmas[3] = 0.65
            torch.testing.assert_close(stepped(scheduler, v, x), torch.full_like(x, 1.1 * -0.05))
    assert twin.kpe.sigmas.tolist() == ours.kpe.sigmas.tolist()


def test_gradients_reach_sample_velocity_and_schedule():
    ours = ready(steps=4, alpha_0=0.1, beta_0=0.0, early_schedule="constant")
    ours.fused = True
    x, v = torch.ones(1, 3, requires_grad=True), torch.full((1, 3), 2.0, requires_grad=True)
    ours.sigmas = torch.tensor([1.0, 0.8, 0.4, 0.2, 0.0], requires_grad=True)
    stepped(ours, v, x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(1, 3))
    torch.testing.assert_close(v.grad, torch.full((1, 3), 1.1 * -0.2))
    torch.testing.assert_close(ours.sigmas.grad, 1.1 * 6 * torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0]))


# --- counts


def count_step(scheduler, dtype):
    x, v = randn(*BIG, dtype=dtype), randn(*BIG, dtype=dtype, seed=1)
    stepped(scheduler, v, x)
    with torch.no_grad(), Traffic() as traffic:
        stepped(scheduler, v, x)
    return traffic, 3 * x.numel() * x.element_size()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shaped_step_with_its_energy_moves_few_bytes(dtype):
    """Read the sample, read the velocity twice, write the result: 4/3 of the least there is."""
    stock, _ = count_step(ready(FlowMatchEulerDiscreteScheduler), dtype)
    ours, least = count_step(ready(**SHAPED), dtype)
    assert ours.moved <= 1.5 * least < stock.moved
    assert ours.allocated == [least // 3]
    assert len(stock.allocated) > 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_unshaped_step_is_the_parents_and_one_more_reading_of_the_velocity(dtype):
    stock, _ = count_step(ready(FlowMatchEulerDiscreteScheduler), dtype)
    ours, least = count_step(ready(**OFF), dtype)
    assert stock.moved < ours.moved <= stock.moved + least // 2
    assert ours.allocated == stock.allocated


def test_operations_of_a_step():
    x = randn(1, 16, 32, 32)
    scheduler = ready(**SHAPED)
    stepped(scheduler, x, x)
    with torch.no_grad(), Traffic() as traffic:
        stepped(scheduler, x, x)
    # the levels compared, the step, the norms of the rows, and the sum of their squares
    assert traffic.calls == ["equal", "addcmul", "linalg_vector_norm", "pow", "sum"]


def test_the_record_grows_beyond_the_schedule_and_belongs_to_its_scheduler():
    scheduler = ready(steps=3, **SHAPED)
    for i in range(3):
        stepped(scheduler, torch.full((2, 2), float(i)), torch.zeros(2, 2))
        if i == 1:
            twin, before = copy.deepcopy(scheduler), scheduler.kpe
    stepped(twin, torch.full((2, 2), 9.0), torch.zeros(2, 2))
    assert scheduler.kpe.power.tolist() == [[0.0, 2.0, 8.0]] * 2 and twin.kpe.power.tolist() == [[0.0, 2.0, 162.0]] * 2
    assert before.power.tolist() == [[0.0, 2.0]] * 2
    scheduler._step_index = 0  # as a pipeline that repeats steps without set_timesteps (resampling)
    stepped(scheduler, torch.ones(2, 2), torch.zeros(2, 2))
    assert scheduler.kpe.power.tolist() == [[0.0, 2.0, 8.0, 2.0]] * 2


def test_memory_of_a_run_is_that_of_the_stock_run_and_one_number_per_sample_and_step():
    def peak(scheduler):
        x, v = randn(*BIG), randn(*BIG, seed=1)
        with torch.no_grad(), Traffic() as traffic:
            for _ in range(50):
                x = stepped(scheduler, v, x)
        return traffic.peak

    rows = 4 * math.prod(BIG) // 384
    assert peak(ready(**SHAPED)) <= peak(ready(FlowMatchEulerDiscreteScheduler)) + 4 * BIG[0] * 50 + 2 * rows


class Sampler:
    """The least pipeline there is, for the monitor's recorders."""

    record_turn = False

    def __init__(self, scheduler):
        self.scheduler = scheduler


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FITTED = [[1.0], *[[1.5, -0.5]] * 3, *[[1.5, -0.6, 0.1]] * 2]
FREE = [
    (KTSFlowMatchScheduler, SHAPED),
    (KTSFlowMatchScheduler, SHAPED | {"touchdown": 0.7}),
    (KTSFlowMatchScheduler, OFF),
    (KTSFlowMatchHeunScheduler, SHAPED),
    (KTSFittedFlowMatchScheduler, {"fits": [{"flow_times": [0, 0.1, 0.2, 0.4, 0.7, 0.9, 1], "weights": FITTED}]}),
    (FlowMatchEulerDiscreteScheduler, {}),
]
NOT_FREE = [  # whose parents read numbers at every step, most of them of tensors that always are on the host
    (KTSUniPCMultistepScheduler, UniPCMultistepScheduler, FLOW),
    (KTSDPMSolverMultistepScheduler, DPMSolverMultistepScheduler, FLOW),
    (KTSEulerDiscreteScheduler, EulerDiscreteScheduler, {}),
    (KTSDDIMScheduler, DDIMScheduler, {"clip_sample": False}),
    (FlowMatchHeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler, {}),
]


def waits_of(scheduler, monitored=True, device="cpu"):
    """What a run of a scheduler waits for after its first step, in a monitored pipeline or alone. Waits of CUDA raise."""

    def run():
        scheduler.set_timesteps(6, device=device)
        if hasattr(scheduler, "sigmas") and device == "cpu":
            scheduler.sigmas = scheduler.sigmas.as_subclass(Elsewhere)
        x, waits = randn(2, 4, 8, 8, device=device), []
        for i, timestep in enumerate(scheduler.timesteps):
            with Waits() as waiting, waits_are_errors(device if i else "cpu"):
                x = scheduler.step(
                    torch.sin(2 * x + i), timestep, scheduler.scale_model_input(x, timestep), return_dict=False
                )[0]
            waits += waiting.seen if i else []
        return waits

    if not hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input = lambda x, timestep: x
    if not monitored:
        return run()
    with recording(Sampler(scheduler)):
        return run()


@contextlib.contextmanager
def waits_are_errors(device):
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("cls", "settings"), FREE)
def test_no_step_waits_for_the_device(cls, settings, device):
    assert waits_of(cls(**settings), device=device) == []


@pytest.mark.parametrize(("cls", "stock", "settings"), NOT_FREE)
def test_measuring_and_shaping_never_wait_more_often_than_the_parent(cls, stock, settings):
    alone = waits_of(stock(**settings), monitored=False)
    assert len(waits_of(stock(**settings))) <= len(alone)
    assert len(waits_of(cls(**settings))) <= len(alone)


def test_the_count_of_waits_sees_them():
    x = torch.tensor([1.0, 2.0])
    for wait in (bool, float, torch.Tensor.tolist, torch.Tensor.cpu, torch.nonzero, lambda v: x[v.long()]):
        with Waits() as waiting:
            wait(x[0])
        assert waiting.seen


def test_compiled_networks_stay_whole():
    def compiled(monitor):
        pipe = tiny_sd3()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        pipe.transformer.compile(backend="eager")
        if monitor:
            pipe.scheduler = KTSFlowMatchScheduler.from_config(pipe.scheduler.config, **SHAPED)
            pipe = KPEMonitorPipeline.from_pipe(pipe)
        pipe(**call_kwargs("sd3"))
        counters = torch._dynamo.utils.counters
        return counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), counters["stats"]["calls_captured"]

    plain = compiled(monitor=False)
    assert plain[0] > 0 and compiled(monitor=True) == plain


# --- compiled steps


@pytest.mark.parametrize("works", [True, False])
def test_fused_steps_are_the_same_and_do_without_a_compiler(works, device, monkeypatch):
    monkeypatch.setattr(fused.Compiler, "works", True)
    if not works:
        torch._dynamo.reset()
        monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
        monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
        monkeypatch.setattr(torch._inductor.config, "cuda_backend", "no-such-compiler")
    ends, traces = [], []
    for fuse in (False, True):
        scheduler = ready(steps=6, device=device, **SHAPED)
        scheduler.fused = fuse
        x = randn(2, 4, 16, 24, dtype=torch.bfloat16, device=device)
        with torch.no_grad():
            for i in range(6):
                x = stepped(scheduler, torch.sin(3 * x + i), x)
        ends.append(x)
        traces.append(scheduler.kpe)
    assert ends[1].dtype == torch.bfloat16
    torch.testing.assert_close(ends[1], ends[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(traces[1].power, traces[0].power, rtol=1e-3, atol=0)
    assert fused.Compiler.works == works
    assert "fused" not in scheduler.config
