"""Steps split into stages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch_thermo.network.following import Step
from torch_thermo.network.joins import Concatenate, Sum
from torch_thermo.network.operations import Convolution, Dense, Elementwise, Scale, Weighted
from torch_thermo.network.stages import Stage, chained

__all__ = ["split"]


def split(steps: Sequence[Step]) -> tuple[Stage, ...]:
    """Split steps into stages, so that each layer belongs to exactly one of them.

    A *layer* is a `Dense` or `Convolution`. A *row* are steps each of which alone takes what the
    one before gives, and nothing else. A stage ends, and the result there is a state,

    - behind a run of elementwise operations: from the first to the last in a row behind a layer or
      a state, up to the next layer. The run is the stage's activation; what lies behind it (pools,
      reshapes, a normalisation) goes to the stages that take it;
    - where a layer would follow a layer without an activation in between: behind the first of them,
      or behind the sum that lies between, with the normalisation directly there;
    - where several steps take a result that has a layer or a sum behind it since the states
      before: a residual stream is a series of states whose activation is the identity.

    Where the last two rules would end it behind a concatenation, what is concatenated are states
    instead: no neuron is there twice.

    What has no layer, such as a pool or a normalisation whose result several steps take, is a part
    of each stage that needs it, its weights too: a multiple of a state is no neuron. Before the
    first layer nothing ends a stage or is an activation: the input's numbers are given, however
    they are scaled or bent there. The last stage, the output, has all that follows; its activation
    is the row behind its layer, sum or concatenation, from the first elementwise operation to the
    end.

    So the pre-activation is affine in the states that a stage takes, but for max-pools; and in a
    chain, where each step takes what the one before gives, each stage has one layer.

    Returns:
        The stages; none where there is no layer.
    """
    graph = _Graph(steps)
    if not any(map(graph.is_layer, range(len(steps)))):
        return ()
    states = graph.states()
    return tuple(graph.stage(number, states) for number in range(len(states)))


class _Graph:
    """Steps, and which of them take what each gives.

    Args:
        steps: that all lead to the last.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self._takers: list[list[int]] = [[] for _ in steps]
        for number, step in enumerate(steps):
            for taken in set(step.takes) - {-1}:
                self._takers[taken].append(number)

    def is_layer(self, number: int) -> bool:
        """Whether a step is a layer."""
        return isinstance(self.steps[number].operation, Dense | Convolution)

    def states(self) -> list[int]:
        """Return the steps whose results are the states, in order, the output last."""
        output = len(self.steps) - 1
        tail = self._row_to(output, ())
        found: set[int] = set()
        # of each: whether layers or sums, and whether layers, lie between the states and its result
        summed: set[int] = set()
        layered: set[int] = set()
        # results that have neither states nor layers behind them
        raw = {-1}
        for number, step in enumerate(self.steps):
            since = set(step.takes) - found
            if self.is_layer(number) or layered & since:
                layered.add(number)
            elif raw.issuperset(step.takes):
                raw.add(number)
            sums = isinstance(step.operation, Sum) and number not in raw
            if number in layered or sums or summed & since:
                summed.add(number)
            row = self._row_from(number)
            bends = self._bends(row)
            if number in bends and number not in raw and number not in tail:
                found.add(bends[-1])
            starts = number in layered and (self.is_layer(number) or len(step.takes) > 1)
            meets_layer = starts and not bends and self._before_layer(row[-1])
            if meets_layer or (number in summed and len(self._takers[number]) > 1):
                states = {self._behind_scales(row) if meets_layer else number}
                if isinstance(step.operation, Concatenate):
                    # not neurons twice: those it concatenates
                    states = summed & since
                    summed.discard(number)
                    layered.discard(number)
                    raw.discard(number)
                found |= states
                raw -= states
        return [*sorted(found), output]

    def stage(self, number: int, states: Sequence[int]) -> Stage:
        """Return a stage.

        Args:
            number: of the stage.
            states: the steps that give the states.
        """
        end = states[number]
        within = self._between(end, states[:number])
        stage_of = {state: place for place, state in enumerate(states[:number])} | {-1: -1}
        taken = {t for k in within for t in self.steps[k].takes} & stage_of.keys()
        row = self._row_to(end, states[:number])
        bends = self._bends(row)
        # not for what several steps take before the first layer
        behind = taken != {-1} or any(map(self.is_layer, within))
        activation = row[row.index(bends[0]) :] if bends and behind else []
        linear = [k for k in within if k not in activation]
        parents = tuple(sorted(stage_of[t] for t in taken))
        values = {t: parents.index(stage_of[t]) for t in taken}
        values |= {k: ~place for place, k in enumerate(linear)}
        wiring = tuple(tuple(values[t] for t in self.steps[k].takes) for k in linear)
        return Stage(
            name=self._name(linear or activation, stage_of),
            parents=parents,
            linear=tuple(self.steps[k].operation for k in linear),
            activation=tuple(self.steps[k].operation for k in activation),
            shape=self.steps[end].shape,
            wiring=None if wiring == chained(len(linear)) and len(parents) == 1 else wiring,
        )

    def _name(self, steps: Sequence[int], stage_of: Mapping[int, int]) -> str:
        """Return the name of the layer that takes the latest state: not of a shortcut's."""
        latest = dict(stage_of)
        for k in steps:
            latest[k] = max(latest[t] for t in self.steps[k].takes)
        layers = [k for k in steps if self.is_layer(k)]
        weighted = [k for k in steps if isinstance(self.steps[k].operation, Weighted)]
        named = max(layers or weighted or steps[-1:], key=lambda k: (latest[k], k))
        return self.steps[named].operation.name

    def _row_from(self, number: int) -> list[int]:
        """Return the row that begins with a step, up to the next layer."""
        row = [number]
        while (behind := self._alone_behind(row[-1])) is not None and not self.is_layer(behind):
            row.append(behind)
        return row

    def _row_to(self, number: int, states: Collection[int]) -> list[int]:
        """Return the row that ends with a step, behind a layer, a join or a state."""
        row: list[int] = []
        while number >= 0 and number not in states and not self.is_layer(number):
            takes = self.steps[number].takes
            if len(takes) > 1:
                break
            row.insert(0, number)
            (number,) = takes
        return row

    def _alone_behind(self, number: int) -> int | None:
        """Return the step that alone takes a result, and takes nothing else."""
        takers = self._takers[number]
        return takers[0] if len(takers) == 1 and self.steps[takers[0]].takes == (number,) else None

    def _before_layer(self, number: int) -> bool:
        behind = self._alone_behind(number)
        return behind is not None and self.is_layer(behind)

    def _bends(self, row: Sequence[int]) -> list[int]:
        return [k for k in row if isinstance(self.steps[k].operation, Elementwise)]

    def _behind_scales(self, row: Sequence[int]) -> int:
        """Return the last of the scales directly behind the first of a row, else the first."""
        kept = row[0]
        for k in row[1:]:
            if not isinstance(self.steps[k].operation, Scale):
                break
            kept = k
        return kept

    def _between(self, end: int, states: Collection[int]) -> list[int]:
        """Return the steps between states and the result of step `end`, in order."""
        found, waiting = {end}, [end]
        while waiting:
            for taken in self.steps[waiting.pop()].takes:
                if taken >= 0 and taken not in states and taken not in found:
                    found.add(taken)
                    waiting.append(taken)
        return sorted(found)
