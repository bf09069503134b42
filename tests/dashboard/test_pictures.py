from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from tests.dashboard.support import events
from torch_thermo import dashboard


def arrays(scale: float = 1.0) -> dict[str, np.ndarray]:
    nodes = scale * np.array([[-1.0, 0.5, 2.0], [-1.5, 1.0, np.nan]])
    weights = np.array([[0.2, 0.5, 0.3], [0.5, 0.5, 0.0]])
    return {"nodes": nodes, "weights": weights, "dimension": np.asarray(100)}


def counted(scale: float = 1.0) -> dict[str, np.ndarray]:
    return dashboard.histogram_arrays(scale * torch.linspace(-1.0, 1.0, 50))


@pytest.fixture
def drawn(monkeypatch) -> list[list[str]]:
    """The labels of the rows of each ridgeline that is drawn."""
    from torch_thermo import figures

    rows: list[list[str]] = []
    whole, spectral = figures.ridgeline, figures.density_ridgeline

    def ridgeline(given, **options):
        rows.append([row.label for row in given])
        return whole(given, **options)

    def density_ridgeline(given, **options):
        rows.append([label for label, _ in given])
        return spectral(given, **options)

    monkeypatch.setattr(figures, "ridgeline", ridgeline)
    monkeypatch.setattr(figures, "density_ridgeline", density_ridgeline)
    return rows


def test_a_density_becomes_an_image_at_its_step(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_figure(writer, "density", "hessian_density", arrays(), 7)
        dashboard.write_figure(writer, "density", "hessian_density", arrays(), 70)
    images = events(tmp_path).Images("thermo/hessian_density/density")
    assert [image.step for image in images] == [7, 70]
    assert (images[0].width, images[0].height) == (600, 400)


@pytest.mark.parametrize(
    ("shape", "exact", "said"),
    [
        ((1, 100), True, "All n = 100 eigenvalues."),
        ((4, 100), False, "All n = 100 eigenvalues of 4 spectra."),
        ((2, 3), False, "n = 100 eigenvalues, m = 3 nodes, k = 2 probes"),
    ],
)
def test_a_logarithm_has_a_linear_axis_and_a_caption_how_it_is_known(
    tmp_path, monkeypatch, shape, exact, said
):
    from torch_thermo import figures

    given = {}
    monkeypatch.setattr(
        figures, "density", lambda *args, **options: given.update(options) or figures.curves([])
    )
    stored = {
        "nodes": np.linspace(-2, 2, shape[0] * shape[1]).reshape(shape),
        "weights": np.ones(shape),
        "dimension": np.asarray(100),
        "exact": np.asarray(exact),
    }
    with SummaryWriter(tmp_path) as writer:
        dashboard.write_figure(writer, "density", "propagator_spectrum", stored, 7)
    assert given["caption"] == said
    assert given["xscale"] == "linear"
    assert given["xlabel"] == r"$\log\lambda$ of the propagator"


@pytest.mark.parametrize(
    ("observable", "one"), [("hessian_density", arrays), ("weight_symmetry", counted)]
)
def test_a_ridgeline_is_an_image_at_its_last_step(tmp_path, drawn, observable, one):
    with SummaryWriter(tmp_path) as writer:
        history = [(0, one(1.0)), (10, one(1.5)), (1000, one(2.0))]
        assert dashboard.write_ridgeline(writer, observable, history)
    (image,) = events(tmp_path).Images(f"thermo/{observable}/ridgeline")
    assert (image.step, image.width) == (1000, 600)
    assert drawn == [["0", "10", "1,000"]]


def test_steps_without_anything_finite_have_no_row(tmp_path, drawn):
    with SummaryWriter(tmp_path) as writer:
        history = [(0, counted()), (10, {}), (20, counted(1.1))]
        assert dashboard.write_ridgeline(writer, "weight_symmetry", history)
        assert not dashboard.write_ridgeline(writer, "weight_symmetry", history[:2])
        assert not dashboard.write_ridgeline(writer, "weight_symmetry", [])
    assert drawn == [["0", "20"]]
    assert len(events(tmp_path).Images("thermo/weight_symmetry/ridgeline")) == 1


def test_what_can_not_be_drawn_is_an_error(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        with pytest.raises(ValueError, match="kind must be 'density', 'histogram' or 'text', got"):
            dashboard.write_figure(writer, "pie", "hessian_density", arrays(), 0)
        with pytest.raises(KeyError, match="weights"):
            dashboard.write_figure(writer, "density", "x", {"nodes": arrays()["nodes"]}, 0)
        flat = {name: np.zeros(3) for name in ("nodes", "weights")}
        with pytest.raises(ValueError, match="nodes and weights"):
            dashboard.write_density(writer, "x", {**flat, "dimension": 5}, 0)
        broken = {name: a for name, a in counted().items() if name != "stats"}
        with pytest.raises(KeyError, match="stats"):
            dashboard.write_figure(writer, "histogram", "x", broken, 0)
