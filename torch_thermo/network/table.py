"""The table of what is read, as Markdown: ``python -m torch_thermo.network.table FILE``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo.network.activations import ACTIVATIONS
from torch_thermo.network.arithmetic import (
    ARITHMETIC,
    ARITHMETIC_FUNCTIONS,
    ARITHMETIC_METHODS,
)
from torch_thermo.network.errors import READ
from torch_thermo.network.functional import FUNCTIONS, METHODS, READERS
from torch_thermo.network.modules import MODULES
from torch_thermo.network.refusals import REFUSED

__all__ = ["support_table"]

_HEAD = """\
# Which models are read

`Network.from_module` reads a model whose forward pass is made of the modules and functions below,
one behind the other (a chain) or with branches that meet in sums and concatenations (skip
connections). Bulk and boundary loss, the propagator and the circuits measure both; circuits need
activations that are a gate times their input, as the column says (of functions those of the same
names). What cannot be read raises `UnreadableNetworkError`, which names the part and the reason.
The other observables (order parameter, Hessian, symmetry of weights and gradients) take any model.

Made from the code by `python -m torch_thermo.network.table docs/modules.md`.

The model is read in eval mode. Its forward may call functions (`F.relu`, `x.view(x.size(0), -1)`),
take weights of its own (`F.linear(x, self.weight * self.mask)`) and nest modules as it likes; a
subclass that keeps its parent's `forward` is read as the parent. Weights under
`torch.nn.utils.parametrizations` are followed. A model inside `torch.compile`, `DataParallel` or
`DistributedDataParallel` is read from there, a LightningModule by its `forward`.

Not read, whatever the modules are:

- branches that meet otherwise than in a sum, a difference or a concatenation: products of values
  that both come from the input, as in gates and attention;
- a forward that depends on its input's values (`if x.sum() > 0`) or on the number of examples; on
  the shape of one example (`if x.dim() == 3`) it may depend, which is the network's from then on;
- a number taken out of a weight or buffer (`self.scale.item()`): it would not follow the training;
  the tensor itself is read (`x * self.scale`), and its parts (`self.weight.chunk(2)`);
- several inputs, or an output that is not one tensor with the batch as first axis;
- a model without a linear layer or convolution;
- TorchScript; weights rewritten by hooks (`nn.utils.weight_norm`, `nn.utils.spectral_norm`,
  `nn.utils.prune`): their parametrizations, or `prune.remove`, make them readable;
- what acts beside the forward's return value, such as a forward hook that changes an output.
"""


def support_table() -> str:
    """Return docs/modules.md: the modules and functions that are read, and those that are not."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, reason in REFUSED.items():
        reasons.setdefault(reason, []).append(name)
    uses: dict[tuple[str, str], list[str]] = {}
    for kind, (_, use) in MODULES.items():
        uses.setdefault((use, _in_circuits(kind)), []).append(f"nn.{kind.__name__}")
    sections = (
        _HEAD,
        "## Modules that are read\n",
        _table(
            ("module", "read as", "in circuits"),
            ((_code(kinds), *use) for use, kinds in uses.items()),
        ),
        "## Functions and methods that are read\n\n"
        "Those that work in place too (`torch.relu_`, `x.relu_()`).\n",
        _table(("name", "called as"), ((f"`{n}`", _code(_spellings(n))) for n in sorted(READERS))),
        "## Arithmetic that is read\n\n"
        "With operators too (`x + y`, `x / 255`). A weight is a tensor of the model that has one\n"
        "number, one a channel, or fits one example.\n",
        _table(
            ("name", "called as", "read as"),
            ((f"`{n}`", _code(_written(n)), use) for n, (_, _, use) in ARITHMETIC.items()),
        ),
        "## What is not read\n",
        _table(
            ("class or function", "why", "instead"),
            (
                (_code(names), why, "" if remedy == READ else remedy)
                for (why, remedy), names in reasons.items()
            ),
        ),
    )
    return "\n".join(sections)


def _in_circuits(kind: type[nn.Module]) -> str:
    for activation in ACTIVATIONS:
        if activation.module is kind:
            if activation.slope is None:
                return "no"
            always = activation.slope(**activation.arguments) is not None
            return "yes" if always else "where it is a ReLU"
    return "yes"


def _spellings(name: str) -> list[str]:
    called = [
        f"{place}.{name}"
        for place, owner in (("F", F), ("torch", torch))
        if getattr(owner, name, None) in FUNCTIONS
    ]
    if name in METHODS:
        called.append(f"x.{name}")
    return called


def _written(name: str) -> list[str]:
    _, spellings, _ = ARITHMETIC[name]
    functions = [f"torch.{s}" for s in spellings if getattr(torch, s, None) in ARITHMETIC_FUNCTIONS]
    return functions + [f"x.{s}" for s in spellings if s in ARITHMETIC_METHODS]


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m torch_thermo.network.table FILE")
    Path(sys.argv[1]).write_text(support_table(), encoding="utf-8")
