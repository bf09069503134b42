"""Every kind of model under every observable: measured at each step that is due, or one reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.callbacks.model_zoo import CIRCUITS, OBSERVABLES, ZOO, models_table
from tests.callbacks.support import (
    MAIN,
    assert_same,
    cheap,
    finite,
    loader,
    make_trainer,
    notices,
    run,
)
from torch_thermo.callbacks import CircuitSymmetry, Thermometer

# 16 examples in batches of 4, one epoch
DENSE = ("hessian_density", "functional_density", "circuit_sample", "propagator_spectrum")
OFTEN, EXTREMES, DENSITIES = [0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 4]
DUE = {
    **dict.fromkeys(OBSERVABLES, OFTEN),
    "order_parameter_minibatch": [0, 1, 2, 3],
    "hessian_extremes": EXTREMES,
    **dict.fromkeys(DENSE, DENSITIES),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{model: its thermometer, its notices}."""
    done = {}
    for entry in ZOO:
        thermometer = cheap()
        with notices() as told:
            folder = tmp_path_factory.mktemp("zoo")
            trainer = make_trainer(folder, thermometer)
            trainer.fit(entry.make(), loader(entry.data(), batch_size=4))
        done[entry.name] = (thermometer, told)
    return done


@pytest.mark.parametrize("observable", OBSERVABLES)
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_measured_or_skipped_for_this_reason(trained, entry, observable):
    thermometer, told = trained[entry.name]
    reason = entry.reason(observable)
    mine = [text for text in told if observable in text.partition(" skipped ")[0]]
    steps = finite(thermometer.stored(), observable, MAIN[observable])
    counted = thermometer.session.measurements.get(observable, 0)
    if reason is None:
        assert mine == []
        assert steps == DUE[observable]
        assert counted == len(DUE[observable])
    else:
        assert len(mine) == 1
        assert mine[0].endswith(f" skipped from step 0 on: {reason}")
        assert steps == []
        assert counted == 0


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_one_notice_a_reason(trained, entry):
    _, told = trained[entry.name]
    expected = [
        f"torch-thermo: {', '.join(names)} are skipped from step 0 on: {reason}"
        for names, reason in entry.skipped.items()
    ]
    assert told == expected


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_the_run_is_the_same_bit_by_bit(tmp_path, entry):
    def make() -> Any:
        return entry.make(), loader(entry.data(), batch_size=4)

    plain, _ = run(tmp_path / "plain", make, [], max_epochs=1)
    thermometer = cheap()
    with notices():
        measured, _ = run(tmp_path / "measured", make, [thermometer], max_epochs=1)
    assert_same(plain, measured)
    assert thermometer.session.measurements["order_parameter"] == len(OFTEN)


def test_an_output_that_is_named_is_measured(tmp_path):
    (entry,) = (e for e in ZOO if e.name == "autoencoder")
    thermometer = Thermometer(probe=16, callbacks=[CircuitSymmetry(output=4, paths=50)])
    with notices() as told:
        make_trainer(tmp_path, thermometer).fit(entry.make(), loader(entry.data(), batch_size=4))
    assert told == []
    for name in CIRCUITS:
        assert finite(thermometer.stored(), name, MAIN[name]) == DUE[name]


def test_the_table_names_every_observable_there_is():
    assert set(OBSERVABLES) == set(MAIN) == set(cheap().observables())
    assert len({entry.name for entry in ZOO}) == len(ZOO)
    unknown = [
        name for entry in ZOO for names in entry.skipped for name in names if name not in MAIN
    ]
    assert unknown == []


def test_the_page_of_the_docs_is_this_table():
    page = Path(__file__).parents[2] / "docs" / "models.md"
    assert page.read_text(encoding="utf-8") == models_table(), (
        "make it anew: python -m tests.callbacks.model_zoo docs/models.md"
    )
