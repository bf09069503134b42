"""What is shared between the densities of one moment."""

from __future__ import annotations

import numpy as np
import pytest

from tests.callbacks.model_zoo import ZOO
from tests.callbacks.support import loader, make_trainer
from torch_thermo.callbacks import At, HessianSpectrum, hessian_spectrum


@pytest.mark.parametrize(("name", "times"), [("VGG", 1), ("MLP, ReLU", 2)])
def test_the_hessian_of_a_hinge_loss_is_measured_once(tmp_path, monkeypatch, name, times):
    seen = []
    measure = hessian_spectrum.hessian_spectrum

    def counted(risk, operator="hessian", *args, **options):
        if not options:  # the extremes name theirs
            seen.append(operator)
        return measure(risk, operator, *args, **options)

    monkeypatch.setattr(hessian_spectrum, "hessian_spectrum", counted)
    entry = next(entry for entry in ZOO if entry.name == name)
    callback = HessianSpectrum(
        At(epochs=[0]), density=At(epochs=[0, 1]), density_steps=4, examples=8
    )
    make_trainer(tmp_path, callback).fit(entry.make(), loader(entry.data()))
    assert seen == ["hessian", "functional"][:times] * 2
    stored = callback.stored()
    for step in stored.series("hessian_density/trace").steps:
        whole, part = (
            stored.arrays(f"{operator}_density", int(step))
            for operator in ("hessian", "functional")
        )
        same = np.array_equal(whole["nodes"], part["nodes"])
        assert same == (times == 1)
