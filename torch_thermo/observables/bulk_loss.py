"""The bulk loss as a loss to train on: its gradient in the weights, at the minimising states."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import (
    check,
    check_search,
    device_of,
    taken,
    taken_targets,
)
from torch_thermo.observables.bulk_boundary.at_minimum import AtMinimum, Energy
from torch_thermo.observables.bulk_boundary.exact import relax
from torch_thermo.observables.bulk_boundary.example_loss import (
    DIVIDED_OUT,
    ExampleLoss,
    LossFn,
    divides_weights,
    ignored,
)
from torch_thermo.observables.bulk_boundary.local_objective import Interaction, LocalObjective
from torch_thermo.observables.bulk_boundary.relaxed import Relaxed

Reduction = Literal["mean", "none"]


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
    that has none) and returned in the model's dtype. Torch's generators don't move. Inputs of whole
    numbers are taken as they are (an image of 0 ... 255 is not scaled).

    Examples without a loss (a mean over targets that are all the loss's ignore_index) are left out
    of the mean, and 0 without one, as of torch's criteria.

    The model is referred to, not registered: its parameters are listed once where model and loss
    are parts of one module, and `parameters()` of the loss has none of them. A deep copy or pickle
    of both together keeps them together. After a layer is replaced make a new loss.

    Args:
        network: the model to train, read as a `Network` from the first batch; or a `Network`, whose
            weights are then trained also by copies of this loss.
        loss_fn: ``loss_fn(output, target)`` -> mean or (B,) losses, called with each example as a
            batch of one; None: the paper's ``1/2 |t - o|^2``, the only one with m, an interaction,
            or a recurrent network. Of cross entropy and NLL with class weights give
            reduction="sum" or "none": a mean divides them out of a batch of one.
        m: of the local objective.
        interaction: of the local objective, see `LocalObjective`.
        starts: of the search for each example's minimum, see `relax`: more find lower ones, in
            proportionally more time.
        seed: of the random ones among the starts.
        reduction: "mean" over the batch, or "none" for (B,) losses.
        damping: of the iteration to a recurrent network's fixed point, from which the search
            starts; at least 0, less than 1.

    Attributes:
        last: what the last call found (states, values, converged); None before. Examples whose
            search did not converge count like all others, with one warning; so do those that are
            not finite, and make the mean NaN.

    Raises:
        ValueError: starts, seed, m or damping out of range, an unknown reduction, class weights
            that a mean divides out; at a batch, shapes that don't match, no targets where nothing
            else is to be learned, targets that are all ignored, and what `relax` refuses.
        TypeError: network is neither a module nor a `Network`, or numbers of another kind.
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
        damping: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module | Network):
            raise TypeError(
                f"network must be a torch.nn.Module or a Network, got {type(network).__name__}"
            )
        check_search(starts, seed, m, damping)
        if divides_weights(loss_fn):
            raise ValueError(f"loss_fn is {type(loss_fn).__name__}, and {DIVIDED_OUT}")
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
        self.damping = damping
        self.reduction: Reduction = reduction
        self.last: Relaxed | None = None
        self._told: set[str] = set()

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
            damping=self.damping,
        )
        has_loss = torch.ones_like(found.converged)
        if targets is not None:
            # a mean over no target is NaN
            has_loss = ~(ignored(self.loss_fn, targets) & found.values.isnan())
        self._note(found, has_loss)
        wrt = [p for p in (*network.parameters(), inputs) if p.requires_grad]
        differentiable = bool(wrt) and torch.is_grad_enabled()
        with torch.autocast(device.type, enabled=False):
            x = inputs.to(device).double()
            states = [state.detach() for state in found.states]
            if not bool(has_loss.all()):
                # out of the graph: 0 times the slope of a NaN is NaN
                assert targets is not None
                x, targets = x[has_loss], targets[has_loss]
                states = [state[has_loss] for state in states]
            free = states if targets is None else states[:-1]
            if differentiable:
                for state in free:
                    state.requires_grad_()
            values = self._values(network, x, targets, states, loss)
            if differentiable:
                energy = Energy(values, free, wrt, walled=self._local)
                values = AtMinimum.apply(energy, *wrt)
        values = values.to(inputs.device, network.dtype)
        if self.reduction == "mean":
            return values.mean()
        whole = values.new_zeros(len(inputs))
        return whole.masked_scatter(has_loss.to(inputs.device), values)

    def extra_repr(self) -> str:
        """Return the settings."""
        names = ("m", "starts", "seed", "reduction", "damping")
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
            example = inputs.detach()
            like = next((p for p in model.parameters() if p.is_floating_point()), None)
            if like is not None and not example.is_complex():
                # the model may not take what its `Network` does: whole numbers, another precision
                example = example.to(like.dtype)
            self._network = Network.from_module(model, example)
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

    def _note(self, found: Relaxed, has_loss: Tensor) -> None:
        self.last = found
        total, finite = len(has_loss), found.values.isfinite()
        broken = int((has_loss & ~finite).sum())
        if not bool(has_loss.any()):
            raise ValueError(f"none of {total} examples has a loss: all targets are ignored")
        if broken:
            self._tell(
                "finite",
                f"the bulk loss of {broken} of {total} examples is not finite: an input, a target, "
                "an output or the loss is not; nor are the mean and its gradient (told once; "
                ".last.values has all)",
            )
        count = int((has_loss & finite & ~found.converged).sum())
        if count:
            self._tell(
                "converged",
                f"the search for the minimum did not converge for {count} of {total} examples: "
                "their gradient is that of the lowest point found (told once; .last.converged has "
                "all)",
            )

    def _tell(self, key: str, text: str) -> None:
        """Warn, once of each."""
        if key not in self._told:
            self._told.add(key)
            warnings.warn(text, stacklevel=4)
