"""Basis circuits, drawn at random from those that are alive."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.network.operations import Weighted
from torch_thermo.network.stages import Node
from torch_thermo.observables.circuits.arguments import check_seed, whole
from torch_thermo.observables.circuits.groups import Walk
from torch_thermo.observables.circuits.marginals import ways_on
from torch_thermo.observables.circuits.paths import (
    NO_PATH,
    NOT_FINITE,
    Ends,
    FrozenNetwork,
    check_inputs,
    freeze,
    graph_of,
    has_weight,
)
from torch_thermo.observables.circuits.samples import CircuitPaths, CircuitSample, check_order
from torch_thermo.observables.circuits.walks import count_paths, one_example, steps_of, walk_back
from torch_thermo.operators.memory import available_bytes, gib

# To one unit. Below float64's largest number by more than any unit's candidates: no sum overflows.
_MOST_PATHS = 1e290
# Of what is kept of the paths: the finished walks and what they are put together to; with the
# choice of weights, and what is left of the paths then, if an order is asked for.
_COPIES, _COPIES_OF_ORDERS = 3, 5
# Of the paths that are walked together: 128 MiB. Each walk costs the tables of all layers again.
_NUMBERS_AT_ONCE = 2**24


def sample_circuits(
    network: Network,
    inputs: Tensor,
    paths: int,
    order: int = 0,
    output: int | str | None = None,
    seed: int = 0,
    targets: Tensor | None = None,
    *,
    biases: bool = True,
    keep_paths: bool = False,
) -> CircuitSample:
    r"""Draw basis circuits uniformly from those that are alive (Li, eqs. 10, 11, Fig. 3b).

    With the gates of an example frozen, the alive paths to each unit are counted forwards, in
    float64; then each path is drawn backwards from the output, at each unit with probability
    proportional to the counts behind it. Uniform draws over all paths would be useless: in a
    12-layer VGG some 3e-6 of them are alive.

    Where no weight is exactly 0, all output channels of a convolution share one law a position.
    Otherwise a candidate whose weight is 0 is drawn again, which leaves the law uniform over the
    alive paths. A bias starts a path of its own, and where branches meet in a sum a path comes
    from one of the terms (see `FrozenNetwork`).

    Args:
        network: the network that is read.
        inputs: (B, *network.input_shape).
        paths: in total, spread evenly over the examples, the first ones taking what is left over.
            An example without alive paths gives none.
        order: how many weights, of different layers, are divided out: 0, the circuits themselves,
            1 or 2. One draw serves all orders: draw order 0 and call `CircuitSample.order`, which
            this does with the same seed, and which says what the law is and when fewer circuits
            than paths come back.
        output: where the paths end: None (the only output; of several, with targets, each
            example's class), an index, or "target".
        seed: of the draws.
        targets: labels, see `circuit_asymmetry`; here they only choose the output.
        biases: whether paths start at biases and BatchNorm's shifts too.
        keep_paths: whether to keep where the paths run, `CircuitSample.paths`.

    Raises:
        UnreadableNetworkError: an activation that is no gate times its argument (tanh, GELU,
            sigmoid, softmax), or a recurrent network; the message names the module.
        ValueError: paths below 1, or more than fit into memory (see `stream_circuits`), an order
            that is not 0, 1 or 2, a seed that is none; inputs, targets or output that do not fit
            the network.
        TypeError: no Network, no tensors, or paths, seed or output that are no whole number.

    Example:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[0.0, -3.0]]))
        >>> x = torch.tensor([[5.0, 0.5]])
        >>> found = sample_circuits(Network.from_module(model, x), x, 2)
        >>> found.sign.tolist(), found.inputs.tolist(), found.order(1).values().tolist()
        ([-1, -1], [0.5, 0.5], [1.0, 1.0])
    """
    check_order(order)
    seed = check_seed(seed)
    job = _Job.checked(network, inputs, paths, output, targets, biases, keep_paths)
    job.check_memory(order)
    parts: list[_Part] = []
    problems: Counter[str] = Counter()
    for part in job.run(seed, job.at_once):
        if isinstance(part, _Part):
            parts.append(part)
        else:
            problems[part.why] += 1
    told = [f"{n} of {len(inputs)} examples: {why}" for why, n in problems.items()]
    return replace(job.sample(parts), reason="; ".join(told) or None).order(order, seed)


def stream_circuits(
    network: Network,
    inputs: Tensor,
    paths: int,
    output: int | str | None = None,
    seed: int = 0,
    targets: Tensor | None = None,
    *,
    biases: bool = True,
    keep_paths: bool = False,
    chunk: int | None = None,
) -> Iterator[CircuitSample]:
    """Draw circuits as `sample_circuits` does, in parts: for more of them than memory holds.

    They are of the weights as they are when the first part is drawn: what the training does between
    parts does not change them. But examples with more than 4 million states in all are read some at
    a time; when those that are read later would find other weights, the stream ends with an error.

    Args:
        network: see `sample_circuits`, as for all that is not named here.
        inputs: see there.
        paths: in total.
        output: see there.
        seed: of the draws. With the same chunk the parts are the same, and with the default chunk
            together they are what `sample_circuits` returns.
        targets: see there.
        biases: see there.
        keep_paths: see there.
        chunk: at most so many paths in a part; each costs a table of every layer again. Default:
            what fills 128 MiB.

    Yields:
        Samples of one example each, in the order of the examples; an empty one with the reason for
        an example that has no paths.

    Raises:
        UnreadableNetworkError, ValueError, TypeError: as `sample_circuits`, at the call or, for
            activations that are no gates, at the first part; ValueError: chunk below 1.
        RuntimeError: examples that are still to be read would find changed weights.
    """
    seed = check_seed(seed)
    chunk = None if chunk is None else whole("chunk", chunk, 1)
    job = _Job.checked(network, inputs, paths, output, targets, biases, keep_paths)
    return (
        job.sample([part])
        if isinstance(part, _Part)
        else replace(job.sample([]), reason=f"example {part.example}: {part.why}")
        for part in job.run(seed, chunk or job.at_once)
    )


class _Part(NamedTuple):
    """A finished walk."""

    example: int
    walk: Walk


class _Problem(NamedTuple):
    """Why an example has no paths."""

    example: int
    why: str


@dataclass(frozen=True)
class _Job:
    """Checked arguments."""

    network: Network
    nodes: tuple[Node, ...]
    inputs: Tensor
    paths: int
    ends: Ends
    biases: bool
    keep_paths: bool

    @classmethod
    def checked(
        cls,
        network: Network,
        inputs: Tensor,
        paths: int,
        output: int | str | None,
        targets: Tensor | None,
        biases: bool,
        keep_paths: bool,
    ) -> _Job:
        check_inputs(network, inputs)
        paths = whole("paths", paths, 1)
        ends = Ends.choose(network, len(inputs), output, targets)
        return cls(network, graph_of(network), inputs, paths, ends, biases, keep_paths)

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(n.operation.name for n in self.nodes if has_weight(n.operation))

    @property
    def numbers(self) -> int:
        """What is kept of each path, in numbers of eight bytes."""
        kept = 1 + len(self.layers) + len(self.nodes) if self.keep_paths else 0
        return 4 + len(self.layers) + kept

    @property
    def at_once(self) -> int:
        """The paths of a walk."""
        return max(1, _NUMBERS_AT_ONCE // self.numbers)

    def needs(self, order: int) -> int:
        """Return how many bytes of memory the paths take at most while they are drawn."""
        return 8 * self.numbers * self.paths * (_COPIES_OF_ORDERS if order else _COPIES)

    def check_memory(self, order: int) -> None:
        """Refuse what does not fit.

        Raises:
            ValueError: so many paths do not fit into memory.
        """
        needed, free = self.needs(order), available_bytes(torch.device("cpu"))
        if needed > free:
            raise ValueError(
                f"paths must fit into memory, {needed // self.paths} bytes each while they are "
                f"drawn, got {self.paths}: {gib(needed)} of {gib(free)}; stream_circuits gives "
                "them in parts"
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, seed: int, chunk: int) -> Iterator[_Part | _Problem]:
        """Walk example by example, with at most `chunk` paths at once."""
        generator = torch.Generator().manual_seed(seed)
        share, more = divmod(self.paths, len(self.inputs))
        kept = len(self.nodes) if self.keep_paths else None
        known: list[Tensor] = []
        for part, frozen in freeze(self.network, self.inputs, torch.device("cpu"), self.biases):
            steps = steps_of(frozen)
            # copies cost time: not where all examples are read at once
            now = _weights(frozen) if len(frozen.inputs) < len(self.inputs) else []
            if known and not all(map(torch.equal, known, now)):
                raise RuntimeError(
                    "the weights must stay until all examples are read, and were changed before "
                    f"example {part.start}"
                )
            known = now
            for row, example in enumerate(range(part.start, part.stop)):
                one, end = one_example(frozen, row), int(self.ends.index[example])
                counts = _leading(one, count_paths(one, steps), end)
                why = _problem(counts, end, float(one.outputs[0, end]))
                if why is not None:
                    yield _Problem(example, why)
                    continue
                wanted = share + (example < more)
                for start in range(0, wanted, chunk):
                    walk = Walk(min(chunk, wanted - start), len(self.layers), kept)
                    walk_back(one, steps, counts, walk, end, generator)
                    yield _Part(example, walk)

    def sample(self, parts: Sequence[_Part]) -> CircuitSample:
        """Put finished walks together."""
        walks, layers = [part.walk for part in parts] or [self._nothing()], self.layers
        sizes = [len(part.walk.value) for part in parts]
        examples = torch.tensor([part.example for part in parts], dtype=torch.int64)
        return CircuitSample(
            sign=1 - 2 * torch.cat([walk.negative for walk in walks]).to(torch.int8),
            log_abs=torch.cat([walk.log_abs for walk in walks]),
            inputs=torch.cat([walk.value for walk in walks]),
            examples=examples.repeat_interleave(torch.tensor(sizes, dtype=torch.int64)),
            weights=torch.cat([walk.weights for walk in walks], 1).T,
            layers=layers,
            most=_most_weights(self.nodes),
            paths=CircuitPaths(
                names=tuple(node.operation.name for node in self.nodes),
                units=torch.cat([walk.units for walk in walks], 1).T,
                starts=torch.cat([walk.starts for walk in walks]),
                entries=torch.cat([walk.entries for walk in walks], 1).T,
            )
            if self.keep_paths
            else None,
        )

    def _nothing(self) -> Walk:
        return Walk(0, len(self.layers), len(self.nodes) if self.keep_paths else None)


def _most_weights(nodes: Sequence[Node]) -> int:
    """Return the most weighted operations on any way through the graph."""
    passed = [0]
    for operation, takes in nodes:
        passed.append(max(passed[k + 1] for k in takes) + has_weight(operation))
    return passed[-1]


def _weights(frozen: FrozenNetwork) -> list[Tensor]:
    """Return copies of all that the network reads of its model."""
    found = list(frozen.network.parameters())
    for node in frozen.nodes:
        if isinstance(node.operation, Weighted):
            found += [w for w in (node.operation.weight, node.operation.bias) if w is not None]
    return [tensor.detach().clone() for tensor in found]


def _leading(frozen: FrozenNetwork, counts: list[Tensor], end: int) -> list[Tensor]:
    """Return the counts of one example, 0 at units that do not lead to the output.

    Only where there are too many paths to draw from: no walk comes to such a unit.
    """
    if all(bool((units <= _MOST_PATHS).all()) for units in counts):
        return counts
    ways = ways_on(frozen, torch.tensor([[end]]))
    return [units.masked_fill(way == 0, 0.0) for units, way in zip(counts, ways, strict=True)]


def _problem(counts: Sequence[Tensor], end: int, output: float) -> str | None:
    if not math.isfinite(output):
        return NOT_FINITE
    if not all(float(units.max()) <= _MOST_PATHS for units in counts):
        return f"more than {_MOST_PATHS:g} paths are alive"
    return None if counts[-1].flatten()[end] else NO_PATH
