"""One of two processes of a risk whose batches are spread over them: started by test_risk.py."""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    Risk,
    hessian_spectrum,
    plasticity_order_parameter,
)
from torch_thermo.observables import hessian_entries

SHARDS = ((0, 1, 2), (3,))  # the batches of each rank


def problem():
    """A net with dead examples and four batches of 5, 4, 1 and 3."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(13, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(13, 1, generator=generator, dtype=torch.float64).sign()
    return model, list(zip(x.split([5, 4, 1, 3]), y.split([5, 4, 1, 3]), strict=True))


def squared_hinge(output, target):
    return (0.5 - output * target).clamp(min=0).square().mean()


def weighted(model, batch):
    return squared_hinge(model(batch[0]), batch[1]), len(batch[0]) ** 1.5


def measured(batches, group=None):
    """All that a risk gives, as tensors by name."""
    model, _ = problem()
    risk = Risk(model, squared_hinge, batches, process_group=group)
    opaque = Risk.from_closure(model, weighted, batches, process_group=group)
    v = torch.linspace(-1, 1, risk.numel, dtype=torch.float64)
    result = {"value": torch.tensor(risk.value()), "weighted value": torch.tensor(opaque.value())}
    result["gradient"], result["weighted gradient"] = risk.gradient(), opaque.gradient()
    for operator in (HessianOperator, FunctionalHessianOperator, GaussNewtonOperator):
        result[operator.__name__] = operator(risk) @ torch.stack([v, v.square()], dim=1)
    result["weighted product"] = HessianOperator(opaque) @ v
    for name, of in (("structured", risk), ("weighted", opaque)):
        for population in (None, 100):
            found = plasticity_order_parameter(of, population=population)
            numbers = [found.value, found.unbiased, found.stderr, found.risk_value]
            numbers += [found.groups, *found.per_layer.values()]
            result[f"order parameter {name} {population}"] = torch.tensor(numbers)
    entries = hessian_entries(risk, 6, 7)
    result["entries"], result["active"] = entries.entries, entries.active.double()
    spectrum = hessian_spectrum(risk, steps=6, probes=2)
    result["spectrum"] = torch.cat([spectrum.measure.nodes, spectrum.measure.weights])
    return result


def failing(rank, group):
    """On rank 1 a batch raises, in each measurement; what every rank was told, by measurement."""
    model, batches = problem()
    shard = [batches[i] for i in SHARDS[rank]]

    def loss_fn(output, target):
        if rank == 1 and broken[0]:
            raise OSError("the disk is gone")
        return squared_hinge(output, target)

    risk = Risk(model, loss_fn, shard, process_group=group)
    broken = [True]
    told = {}

    def frozen_value():
        with risk.frozen():
            return risk.value()

    for name, measure in {
        "value": risk.value,
        "frozen value": frozen_value,
        "gradient": risk.gradient,
        "hessian": HessianOperator(risk).dense,
        "functional": FunctionalHessianOperator(risk).dense,
        "gauss-newton": GaussNewtonOperator(risk).dense,
        "order parameter": lambda: plasticity_order_parameter(risk),
        "spectrum": lambda: hessian_spectrum(risk, steps=4),
    }.items():
        try:
            measure()
            told[name] = "nothing"
        except Exception as error:
            told[name] = f"{type(error).__name__}: {error}"
    broken[0] = False
    told["afterwards"] = risk.value()  # the ranks still agree on what comes next
    return told


def uncounted(rank, group):
    """On rank 1 the examples can't be counted; None is no reason to stop, a population is."""
    model, batches = problem()
    shard = [batches[i] if rank == 0 else {"x": None, "index": i} for i in SHARDS[rank]]

    def closure(model, batch):
        if isinstance(batch, dict):
            batch = batches[batch["index"]]
        return squared_hinge(model(batch[0]), batch[1]), len(batch[0])

    risk = Risk.from_closure(model, closure, shard, process_group=group)
    told = {"value": plasticity_order_parameter(risk).value}
    try:
        plasticity_order_parameter(risk, population=100)
    except ValueError as error:
        told["population"] = str(error)
    return told


def main() -> None:
    rank, rendezvous, out = int(sys.argv[1]), *sys.argv[2:4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    group = dist.group.WORLD
    batches = problem()[1]
    result = {
        "measured": measured([batches[i] for i in SHARDS[rank]], group),
        "failing": failing(rank, group),
        "uncounted": uncounted(rank, group),
    }
    torch.save(result, f"{out}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
