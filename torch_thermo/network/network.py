"""A model as stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torch_thermo.network.errors import unreadable
from torch_thermo.network.fixed_point import FixedPoint, fixed_point, settled
from torch_thermo.network.matrix import Indices, matrix_stages
from torch_thermo.network.operations import Convolution, Dense, Operation
from torch_thermo.network.reading import read_model
from torch_thermo.network.splitting import split
from torch_thermo.network.stages import Node, Stage, flattened

__all__ = ["Network"]


class Network:
    """A model read as stages: layers of weights, each with its activation.

    ``x_l = f_l(W_l x_{l-1} + b_l)``, the feed-forward state of V. Vanchurin, *Towards a theory of
    machine learning* (sec. 2): neurons are the input and the stages' outputs. Made by
    `from_module` or `from_matrix`. The weights are the model's, read anew at each call: the network
    follows the training. It computes in the dtype and on the device of its input.

    Args:
        stages: in order.
        input_shape: of one example.
        parameters: gives the live parameters.
        order: of a network from a matrix, the matrix's neurons in the network's order: the
            input's, then stage by stage, ``(N,)``; None for others.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        input_shape: torch.Size,
        parameters: Callable[[], list[Tensor]],
        order: Tensor | None = None,
    ) -> None:
        self.stages = tuple(stages)
        self.input_shape = input_shape
        self.order = order
        self._parameters = parameters

    @classmethod
    def from_module(cls, model: nn.Module, example_input: Tensor) -> Network:
        """Read a model.

        Its forward is followed by torch.fx, and what was read is compared with the model in eval
        mode: on the example, and on random numbers of its shape, since an example of zeros tells
        little; where the model fails on those, on the example alone. The model's forward runs
        twice. Flags, attributes (with the lists, dicts, sets, deques and attributes of objects in
        them), buffers and torch's generators are put back; what forward or a hook keeps elsewhere
        stays there.

        Parameters and buffers are followed by their names, modules are not: after
        ``model[0] = nn.Linear(3, 4)`` the network has the old one still, so read the model again.

        Args:
            model: made of what the table in docs/modules.md has, a chain or with branches that
                meet in sums and concatenations; see `splitting.split` for its stages. A model
                inside torch.compile, DataParallel or DistributedDataParallel is read from there.
            example_input: a batch ``(B, ...)`` of floating-point numbers as the model takes it,
                on the model's device.

        Raises:
            UnreadableNetworkError: names the part that cannot be read, why, and what would be.
            TypeError: the model is no module, or the example no tensor.
            ValueError: the example is no batch of floating-point numbers.

        Example:
            >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> network = Network.from_module(model, torch.rand(5, 3))
            >>> network
            Network(3 - 4 - 2)
            >>> [stage.name for stage in network.stages]
            ['0', '2']
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if not isinstance(example_input, Tensor):
            raise TypeError(f"example_input must be a tensor, got {type(example_input).__name__}")
        if example_input.dim() == 0 or not len(example_input):
            shape = tuple(example_input.shape)
            raise ValueError(f"example_input must be a batch of at least 1 example, got {shape}")
        if not example_input.is_floating_point():
            raise ValueError(
                f"example_input must be floating-point numbers, got {example_input.dtype}"
            )
        followed = read_model(model, example_input)
        stages = split(followed.steps)
        if not stages:
            raise unreadable("", type(model).__name__, "it has no layer of weights")
        return cls(stages, example_input.shape[1:], followed.parameters)

    @classmethod
    def from_matrix(
        cls,
        w: Tensor,
        b: Tensor,
        activation: Callable[[Tensor], Tensor],
        inputs: Indices,
        outputs: Indices,
    ) -> Network:
        """Take a network from one matrix of weights between all neurons: ``x = f(w x + b)``.

        The general case of V. Vanchurin, *Towards a theory of machine learning* (sec. 2): w_ij is
        the weight with which neuron i reads neuron j. Input neurons are clamped to the data: their
        rows of w and entries of b are not read.

        Where no path along w comes back to a neuron and none reads an output, w is nilpotent and
        the network an ordinary feed-forward one: a stage for each length of the longest path from
        the input, and the outputs last. Others have the stages "hidden" and "output" that read
        both; their states are found by iteration, see `fixed_point`.

        Weights are read anew at each call, so the network follows w and b in training. Which
        blocks of w are 0 is read once: those are left out, and stay out.

        Args:
            w: ``(N, N)``, any floating-point dtype.
            b: ``(N,)``.
            activation: f, of all neurons but the input's: an elementwise function or module such
                as `torch.tanh` and ``nn.Tanh()``.
            inputs: the input neurons in the order of an example's numbers: indices, a slice, or
                how many of the first.
            outputs: the output neurons in the order of the outputs' numbers: indices, a slice, or
                how many of the last.

        Raises:
            ValueError: w is not square or not finite, b does not fit, neurons that are not there,
                twice there or input and output at once, or an activation that is not elementwise.
            TypeError: w or b is no tensor, the activation a class or not callable, or inputs or
                outputs no numbers.

        Example:
            >>> w = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 2.0, 0.0]])
            >>> network = Network.from_matrix(w, torch.zeros(3), torch.tanh, inputs=1, outputs=1)
            >>> network, [stage.parents for stage in network.stages]
            (Network(1 - 1 - 1), [(-1,), (-1, 0)])
        """
        stages, order = matrix_stages(w, b, activation, inputs, outputs)
        learnt = activation.parameters() if isinstance(activation, nn.Module) else ()
        parameters = [t for t in (w, b, *learnt) if t.requires_grad]
        shape = torch.Size((len(order) - sum(stage.size for stage in stages),))
        return cls(stages, shape, lambda: list(parameters), order)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """All operations in order, stage by stage; what several stages share, in each of them."""
        return tuple(
            operation for stage in self.stages for operation in (*stage.linear, *stage.activation)
        )

    @property
    def graph(self) -> tuple[Node, ...]:
        """The `operations` in order, each with the numbers of those whose values it takes.

        Raises:
            ValueError: the network is recurrent: its operations have no order.
        """
        if self.is_recurrent:
            raise ValueError("a recurrent network is no graph of operations in order")
        return flattened(self.stages)

    @property
    def output_shape(self) -> torch.Size:
        """The shape of one example's output."""
        return self.stages[-1].shape

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of units of the input and of each stage."""
        return (self.input_shape.numel(), *(stage.size for stage in self.stages))

    @property
    def neurons(self) -> int:
        """The number of all units, N."""
        return sum(self.sizes)

    @property
    def is_chain(self) -> bool:
        """Whether each operation takes what the one before gives, and nothing else."""
        return all(
            stage.parents == (i - 1,) and stage.wiring is None
            for i, stage in enumerate(self.stages)
        )

    @property
    def is_recurrent(self) -> bool:
        """Whether a stage reads its own state or a later one's."""
        return any(max(stage.parents) >= i for i, stage in enumerate(self.stages))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first layer's weight."""
        return self._first_weight().dtype

    @property
    def device(self) -> torch.device:
        """The device of the first layer's weight."""
        return self._first_weight().device

    def parameters(self) -> list[Tensor]:
        """Return the model's live parameters that are read, each once."""
        return self._parameters()

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the outputs for a batch, of the shape the model gives."""
        return self.output_activation(self.states(inputs)[1])

    def states(
        self, inputs: Tensor, residuals: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """Return all stages' states and the last one's pre-activation.

        ``x_l = f_l(W_l x_{l-1} + b_l) + r_l``: with residuals r the states are those of the bulk
        loss (eq. 3.2 of the paper). In a recurrent network they are the fixed point that
        `fixed_point` finds without damping; those of a sample for which it finds none are NaN, and
        a warning says so.

        Args:
            inputs: ``(B, *input_shape)``.
            residuals: one tensor ``(B, *stage.shape)`` for each hidden stage (all but the last);
                None: zeros.

        Returns:
            The states, one ``(B, *stage.shape)`` a stage, the output last, and the logits: the
            pre-activation of the last stage.

        Raises:
            ValueError: residuals of another number or shape.
        """
        self._check_residuals(inputs, residuals)
        if self.is_recurrent:
            return settled(self, inputs, residuals)
        hidden = len(self.stages) - 1
        states: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            logits = stage.pre_activation(*_parents(stage, inputs, states))
            x = stage.state(logits)
            if residuals is not None and number < hidden:
                x = x + residuals[number]
            states.append(x)
        return states, logits

    def fixed_point(
        self,
        inputs: Tensor,
        residuals: Sequence[Tensor] | None = None,
        damping: float = 0.0,
        steps: int = 1000,
        tol: float | None = None,
    ) -> FixedPoint:
        """Return the states with ``x = f(w x + b) + r`` by iteration, and where there are none.

        ``x <- (1 - damping) (f(w x + b) + r) + damping x`` from x = 0 (V. Vanchurin, *Towards a
        theory of machine learning*, sec. 2). A sample is done when one application of f(w x + b)
        changes none of its neurons by more than ``tol max(1, max |x_i|)``. A contraction converges;
        damping helps where the iteration oscillates (an eigenvalue of f'w near or below -1), and
        changes no fixed point. Of several fixed points it is the one that is reached from 0. In a
        feed-forward network one pass is exact.

        Autograd differentiates through the iteration; it keeps every iterate for that.

        Args:
            inputs: ``(B, *input_shape)``.
            residuals: as `states`.
            damping: at least 0, less than 1.
            steps: at most so many applications.
            tol: None: eps^(3/4) of the inputs' dtype, 2e-12 in float64.

        Raises:
            ValueError: damping, steps or tol out of range, inputs of another shape or of whole
                numbers, or residuals of another number or shape.
        """
        self._check_residuals(inputs, residuals)
        return fixed_point(self, inputs, residuals, damping, steps, tol)

    def pre_activations(self, inputs: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """Return ``y = w x + b`` of all stages for given states x.

        Args:
            inputs: ``(B, *input_shape)``.
            states: of all stages, ``(B, *stage.shape)`` each; any, not only a forward pass's.

        Raises:
            ValueError: states of another number or shape.
        """
        self._check("states", "stages", self.stages, inputs, states)
        return [stage.pre_activation(*_parents(stage, inputs, states)) for stage in self.stages]

    def one_step(self, inputs: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """Return ``f(w x + b)`` of all stages for given states x: the one-step map.

        The states of a forward pass are its fixed point.

        Args:
            inputs: ``(B, *input_shape)``.
            states: as `pre_activations`.

        Raises:
            ValueError: states of another number or shape.
        """
        pre_activations = self.pre_activations(inputs, states)
        return [s.state(y) for s, y in zip(self.stages, pre_activations, strict=True)]

    def output_activation(self, logits: Tensor) -> Tensor:
        """Return the outputs for pre-activations of the last stage."""
        return self.stages[-1].state(logits)

    def _check_residuals(self, inputs: Tensor, residuals: Sequence[Tensor] | None) -> None:
        if residuals is not None:
            self._check("residuals", "hidden stages", self.stages[:-1], inputs, residuals)

    def _check(
        self,
        name: str,
        which: str,
        stages: Sequence[Stage],
        inputs: Tensor,
        tensors: Sequence[Tensor],
    ) -> None:
        if len(tensors) != len(stages):
            raise ValueError(
                f"{name} must be one for each of the {len(stages)} {which}, got {len(tensors)}"
            )
        for stage, tensor in zip(stages, tensors, strict=True):
            expected = (len(inputs), *stage.shape)
            if tensor.shape != expected:
                raise ValueError(
                    f"{name} of stage {stage.name!r} must be of shape {expected}, "
                    f"got {tuple(tensor.shape)}"
                )

    def _first_weight(self) -> Tensor:
        # a layer's, which need not be a parameter; a Scale's is computed in float64
        return next(o.weight for o in self.operations if isinstance(o, Dense | Convolution))

    def __repr__(self) -> str:
        return f"Network({' - '.join(map(str, self.sizes))})"


def _parents(stage: Stage, inputs: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    return [inputs if parent < 0 else states[parent] for parent in stage.parents]
