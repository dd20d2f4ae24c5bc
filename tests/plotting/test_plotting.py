"""Pictures show what was measured: read back from the axes that were drawn."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from diffusers_kts import KPETrace
from diffusers_kts.kpe.plot import plot_power
from diffusers_kts.plotting import plot_neighbors, plot_samples


@pytest.fixture
def trace():
    t = torch.linspace(0, 1, 6, dtype=torch.float64)
    power = torch.rand(9, 5, generator=torch.Generator().manual_seed(0))
    power[3, 2] = torch.nan
    return KPETrace(power, 1 - t, t, torch.tensor([1.1, 1.0, 1.0, 0.9, 0.8]), 0.6, 4, settings={"scheduler": "KTS"})


@pytest.mark.parametrize("own_axes", [False, True])
def test_power_is_the_median_of_path_power_over_flow_time(trace, own_axes):
    given = Figure().add_subplot() if own_axes else None
    ax = plot_power({"kts": trace, "again": trace}, ax=given)
    assert given is None or ax is given
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), trace.t)
    np.testing.assert_allclose(line.get_ydata()[:-1], np.nanmedian(trace.path_power.numpy(), axis=0))
    below = next(axes for axes in ax.figure.axes if axes is not ax)
    np.testing.assert_allclose(below.get_lines()[0].get_ydata()[:-1], trace.gains)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["kts", "again"]
    assert any("tau_split = 0.6" in text.get_text() for text in ax.texts)
    ax.figure.canvas.draw()


def test_trace_plots_itself(trace, tmp_path):
    trace.plot().figure.savefig(tmp_path / "energy.png")
    assert (tmp_path / "energy.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="no trace"):
        plot_power({})


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_put_samples_in_place(channels):
    images = torch.rand(5, channels, 4, 4)
    figure = plot_samples({"a": images, "b": images}, {"a": images[:, 0, 0, 0] > 2, "b": images[:, 0, 0, 0] < 2}, columns=3)
    first, second = figure.axes
    assert (len(first.patches), len(second.patches)) == (0, 5)
    drawn = np.asarray(first.images[0].get_array())
    np.testing.assert_allclose(drawn[7:11, 0:4, 0], images[3, 0].numpy(), rtol=1e-6)


def test_neighbors_stand_beside_their_sample():
    samples, training = torch.rand(3, 1, 4, 4), torch.rand(6, 1, 4, 4)
    distances, indices = torch.tensor([[1.0, 2.0]] * 2 + [[0.1, 2.0]]), torch.tensor([[0, 1], [2, 3], [5, 4]])
    figure = plot_neighbors([2, 0], {"a": samples}, training, {"a": distances}, {"a": indices})
    axes = figure.subfigs[0].axes
    np.testing.assert_allclose(np.asarray(axes[1].images[0].get_array())[..., 0], training[5, 0].numpy(), rtol=1e-6)
    assert axes[0].texts[0].get_text() == "0.05" and len(axes[0].patches) == 1
    assert axes[3].texts[0].get_text() == "0.50" and not axes[3].patches
