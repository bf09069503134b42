"""Bulk and boundary loss: what remains of the loss when the hidden neurons may give way."""

from __future__ import annotations

import warnings

from torch import Tensor

from torch_thermo.network import Network
from torch_thermo.observables.bulk_boundary.arguments import (
    check,
    check_linearised,
    check_search,
    device_of,
    measuring,
    taken,
    taken_targets,
)
from torch_thermo.observables.bulk_boundary.exact import STARTS, relax
from torch_thermo.observables.bulk_boundary.example_loss import (
    DIVIDED_OUT,
    ExampleLoss,
    LossFn,
    divides_weights,
)
from torch_thermo.observables.bulk_boundary.linearised import linearised
from torch_thermo.observables.bulk_boundary.local_objective import Interaction
from torch_thermo.observables.bulk_boundary.result import BulkBoundary, Method

# of the gradient over the residuals: values are good to its square
_TOLERANCE = 1e-6


def bulk_boundary_loss(
    network: Network,
    inputs: Tensor,
    targets: Tensor | None,
    loss_fn: LossFn | None = None,
    method: Method = "logit",
    starts: int = STARTS,
    seed: int = 0,
    m: float = 0.0,
    interaction: Interaction | None = None,
    damping: float = 0.0,
) -> BulkBoundary:
    r"""Measure the bulk and boundary loss of each example (Vanchurin, eqs. 3.1-3.4; Figs. 2, 3).

    The boundary loss is `loss(o, t)` of the outputs o, the paper's `1/2 |t - o|^2` (eq. 3.1) unless
    a `loss_fn` is given. The bulk loss (eq. 3.2) is the smallest
    `1/2 sum_l |x_l - f(W_l x_{l-1} + b_l)|^2` over the states x of the hidden neurons, input and
    output clamped to the data. With the residuals `r_l = x_l - f(W_l x_{l-1} + b_l)` of the hidden
    stages as unknowns it is

        min_r 1/2 sum_l |r_l|^2 + loss(o(r), t),

    where the last term is the output neurons' own residual; other losses take its place.

    - "exact": this minimum, by descents from several starts, the lowest kept: r = 0; where an
      output is on the wrong side the shortest r that brings it to where its activation is steepest;
      random ones. An upper bound that more starts may lower, at most the boundary loss. `spread` is
      what the minima of the starts differ by.

    Two methods linearise the response to r at r = 0, with J_l the Jacobian in r_l:

    - "linear": of the outputs, `A = sum_l J_l J_l^T`. For the squared error
      `1/2 e^T (I + A)^-1 e`, e = t - o; for other losses `min_u 1/2 u^T A u + loss(o + A u, t)`.
    - "logit": of the pre-activations y of the last stage; the output activation f is kept,
      `min_u 1/2 u^T A u + loss(f(y + A u), t)`, by damped Newton steps from u = 0 and, where f
      bends, from `A u = -y` on those outputs whose loss the other sign of y lowers; the lower
      minimum is kept. The same as "linear" where f is linear.

    Both approximate the exact bulk loss from either side; neither exceeds the boundary loss. What
    follows an output activation (pools, reshapes) belongs to f. Without hidden stages the bulk loss
    is the boundary loss. Measured on a tanh network (784-40-20-10, squared error, 4,000 digits):
    mean "logit" over mean "exact" 1.01 before training, 1.03 after 10 epochs and 1.04 after 80;
    "exact" from r = 0 alone over the best of 34 starts 1.0, 1.15 and 2.0 on the 250 examples of
    largest loss.

    `converged` is True where the problem is solved, one of:

    - "exact": the gradient in r is at rest, `|r + J^T phi'| <= 1e-6 (|r| + |J^T phi'|)` or within
      rounding, phi the loss as a function of y (the value is good to 1e-12); or at a kink of the
      loss, where the linearised problem promises at most 1e-6 of the boundary loss. Minima at kinks
      of the network (most of those of a ReLU net) are found within about .1 % on average and not
      known as such: there it is False;
    - in closed form (squared error, nothing but linear maps between A and the loss);
    - one pre-activation: a bracket, 2^-64 of its first width, at whose ends the derivative has
      opposite signs, about the best of 193 points;
    - several: with `A = L L^T` and u = L^-T z, `|z + L^T phi'| <= 1e-8 (|z| + |L^T phi'|)` or
      within rounding (|z| is the length of all residuals r), phi the loss as a function of y;
    - several, f linear, and phi has a kink or no second derivative there: a lower bound from
      cutting planes, valid for a convex phi, is within 1e-9 of the boundary loss. (Behind a bent f
      a minimum at a kink is found, if at all, without being known as one.)

    Where phi is not convex this is a stationary point reached downhill, the lowest of those found;
    behind a ReLU output one of 12 examples was measured 37 % above the least of many starts.
    Where it is False `bulk` is the lowest value seen; it counts in all means.

    **Local objective** (eq. 3.4). With m > 0 or an interaction the neurons have an objective of
    their own, see `LocalObjective`:

        H = 1/2 sum_l |x_l - f(W_l x_{l-1} + b_l)|^2 - m/2 sum_i x_i^2 + V(x),

    sums over hidden and output neurons, states in the box [-1, 1], squared error and "exact" alone.
    With targets=None the outputs are free as well; the boundary loss is then NaN. Without targets,
    m and V the bulk loss is 0, at the feed-forward state. `converged` says that the gradient's part
    that leads into the box is at most 1e-7 of 1 + |x|.

    **Recurrent networks**: "exact" alone, over the states, squared error. Outputs are clamped to
    the targets also where hidden neurons read them, so that the bulk loss may exceed the boundary
    loss, which is that of the fixed point: NaN for an example that `Network.fixed_point` does not
    find one for, with `reason` saying for how many. `damping` is that of this iteration.

    One core takes for "exact" with 6 starts, 6,000 examples of a tanh net 784-40-20-10 and the
    squared error: 10 s before training, 4 s after. Deep ReLU nets take longer, for their kinks stop
    the search without a minimum: a VGG of 10 layers (hinge, 20,225 neurons) 1 s an example and
    start, with 9 of 16 converged.

    The small problem of the linearised methods has R dimensions, the rank of A, at most M and the
    width of the last hidden stage. One core takes, for 128 examples of two hidden layers and cross
    entropy: .6 s at M = 100, R = 100; 10 s at M = 1000, R = 128; 11 s at M = R = 322. What would
    take minutes is refused: `examples * M * R^2` above 2^32, four times that for closed forms, and
    minima at kinks in more than 64 dimensions (128 examples, L1: 2.5 s at 32, 4 s at 64). The M
    reverse passes through the network come on top: they are what a deep net takes.

    Everything is computed in float64 on the network's device (on the CPU if that has no float64):
    `1 - tanh^2` has four digits left in float32 at |y| = 5 and is 0 beyond 9.1. Inputs of whole
    numbers are taken as they are (an image of 0 ... 255 is not scaled). No `.grad` is created or
    changed, and torch's generators don't move.

    Args:
        network: any that is not recurrent; with "exact" any.
        inputs: (B, *network.input_shape).
        targets: (B, *network.output_shape) for the squared error; with a `loss_fn` what it takes,
            one entry an example, such as class labels (B,). None: see above.
        loss_fn: `loss_fn(output, target)` -> mean or (B,) losses; called with each example as a
            batch of one. Out of that a mean divides the class weights of cross entropy and NLL,
            which do not count then, with a warning: give reduction="sum" or "none".
        method: "linear", "logit" or "exact".
        starts: of "exact", at least 1.
        seed: of its random starts, which are the same for all examples.
        m: of the local objective, at least 0.
        interaction: of the local objective: V, from the list of all stages' states to (B,), or a
            symmetric matrix J (n, n) over the n hidden and output neurons, `V = -1/2 x^T J x`.
        damping: of the iteration to a recurrent network's fixed point, at least 0, less than 1.

    Raises:
        ValueError: shapes that don't match, an unknown method, a `loss_fn` that fails or returns
            neither a mean nor one loss per example, or does not depend on the outputs
            through autograd; with "linear", outputs that leave its domain. Starts, seed, m or
            damping out of range. No targets, m > 0, an interaction or a recurrent network with
            another method than "exact" or another loss than the squared error; a matrix that is
            not symmetric or of another size; with a local objective, an activation that leaves
            [-1, 1].
        TypeError: `network` is not a Network, inputs or targets are no tensors, `loss_fn` can't be
            called, `interaction` is neither a tensor nor callable; numbers of another kind.
        MemoryError: more than 4096 outputs, Jacobians of one example that would not fit, or outputs
            that would take minutes (above).
    """
    check(network, inputs, targets, loss_fn, method)
    check_search(starts, seed, m, damping)
    labelled = targets is not None and not targets.is_floating_point()
    if labelled and divides_weights(loss_fn):
        warnings.warn(f"{type(loss_fn).__name__}: {DIVIDED_OUT}", stacklevel=2)
    if method != "exact":
        local = targets is None or m != 0 or interaction is not None
        check_linearised(network, method, local)
    device = device_of(network)
    with measuring(device):
        loss = ExampleLoss(loss_fn)
        inputs = taken(inputs, device).double()
        if targets is not None:
            targets = taken_targets(targets, device, loss.squared_error)
        spread = None
        if method == "exact":
            found = relax(
                *(network, inputs, targets, loss, starts, seed, m, interaction),
                tolerance=_TOLERANCE,
                damping=damping,
            )
            boundary, bulk, converged = found.boundary, found.values, found.converged
            spread = found.spread.cpu()
        else:
            assert targets is not None  # check_linearised
            outputs = method == "linear"
            boundary, bulk, converged = linearised(network, inputs, targets, loss, outputs)
    bulk, boundary = bulk.cpu(), boundary.cpu()
    reason = _reason(bulk, boundary, targets is not None)
    return BulkBoundary(bulk, boundary, converged.cpu(), method, reason, spread)


def _reason(bulk: Tensor, boundary: Tensor, has_targets: bool) -> str:
    said = [] if has_targets else ["without targets there is no boundary loss"]
    missing = bulk.isnan().nonzero()[:, 0].tolist()
    if missing:
        said.append(
            f"{len(missing)} of {len(bulk)} examples have an input, an output or a loss that is "
            f"not finite, the first is example {missing[0]}"
        )
    unfed = (boundary.isnan() & ~bulk.isnan()).nonzero()[:, 0].tolist()
    if has_targets and unfed:
        said.append(
            f"{len(unfed)} of {len(bulk)} examples have no fixed point that was found, and no "
            f"boundary loss, the first is example {unfed[0]}: a larger damping may find them"
        )
    return "; ".join(said)
