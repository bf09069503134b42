"""The bulk loss as a loss to train on: its gradient in the weights, at the minimising states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import check, device_of, taken, taken_targets
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import ExampleLoss, LossFn
from torch_thermo.observables.bulk_boundary.local_objective import Interaction, LocalObjective
from torch_thermo.observables.bulk_boundary.relaxed import Relaxed

Reduction = Literal["mean", "none"]

# H_xx of so many free neurons is factorised: it takes as many products as one solve by iteration
_DENSE = 128
# of the right side, what an iterative solve may leave
_SOLVED = 1e-10
# steps of conjugate gradients for each unknown: rounding takes more than one
_STEPS = 4


class BulkLoss(nn.Module):
    r"""The mean exact bulk loss of a batch, to be minimised over the weights.

    ``U(theta) = min_x H(x, theta)`` over the states x of the free neurons, the input clamped and
    with targets the output too (V. Vanchurin, *Towards a theory of machine learning*, eqs. 3.2,
    3.4; what `bulk_boundary_loss` measures by method "exact"). At the minimum H does not change
    with x, so that

        dU/dtheta = (partial H / partial theta)(x*, theta),
        H = sum_l 1/2 |x_l - f(W_l x_{l-1} + b_l)|^2 + loss(f(W_L x_{L-1} + b_L), t) :

    no error travels through the layers, each learns from its own residual (the equilibrated energy
    of predictive coding). With m or an interaction H is the `LocalObjective`, with which a network
    learns from inputs alone. The second derivative, for Hessians, has the motion of the minimum in
    it, ``H_tt - H_tx H_xx^-1 H_xt``; with m or an interaction, where states may be held at a wall,
    it is refused. So is a third derivative.

    It calls the model's weights, not the model: BatchNorm and dropout act as in eval mode, and
    forward hooks don't run. Everything is computed in float64 on the model's device (on the CPU if
    that has none) and returned in the model's dtype. Torch's generators don't move.

    The model is referred to, not registered: its parameters are listed once where model and loss
    are parts of one module, and `parameters()` of the loss has none of them. A deep copy or pickle
    of both together keeps them together. After a layer is replaced make a new loss.

    Args:
        network: the model to train, read as a `Network` from the first batch; or a `Network`, whose
            weights are then trained also by copies of this loss.
        loss_fn: ``loss_fn(output, target)`` -> mean or (B,) losses, called with each example as a
            batch of one; None: the paper's ``1/2 |t - o|^2``, the only one with m, an interaction,
            or a recurrent network.
        m: of the local objective.
        interaction: of the local objective, see `LocalObjective`.
        starts: of the search for each example's minimum, see `relax`: more find lower ones, in
            proportionally more time.
        seed: of the random ones among the starts.
        reduction: "mean" over the batch, or "none" for (B,) losses.

    Attributes:
        last: what the last call found (states, values, converged); None before. Examples whose
            search did not converge count like all others, with one warning.

    Raises:
        ValueError: starts below 1, an unknown reduction; at a batch, shapes that don't match, no
            targets where nothing else is to be learned, and what `relax` refuses.
        TypeError: network is neither a module nor a `Network`.
        UnreadableNetworkError: at the first batch, a model that can't be read.

    Shape:
        ``(B, *input_shape)`` and targets with one entry an example, to a scalar or ``(B,)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> loss = BulkLoss(model)(torch.rand(5, 3), torch.ones(5, 2))
        >>> loss.backward()
        >>> model[0].weight.grad.shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        network: nn.Module | Network,
        loss_fn: LossFn | None = None,
        m: float = 0.0,
        interaction: Interaction | None = None,
        starts: int = 1,
        seed: int = 0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module | Network):
            raise TypeError(
                f"network must be a torch.nn.Module or a Network, got {type(network).__name__}"
            )
        if starts < 1:
            raise ValueError(f"starts must be at least 1, got {starts}")
        if reduction not in get_args(Reduction):
            raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
        # in a tuple: an attribute would register its parameters a second time
        self._given = (network,)
        self._network = network if isinstance(network, Network) else None
        self.loss_fn = loss_fn
        self.m = m
        self.interaction = interaction
        self.starts = starts
        self.seed = seed
        self.reduction: Reduction = reduction
        self.last: Relaxed | None = None
        self._warned = False

    def forward(self, inputs: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the bulk loss of a batch, differentiable in the weights and in the inputs.

        Args:
            inputs: (B, *input_shape).
            targets: one entry an example; None: the outputs are free too.
        """
        network = self._read(inputs)
        check(network, inputs, targets, self.loss_fn, "exact")
        if targets is None and not self._local:
            raise ValueError(
                "without targets, m or an interaction every loss is 0: give targets, or m > 0"
            )
        device = device_of(network)
        loss = ExampleLoss(self.loss_fn)
        if targets is not None:
            targets = taken_targets(targets, device, loss.squared_error)
        found = relax(
            network,
            taken(inputs, device),
            targets,
            loss,
            starts=self.starts,
            seed=self.seed,
            m=self.m,
            interaction=self.interaction,
        )
        self._note(found)
        wrt = [p for p in (*network.parameters(), inputs) if p.requires_grad]
        differentiable = bool(wrt) and torch.is_grad_enabled()
        with torch.autocast(device.type, enabled=False):
            x = inputs.to(device).double()
            states = [state.detach() for state in found.states]
            free = states if targets is None else states[:-1]
            if differentiable:
                for state in free:
                    state.requires_grad_()
            values = self._values(network, x, targets, states, loss)
            if differentiable:
                energy = _Energy(values, free, wrt, walled=self._local)
                values = _AtMinimum.apply(energy, *wrt)
        values = values.to(inputs.device, network.dtype)
        return values.mean() if self.reduction == "mean" else values

    def extra_repr(self) -> str:
        """Return the settings."""
        names = ("m", "starts", "seed", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        # what was read follows the weights of the model it was read from, a copy has its own
        if not isinstance(self._given[0], Network):
            state["_network"] = None
        return {**state, "last": None}

    def _read(self, inputs: Tensor) -> Network:
        if self._network is None:
            (model,) = self._given
            assert isinstance(model, nn.Module)
            self._network = Network.from_module(model, inputs.detach())
        return self._network

    @property
    def _local(self) -> bool:
        return self.m > 0 or self.interaction is not None

    def _values(
        self,
        network: Network,
        inputs: Tensor,
        targets: Tensor | None,
        states: Sequence[Tensor],
        loss: ExampleLoss,
    ) -> Tensor:
        """Return H (B,) at given states of all stages, each read as it is given."""
        if loss.squared_error:
            # the residual of outputs that are clamped to the targets
            objective = LocalObjective(network, inputs, targets, self.m, self.interaction)
            return objective.values(states, torch.arange(len(inputs), device=inputs.device))
        assert targets is not None
        *hidden, outputs = network.one_step(inputs, states)
        values = loss(outputs, targets)
        for x, f in zip(states, hidden, strict=False):
            values = values + 0.5 * (x - f).square().flatten(1).sum(1)
        return values

    def _note(self, found: Relaxed) -> None:
        self.last = found
        count = int((~found.converged).sum())
        if count and not self._warned:
            self._warned = True
            warnings.warn(
                f"the search for the minimum did not converge for {count} of "
                f"{len(found.converged)} examples: their gradient is that of the lowest point "
                "found (told once; .last.converged has all)",
                stacklevel=3,
            )


class _Energy:
    """H with its graph.

    Args:
        values: H, (B,).
        states: x, of the free stages.
        wrt: theta, in which it is differentiated.
        walled: states may be held at the walls of a box.
    """

    def __init__(
        self, values: Tensor, states: Sequence[Tensor], wrt: Sequence[Tensor], walled: bool = False
    ) -> None:
        self.values = values
        self.states = tuple(states)
        self.wrt = tuple(wrt)
        self.walled = walled
        self._force: tuple[Tensor, ...] | None = None
        self._factors: tuple[Tensor, Tensor] | None = None

    def slopes(self, weights: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
        """Return ``sum_n weights_n dH_n/dtheta``, the states fixed."""
        return torch.autograd.grad(
            self.values,
            self.wrt,
            weights,
            retain_graph=True,
            create_graph=create_graph,
            materialize_grads=True,
        )

    @property
    def force(self) -> tuple[Tensor, ...]:
        """H_x, with its graph."""
        if self._force is None:
            with torch.enable_grad():
                self._force = torch.autograd.grad(
                    self.values.sum(), self.states, create_graph=True, materialize_grads=True
                )
        return self._force

    def mixed(self, vectors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return ``H_tx u``."""
        return _products(self.force, self.wrt, vectors)

    def response(self, forces: Sequence[Tensor]) -> list[Tensor]:
        """Return ``H_xx^-1 v`` of each example.

        Raises:
            NotImplementedError: states may be held at walls.
            RuntimeError: H_xx is not positive definite there, which is no minimum.
        """
        if self.walled:
            raise NotImplementedError(
                "the bulk loss with m > 0 or an interaction has no second derivative where states "
                "are held at the walls of [-1, 1]"
            )
        right = _flat(forces)
        small = right.shape[1] <= _DENSE
        found, solved = self._factorised(right) if small else self._iterated(right)
        missed = int((~solved).sum())
        if missed:
            raise RuntimeError(
                f"the bulk loss has no second derivative at the states found for {missed} of "
                f"{len(solved)} examples, which are no minimum: give it more starts"
            )
        return self._parts(found)

    def _factorised(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by Cholesky factors, made at the first call."""
        if self._factors is None:
            columns = []
            for k in range(right.shape[1]):
                unit = torch.zeros_like(right)
                unit[:, k] = 1
                columns.append(self._product(unit))
            self._factors = torch.linalg.cholesky_ex(torch.stack(columns, 2))
        factors, failed = self._factors
        return torch.cholesky_solve(right[..., None], factors)[..., 0], failed == 0

    def _iterated(self, right: Tensor) -> tuple[Tensor, Tensor]:
        """Solve by conjugate gradients."""
        found, rest, direction = torch.zeros_like(right), right, right
        square = rest.square().sum(1)
        goal = _SOLVED**2 * square
        for _ in range(_STEPS * right.shape[1]):
            going = square > goal
            if not going.any():
                break
            product = self._product(direction)
            bend = (direction * product).sum(1)
            length = torch.where(going & (bend != 0), square / bend, 0.0)[:, None]
            found, rest = found + length * direction, rest - length * product
            before, square = square, rest.square().sum(1)
            direction = rest + torch.where(going, square / before, 0.0)[:, None] * direction
        return found, ~(square > goal)

    def _product(self, flat: Tensor) -> Tensor:
        return _flat(_products(self.force, self.states, self._parts(flat)))

    def _parts(self, flat: Tensor) -> list[Tensor]:
        sizes = [state[0].numel() for state in self.states]
        split = zip(flat.split(sizes, 1), self.states, strict=True)
        return [part.reshape(state.shape) for part, state in split]


class _AtMinimum(torch.autograd.Function):
    """H at its minima over the states, as a function of theta."""

    @staticmethod
    def forward(ctx: Any, energy: _Energy, *wrt: Tensor) -> Tensor:
        ctx.energy = energy
        return energy.values.detach()

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor | None, ...]:
        energy = ctx.energy
        if torch.is_grad_enabled():
            return None, *_Slopes.apply(energy, weights[0], *energy.wrt)
        return None, *energy.slopes(weights[0])


class _Slopes(torch.autograd.Function):
    """Its derivative in theta; the derivative of that moves the states with theta."""

    @staticmethod
    def forward(ctx: Any, energy: _Energy, weights: Tensor, *wrt: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            ctx.weights = weights.detach().requires_grad_()
            ctx.slopes = energy.slopes(ctx.weights, create_graph=True)
        ctx.energy = energy
        return tuple(slope.detach() for slope in ctx.slopes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor | None, ...]:
        energy: _Energy = ctx.energy
        of = (ctx.weights, *energy.wrt, *energy.states)
        weights, *rest = _products(ctx.slopes, of, directions)
        count = len(energy.wrt)
        direct, forces = rest[:count], rest[count:]
        if forces:
            moved = energy.mixed(energy.response(forces))
            direct = [d - m for d, m in zip(direct, moved, strict=True)]
        return None, weights, *direct


def _products(
    gradients: Sequence[Tensor], of: Sequence[Tensor], directions: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return the derivative of <gradients, directions>; those that are constant have no graph."""
    pairs = [(g, d) for g, d in zip(gradients, directions, strict=True) if g.requires_grad]
    if not pairs:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    graded, vectors = zip(*pairs, strict=True)
    return torch.autograd.grad(graded, of, vectors, retain_graph=True, materialize_grads=True)


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1) for part in parts], 1)
