"""Two processes: the same run, the whole probe, and no rank that waits for ever."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.callbacks import rank_runs
from tests.callbacks.support import finite, steps_of
from torch_thermo import (
    HessianOperator,
    Risk,
    gradient_symmetry,
    hessian_spectrum,
    load_run,
    plasticity_order_parameter,
)
from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary import bulk_boundary_loss
from torch_thermo.observables.circuits import circuit_asymmetry, sample_circuits
from torch_thermo.observables.propagator_spectrum import propagator_spectrum
from torch_thermo.symmetry import symmetry_test

ROOT = Path(__file__).parents[2]
NAMES = [
    "plain", "all", "outside", "lasting", "after", "inside", "first", "moody", "passing", "budget",
    "rows",
]  # fmt: skip
OFTEN = [0, 1, 2, 3, 4, 6, 7, 8]  # 8 a decade, the epoch ends 4 and 8


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """{name: what both ranks report}; one start of the processes serves all runs."""
    folder = tmp_path_factory.mktemp("ranks")
    for name in NAMES:
        (folder / name).mkdir()
    log = folder / "log"
    unwanted = ("PYTEST_", "LOCAL_", "MASTER_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [sys.executable, str(Path(rank_runs.__file__)), str(folder), *NAMES],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # so that a rank that hangs is ended with its peer
        )
        try:
            status = process.wait(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done = [name for name in NAMES if (folder / name / "0.json").exists()]
            pytest.fail(f"two ranks hang after {done}:\n{log.read_text()[-3000:]}")
    assert status == 0, log.read_text()[-3000:]
    reports = {
        name: [json.loads((folder / name / f"{rank}.json").read_text()) for rank in (0, 1)]
        for name in NAMES
    }
    return {**reports, "log": log.read_text()}


def test_the_run_is_the_same_bit_by_bit(runs):
    plain = [report["trace"] for report in runs["plain"]]
    assert len(plain[0]) == 8
    for name in ("all", "outside", "lasting", "after", "inside", "first", "budget", "rows"):
        assert [report["trace"] for report in runs[name]] == plain, name


def test_what_is_measured_is_counted(runs):
    for report in runs["all"]:
        assert report["measured"] == {
            "order_parameter": 8,
            "order_parameter_minibatch": 8,
            "gradient_symmetry": 8,
            "weight_symmetry": 8,
            "hessian_extremes": 5,
            "hessian_density": 4,
            "functional_density": 4,
            "bulk_boundary": 8,
            "circuit_symmetry": 8,
            "circuit_sample": 3,
            "propagator_spectrum": 3,
        }
        assert report["notices"] == []
    assert [report["store"] != "" for report in runs["all"]] == [True, False]
    counted = steps_of(load_run(runs["all"][0]["store"]))
    assert counted["order_parameter"] == counted["gradient_symmetry"] == OFTEN
    assert counted["order_parameter_minibatch"] == list(range(8))
    assert counted["hessian_extremes"] == [0, 2, 4, 6, 8]
    assert counted["hessian_density"] == counted["functional_density"] == [0, 3, 6, 8]
    assert counted["bulk_boundary"] == counted["circuit_symmetry"] == OFTEN
    assert counted["circuit_sample"] == counted["propagator_spectrum"] == [0, 4, 8]


def test_unequal_shards_give_the_answer_of_one_process(runs):
    first, second = (report["indices"] for report in runs["all"])
    assert (len(first), len(second)) == (22, 21)
    assert sorted(first + second) == list(range(rank_runs.EXAMPLES))
    stored = load_run(runs["all"][0]["store"])
    pl.seed_everything(1, verbose=False)
    net = rank_runs.Net().eval()
    weights = bytes.fromhex(runs["all"][0]["trace"][-1].split()[0])
    flat = torch.frombuffer(bytearray(weights), dtype=torch.float32)
    x, y = rank_runs.data().tensors

    def value(name: str, at: int) -> float:
        return float(stored.series(name).values[at])

    for at in (0, -1):  # the initial and the final weights
        if at == -1:
            nn.utils.vector_to_parameters(flat, net.parameters())
        risk = Risk(net, nn.functional.cross_entropy, [(x, y)])
        order = plasticity_order_parameter(risk)
        assert value("order_parameter/risk", at) == pytest.approx(risk.value(), rel=1e-5)
        assert value("order_parameter/value", at) == pytest.approx(order.value, rel=1e-4)
        for name, share in order.per_layer.items():
            assert value(f"order_parameter/layer/{name}", at) == pytest.approx(share, rel=1e-3)
        spectrum = hessian_spectrum(risk, steps=4, probes=1)
        measured = value("hessian_density/trace", at)
        assert measured == pytest.approx(spectrum.trace.value, rel=1e-3)
        signs = gradient_symmetry(risk)
        for name, test in signs.items():
            measured = value(f"gradient_symmetry/layer/{name}", at)
            assert measured == pytest.approx(test.sign_balance, abs=1e-12)
    # warm starts move inwards of the exact edges, never outwards
    dense = HessianOperator(risk) @ torch.eye(risk.numel)
    edges = torch.linalg.eigvalsh(dense.double())
    assert value("hessian_extremes/lambda_max", -1) <= float(edges[-1]) * (1 + 1e-5)
    assert value("hessian_extremes/lambda_max", -1) >= 0.9 * float(edges[-1])


def test_unequal_shards_give_the_examples_of_one_process(runs):
    first, second = (report["indices"] for report in runs["all"])
    # as the probe was drawn: one by one to each rank
    order = [index for pair in zip(first, second, strict=False) for index in pair] + [first[-1]]
    stored = load_run(runs["all"][0]["store"])
    pl.seed_everything(1, verbose=False)
    net = rank_runs.Net().eval()
    x, y = (t[order] for t in rank_runs.data().tensors)
    network = Network.from_module(net, x)
    found = circuit_asymmetry(network, x, y)
    arrays = stored.arrays("circuit_symmetry", 0)
    for name in ("alive", "sign_balance", "mass_asymmetry", "output"):
        np.testing.assert_allclose(arrays[name], getattr(found, name).numpy(), rtol=1e-9)
    assert len(arrays["output"]) == rank_runs.EXAMPLES
    losses = bulk_boundary_loss(network, x[:37], y[:37], net.criterion)
    arrays = stored.arrays("bulk_boundary", 0)
    for name in ("bulk", "boundary", "converged"):
        np.testing.assert_allclose(arrays[name], getattr(losses, name).numpy(), rtol=1e-9)
    assert stored.series("bulk_boundary/bulk").values[0] == pytest.approx(losses.bulk_mean)
    # of the mean state over both ranks' examples
    spectrum = propagator_spectrum(network, x[:37])
    nodes = stored.arrays("propagator_spectrum", 0)["nodes"]
    np.testing.assert_allclose(nodes, spectrum.nodes.numpy(), rtol=1e-9, atol=1e-13)
    for name, number in spectrum.summary().items():
        measured = stored.series(f"propagator_spectrum/{name}").values[0]
        assert measured == pytest.approx(number, rel=1e-9, abs=1e-12, nan_ok=True), name
    sign, log_abs = sample_circuits(network, x[:5], 300, targets=y[:5]).weighted()
    test = symmetry_test(sign * log_abs.exp())
    for name in ("n", "sign_balance", "butler", "odd_moment", "w_sym", "w_sym_null"):
        measured = stored.series(f"circuit_sample/{name}").values[0]
        assert measured == pytest.approx(getattr(test, name), rel=1e-9), name


def test_a_rank_that_has_no_rows_stops_nobody(runs):
    reports = runs["rows"]
    assert [report["steps"] for report in reports] == [8, 8]
    stored = load_run(reports[0]["store"])
    assert finite(stored, "bulk_boundary", "bulk") == [0, 2, 4, 5, 6, 7, 8]
    counted = steps_of(stored)
    assert counted["circuit_symmetry"] == list(range(9))
    assert counted["circuit_sample"] == [0, 4, 8]
    told = reports[0]["notices"]
    assert len(told) == 1
    assert "bulk_boundary failed at step 1: the measurement stopped: another rank" in told[0]
    assert "no rows here" in runs["log"]


@pytest.mark.parametrize(
    ("name", "steps", "notice"),
    [
        ("outside", [0, *range(2, 9)], "gradient_symmetry failed at step 1: .*another rank"),
        ("lasting", [], "gradient_symmetry is skipped from step 0 on: .*another rank"),
        ("after", list(range(9)), None),
    ],
)
def test_a_rank_that_raises_stops_nobody(runs, name, steps, notice):
    reports = runs[name]
    assert [report["steps"] for report in reports] == [8, 8]
    stored = load_run(reports[0]["store"])
    assert finite(stored, "gradient_symmetry", "sign_balance") == steps
    assert steps_of(stored)["order_parameter"] == OFTEN
    assert steps_of(stored)["hessian_extremes"] == [0, 2, 4, 6, 8]
    told = reports[0]["notices"]
    assert len(told) == (notice is not None)
    if notice is not None:
        assert re.search(notice, told[0])
    # its own words are in its own log
    assert {"outside": "not here", "lasting": "never here", "after": "too late"}[name] in runs[
        "log"
    ]


def test_a_closure_that_fails_on_one_rank(runs):
    stored = load_run(runs["inside"][0]["store"])
    assert steps_of(stored)["order_parameter"] == [s for s in OFTEN if s != 1]
    assert steps_of(stored)["weight_symmetry"] == OFTEN
    # when it fails at the very first, the loss is found later, by both
    stored = load_run(runs["first"][0]["store"])
    assert steps_of(stored)["order_parameter"] == [s for s in OFTEN if s != 0]
    assert "the loss can't be measured" in runs["first"][0]["notices"][0]


def test_ranks_take_one_kind_of_loss(runs):
    stored = load_run(runs["moody"][0]["store"])
    assert stored.meta["loss"] == "training_step"
    assert steps_of(stored)["order_parameter"] == OFTEN
    assert steps_of(stored)["functional_density"] == []


def test_data_that_pass_are_collected_on_each_rank(runs):
    stored = load_run(runs["passing"][0]["store"])
    # 22 of 43 examples on each rank: more than the 18 that pass in an epoch of three batches
    assert finite(stored, "order_parameter") == [3, 4, 6]


def test_rank_zero_decides_what_a_budget_leaves_out(runs):
    first, second = (report["measured"] for report in runs["budget"])
    assert first == second
    assert first["order_parameter_minibatch"] == 8
