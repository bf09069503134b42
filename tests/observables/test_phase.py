import math
import re
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torch_thermo import FunctionalHessianOperator, HessianOperator, Risk
from torch_thermo.observables.phase import CANCELLED, LARGEST_ODD, Phase, decide, phase

NAMES = {
    "risk",
    "tolerance",
    "order_parameter",
    "order_parameter_stderr",
    "order_parameter_unbiased",
    "order_parameter_incoherent",
    "lambda_min",
    "lambda_min_residual",
    "lambda_min_bound",
    "lambda_max",
    "odd_3",
    "odd_3_stderr",
    "zero_output_share",
    "dead_share",
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def hinge(output: Tensor, target: Tensor) -> Tensor:
    return (1 - target * output[:, 0]).clamp(min=0)


def logistic(output: Tensor, target: Tensor) -> Tensor:
    return F.softplus(-target * output[:, 0])


def net(*widths: int, activation: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
        layer = nn.Linear(fan_in, fan_out, bias=False).double()
        layer.weight.data = randn(fan_out, fan_in, seed=seed + i) * math.sqrt(2 / fan_in)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1])


def batches(x: Tensor, y: Tensor, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def fresh(loss=hinge, seed: int = 0, examples: int = 48) -> Risk:
    """A net at initialisation on a rule that it can learn."""
    x = randn(examples, 6, seed=11)
    return Risk(net(6, 10, 8, 1, seed=seed), loss, batches(x, x[:, :3].sum(1).sign(), 12))


def solved() -> Risk:
    model = net(6, 10, 8, 1)
    model[0].weight.data *= 1e4
    x = randn(64, 6, seed=11)
    with torch.no_grad():
        output = model(x)[:, 0]
    keep = output.abs() > 2
    assert keep.sum() > 40
    return Risk(model, hinge, batches(x[keep], output[keep].sign()))


def dead(loss=hinge) -> Risk:
    """Positive inputs and negative weights: no unit of the first layer is on."""
    model = net(6, 10, 8, 1)
    model[0].weight.data = -model[0].weight.data.abs()
    return Risk(model, loss, batches(randn(64, 6).abs(), randn(64, seed=1).sign()))


def least_squares() -> Risk:
    """A linear model at the minimum of noisy data: R > 0, its gradient sums to 0."""
    x, y = randn(64, 6), randn(64, 1, seed=1)
    model = nn.Linear(6, 1, bias=False).double()
    model.weight.data = torch.linalg.lstsq(x, y).solution.T
    return Risk(model, nn.MSELoss(), batches(x, y))


def saddle() -> Risk:
    """Two linear layers of zeros: the gradient is 0, and H is +-sigma."""
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    x = randn(64, 6)
    return Risk(model, hinge, batches(x, x[:, 0].sign()))


class TestNetsMadeForAPhase:
    def test_solved(self):
        found = phase(solved())
        assert found.name == "solved"
        assert found.code == 0.0
        assert found.reason == "the risk 0 is within 0 of 0"
        assert found.evidence["risk"] == found.evidence["order_parameter"] == 0.0
        assert found.evidence["lambda_min"] == found.evidence["lambda_max"] == 0.0
        assert math.isnan(found.evidence["odd_3"])

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("loss", [hinge, logistic])
    def test_plastic(self, loss, seed):
        found = phase(fresh(loss, seed))
        assert found.name == "plastic", found.reason
        assert found.code == 1.0
        assert found.evidence["lambda_min"] < 0 < found.evidence["lambda_max"]
        assert "the spectrum is symmetric" in found.reason

    @pytest.mark.parametrize("loss", [hinge, logistic])
    def test_frustrated_since_all_units_are_dead(self, loss):
        found = phase(dead(loss))
        assert found.name == "frustrated"
        assert found.code == 2.0
        assert found.evidence["risk"] == pytest.approx(1.0 if loss is hinge else math.log(2))
        assert found.evidence["order_parameter"] == 0.0
        assert found.evidence["zero_output_share"] == 1.0
        assert "the Hessian positive semidefinite to within 0" in found.reason
        assert "the output is 0 on 100.0% of the examples: all units of a layer" in found.reason

    def test_frustrated_in_a_minimum(self):
        risk = least_squares()
        found = phase(risk)
        assert found.name == "frustrated"
        assert found.evidence["risk"] > 0.5
        assert 0 < found.evidence["order_parameter"] < 1e-25
        assert found.evidence["order_parameter_stderr"] > 0
        exact = torch.linalg.eigvalsh(HessianOperator(risk).dense())
        assert found.evidence["lambda_min"] == pytest.approx(float(exact[0]))
        assert "positive semidefinite" in found.reason
        assert "output is 0" not in found.reason

    def test_frustrated_at_a_saddle(self):
        found = phase(saddle())
        assert found.name == "frustrated"
        assert "a saddle: lambda_min" in found.reason
        assert found.evidence["lambda_min"] == pytest.approx(-found.evidence["lambda_max"])
        assert found.evidence["zero_output_share"] == 1.0

    def test_a_net_that_learns_is_not_stuck_on_few_examples(self):
        """Its order parameter may lie within its error: its gradients do not cancel."""
        seen = 0
        for seed in range(12):
            x = randn(24, 6, seed=seed)
            risk = Risk(net(6, 20, 20, 1, seed=seed), hinge, batches(x, randn(24, seed=40).sign()))
            found = phase(risk, steps=6, probes=2)
            small = (
                found.evidence["order_parameter"] <= 3 * found.evidence["order_parameter_stderr"]
            )
            seen += small
            assert found.name != "frustrated"
            if small and found.name == "plastic":
                assert "in the set that they were drawn from the order parameter may be 0" in (
                    found.reason
                )
        assert seen >= 4


class TestEvidence:
    @pytest.mark.parametrize("loss", [hinge, logistic])
    def test_is_that_of_dense_matrices(self, loss):
        risk = fresh(loss)
        found = phase(risk, steps=40, probes=3).evidence
        assert set(found) == NAMES
        whole = torch.linalg.eigvalsh(HessianOperator(risk).dense())
        part = torch.linalg.eigvalsh(FunctionalHessianOperator(risk).dense())
        assert found["lambda_min"] == pytest.approx(float(whole[0]), rel=1e-9)
        assert found["lambda_max"] == pytest.approx(float(whole[-1]), rel=1e-9)
        assert 0 <= found["lambda_min_residual"] <= found["lambda_min_bound"]
        odd = float(part.pow(3).sum() / part.abs().pow(3).sum())
        assert found["odd_3"] == pytest.approx(odd, abs=0.02)
        assert 0 < found["odd_3_stderr"] < 0.02
        gradient = risk.gradient()
        assert found["order_parameter"] == pytest.approx(float(gradient @ gradient))
        assert found["risk"] == pytest.approx(risk.value())

    def test_incoherent(self):
        risk = fresh()
        groups = risk.group_gradients(8)
        shares = groups.weights / groups.weights.sum()
        expected = float((shares.square() * groups.gradients.square().sum(1)).sum())
        assert phase(risk).evidence["order_parameter_incoherent"] == pytest.approx(expected)

    def test_share_of_outputs_that_are_zero(self):
        risk = dead()
        x = torch.cat([risk_x for risk_x, _ in risk.batches()])
        x[::4] *= -1  # a quarter is alive, in every batch
        found = phase(Risk(risk.model, hinge, batches(x, torch.ones(64).double(), 24)))
        assert found.evidence["zero_output_share"] == 0.75

    def test_several_outputs_are_zero_together(self):
        model = net(6, 10, 3)
        model[2].weight.data[0] = 0.0
        x = randn(30, 6)
        data = batches(x, torch.arange(30) % 3, 10)
        assert phase(Risk(model, nn.CrossEntropyLoss(), data)).evidence["zero_output_share"] == 0.0
        model[2].weight.data[:] = 0.0
        assert phase(Risk(model, nn.CrossEntropyLoss(), data)).evidence["zero_output_share"] == 1.0

    @pytest.mark.parametrize(("loss", "products"), [(hinge, 5 * 3), (logistic, 5 * 3 + 5)])
    def test_no_product_is_made_twice(self, loss, products, monkeypatch):
        counts = []
        apply = HessianOperator._apply

        def counted(self, graph, direction):
            counts.append(1)
            return apply(self, graph, direction)

        monkeypatch.setattr(HessianOperator, "_apply", counted)
        risk = fresh(loss)
        phase(risk, steps=5, probes=3)
        assert len(counts) == products * 4  # batches

    def test_seeded(self):
        risk = fresh()
        before = torch.get_rng_state()
        one, two, other = (phase(risk, steps=4, seed=seed) for seed in (1, 1, 2))
        assert one == two
        assert one.evidence["odd_3"] != other.evidence["odd_3"]
        assert torch.equal(torch.get_rng_state(), before)


def evidence(**changes: float) -> dict[str, float]:
    """A plastic net's, far from every threshold."""
    return {
        "risk": 0.5,
        "tolerance": 0.0,
        "order_parameter": 1.0,
        "order_parameter_stderr": 0.1,
        "order_parameter_unbiased": 0.9,
        "order_parameter_incoherent": 0.2,
        "lambda_min": -2.0,
        "lambda_min_residual": 1e-5,
        "lambda_min_bound": 2e-5,
        "lambda_max": 3.0,
        "odd_3": 0.05,
        "odd_3_stderr": 0.02,
        "zero_output_share": 0.0,
        "dead_share": 0.0,
    } | changes


def dead_with_biases(bias: float, loss, more: float = 0.0) -> Risk:
    """Its output is the last bias, whatever the input."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    for p in model.parameters():
        p.data.fill_(-1.0)
    model[0].weight.data.zero_()
    model[2].bias.data.fill_(bias)
    return Risk(model, loss, batches(randn(256, 5), (randn(256, seed=1) + more).sign(), 32))


class TestDeadShare:
    @pytest.mark.parametrize("bias", [0.0, 0.3])
    @pytest.mark.parametrize("loss", [hinge, logistic])
    def test_only_the_output_bias_moves(self, bias, loss):
        found = phase(dead_with_biases(bias, loss))
        assert found.evidence["dead_share"] == 1.0
        assert found.evidence["zero_output_share"] == float(bias == 0)
        constant = "the output does not depend on the input" in found.reason
        assert constant or "the output is 0 on 100.0%" in found.reason
        assert constant or bias == 0
        assert found.reason.endswith("are dead, and only 2.bias has a gradient")

    @pytest.mark.parametrize("bias", [0.0, 0.3])
    def test_undecided_says_it_too(self, bias):
        """More labels of one sign: the bias is pushed."""
        found = phase(dead_with_biases(bias, hinge, more=0.5))
        assert found.name == "undecided"
        assert "on 100.0% of the examples the output does not depend on the input" in found.reason
        assert found.reason.endswith("are dead, and only 2.bias has a gradient")

    def test_share(self):
        risk = dead_with_biases(0.3, hinge)
        risk.model[0].weight.data[:, 0] = 1.0  # on where x_0 > 1
        x = torch.cat([batch for batch, _ in risk.batches()])
        share = float((x[:, 0] <= 1).double().mean())
        found = phase(risk)
        assert 0.5 < share < 1
        assert found.evidence["dead_share"] == pytest.approx(share)
        assert f"on {share:.1%} of the examples the output does not depend" in found.reason
        assert "all units" not in found.reason

    def test_of_tokens_it_is_not_known(self):
        model = nn.Sequential(nn.EmbeddingBag(9, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        x = torch.randint(9, (24, 3), generator=torch.Generator().manual_seed(0))
        found = phase(Risk(model, hinge, batches(x, randn(24).sign())))
        assert math.isnan(found.evidence["dead_share"])
        assert found.evidence["zero_output_share"] == 0

    def test_a_model_that_writes_on_its_input(self):
        risk = fresh()
        model = nn.Sequential(nn.ReLU(inplace=True), risk.model)
        data = [(x.clone(), y) for x, y in risk.batches()]
        assert phase(Risk(model, hinge, data)).evidence["dead_share"] < 0.2

    def test_an_alive_net_and_a_linear_one(self):
        assert phase(fresh()).evidence["dead_share"] == 0
        assert phase(least_squares()).evidence["dead_share"] == 0


class TestThresholds:
    def name(self, **changes: float) -> str:
        return decide(evidence(**changes), {})[0]

    def test_base(self):
        assert self.name() == "plastic"

    @pytest.mark.parametrize(
        ("risk", "tolerance", "name"),
        [
            (0.0, 0.0, "solved"),
            (1e-300, 0.0, "plastic"),
            (0.01, 0.01, "solved"),
            (0.010001, 0.01, "plastic"),
            (-0.009, 0.01, "solved"),
            (-0.011, 0.01, "undecided"),
        ],
    )
    def test_risk(self, risk, tolerance, name):
        assert self.name(risk=risk, tolerance=tolerance) == name

    @pytest.mark.parametrize(("errors", "name"), [(2.9, "frustrated"), (3.1, "plastic")])
    def test_order_parameter_whose_gradients_cancel(self, errors, name):
        """2.9 standard errors are 0, 3.1 are not."""
        assert self.name(order_parameter=errors * 0.1, order_parameter_incoherent=30.0) == name

    @pytest.mark.parametrize(("share", "name"), [(0.9, "frustrated"), (1.1, "plastic")])
    def test_gradients_that_cancel(self, share, name):
        """Within its error it is 0 only if the micro-batches' gradients cancel to a tenth."""
        found = self.name(
            order_parameter=share * CANCELLED,
            order_parameter_incoherent=1.0,
            order_parameter_stderr=1.0,
        )
        assert found == name

    def test_exact_zero_needs_no_error(self):
        for stderr in (0.0, math.nan):
            assert self.name(order_parameter=0.0, order_parameter_stderr=stderr) == "frustrated"

    def test_no_error(self):
        name, reason = decide(
            evidence(order_parameter_stderr=math.nan), {"order_parameter_stderr": "too few"}
        )
        assert (name, "too few" in reason) == ("undecided", True)

    @pytest.mark.parametrize(("multiple", "name"), [(-1.01, "plastic"), (-0.99, "undecided")])
    def test_lambda_min(self, multiple, name):
        found = decide(evidence(lambda_min=multiple * 0.01, lambda_min_bound=0.01), {})
        assert found[0] == name
        assert ("no eigenvalue is negative" in found[1]) == (name == "undecided")

    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize(
        ("odd", "stderr", "name", "words"),
        [
            (0.0, 0.0, "plastic", "is symmetric"),
            (0.24, 0.0049, "plastic", "is symmetric"),
            (0.24, 0.0051, "undecided", "is symmetric is open"),
            (0.24, 0.02, "undecided", "is symmetric is open"),
            (0.26, 0.02, "undecided", "is symmetric is open"),
            (0.26, 0.0051, "undecided", "is symmetric is open"),
            (0.26, 0.0049, "undecided", "is not symmetric"),
            (LARGEST_ODD, 0.0, "undecided", "is not symmetric"),
            (0.9, 0.1, "undecided", "is not symmetric"),
        ],
    )
    def test_odd_moment(self, odd, stderr, name, words, sign):
        found = decide(evidence(odd_3=sign * odd, odd_3_stderr=stderr), {})
        assert found[0] == name
        assert words in found[1]

    def test_the_set_may_have_none(self):
        for unbiased, told in ((0.29, True), (0.31, False), (-0.2, True)):
            name, reason = decide(evidence(order_parameter_unbiased=unbiased), {})
            assert name == "plastic"
            assert ("may be 0" in reason) == told

    def test_kinds_of_frustration(self):
        stuck = {"order_parameter": 0.0, "odd_3": math.nan}
        for changes, words in (
            (
                {"lambda_min": 1e-6, "lambda_min_bound": 1e-5},
                "positive semidefinite to within 1e-05",
            ),
            ({"lambda_min": -2e-5, "lambda_min_bound": 1e-5}, "a saddle"),
            (
                {"lambda_min": 0.1, "lambda_min_bound": 0.2, "lambda_min_residual": 0.1},
                "more steps",
            ),
            ({"lambda_min": math.nan}, "no Hessian: because"),
            ({"zero_output_share": 0.25, "lambda_min": 1.0}, "is 0 on 25.0% of the examples"),
        ):
            name, reason = decide(evidence(**stuck, **changes), {"lambda_min": "because"})
            assert name == "frustrated"
            assert words in reason
            assert "all units" not in reason

    @pytest.mark.parametrize("missing", ["lambda_min", "odd_3", "odd_3_stderr"])
    def test_what_is_missing_is_named(self, missing):
        name, reason = decide(evidence(**{missing: math.nan}), {missing: "that is why"})
        assert name == "undecided"
        assert f"{missing} is not known: that is why" in reason


class TestTolerance:
    def test_cross_entropy_has_a_floor(self):
        """A net that separates its examples by a wide margin has a small loss, never 0."""
        model = solved().model
        data = list(solved().batches())
        model[4].weight.data *= 1e-3
        risk = Risk(model, logistic, data)
        value = risk.value()
        assert value > 0
        assert phase(risk, tolerance=1.01 * value, steps=3).name == "solved"
        assert phase(risk, tolerance=0.99 * value, steps=3).name != "solved"
        assert phase(risk, tolerance=value, steps=3).evidence["tolerance"] == value


class TestUndecided:
    def test_too_few_batches(self):
        x, y = randn(16, 6, seed=11), randn(16, seed=1).sign()
        for size, count in ((16, 1), (8, 2)):
            found = phase(Risk(net(6, 10, 8, 1), hinge, batches(x, y, size)))
            assert found.name == "undecided"
            assert math.isnan(found.code)
            assert "can't be told from 0: " in found.reason
            assert found.reason.endswith(f"needs {count + 1} batches or more, got {count}")
            assert math.isnan(found.evidence["order_parameter_stderr"])
        # what is exactly 0 needs no error
        risk = dead()
        assert phase(Risk(risk.model, hinge, [next(risk.batches())])).name == "frustrated"

    def test_one_probe(self):
        found = phase(fresh(), probes=1)
        assert found.name == "undecided"
        assert "a standard error needs 2 probes or more, got 1" in found.reason

    def test_opaque(self):
        def opaque(risk):
            return Risk.from_closure(
                risk.model, lambda m, b: risk.loss_fn(m(b[0]), b[1]).mean(), list(risk.batches())
            )

        found = phase(opaque(fresh()))
        assert found.name == "undecided"
        assert "odd_3 is not known: the functional part needs the loss as loss_fn" in found.reason
        assert found.evidence["lambda_min"] < 0
        assert math.isnan(found.evidence["zero_output_share"])
        assert phase(opaque(solved())).name == "solved"
        assert phase(opaque(dead())).name == "frustrated"

    def test_no_second_derivatives(self):
        class Slope(torch.autograd.Function):
            """The backward pass of a kernel without one of its own."""

            @staticmethod
            def forward(ctx, grad, x):
                return grad * (x > 0)

            @staticmethod
            def backward(ctx, grad):
                raise RuntimeError("derivative for slope is not implemented")

        class Once(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x)
                return x.relu()

            @staticmethod
            def backward(ctx, grad):
                return Slope.apply(grad, *ctx.saved_tensors)

        class Layer(nn.Module):
            def forward(self, x):
                return Once.apply(x)

        risk = fresh()
        found = phase(Risk(net(6, 10, 8, 1, activation=Layer), hinge, list(risk.batches())))
        assert found.name == "undecided"
        assert found.reason.endswith(
            "lambda_min is not known: the model has no second derivatives "
            "(derivative for slope is not implemented)"
        )

    def test_a_loss_with_a_penalty_of_its_own(self):
        risk = fresh()

        def penalised(output, target):
            return hinge(output, target).mean() + risk.model[0].weight.square().sum()

        found = phase(Risk(risk.model, penalised, list(risk.batches())))
        assert found.name == "undecided"
        assert "only the full Hessian is defined" in found.reason
        assert math.isfinite(found.evidence["lambda_min"])

    def test_no_way_down(self):
        x = randn(64, 6)
        model = nn.Linear(6, 1, bias=False).double()
        found = phase(Risk(model, nn.MSELoss(), batches(x, x.sum(1, keepdim=True) + 1)))
        assert found.name == "undecided"
        assert found.reason.endswith(
            "odd_3 is not known: the functional part is zero: no example is active, or the output "
            "is linear in the weights"
        )

    def test_not_finite(self):
        risk = fresh()
        risk.model[0].weight.data[0, 0] = math.nan
        found = phase(risk)
        assert found.name == "undecided"
        assert "not finite" in found.reason
        assert set(found.evidence) == NAMES
        assert math.isnan(found.evidence["lambda_min"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": -0.1}, "tolerance must be finite and at least 0, got -0.1"),
        ({"tolerance": math.nan}, "tolerance must be finite and at least 0, got nan"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"groups": 0}, "groups must be at least 1, got 0"),
        ({"groups": 2.5}, "groups must be a whole number, got 2.5"),
        ({"steps": 2.5}, "steps must be a whole number, got 2.5"),
        ({"probes": True}, "probes must be a whole number, got True"),
        ({"tolerance": "a"}, "tolerance must be a number, got 'a'"),
    ],
)
def test_bad_arguments(arguments, message):
    kind = TypeError if "a whole" in message or "a number" in message else ValueError
    with pytest.raises(kind, match=re.escape(message)):
        phase(fresh(), **arguments)


@pytest.mark.parametrize("loss", [hinge, logistic])
def test_an_empty_batch_adds_nothing(loss):
    risk = fresh(loss)
    data = list(risk.batches())
    whole = phase(risk).evidence
    found = phase(Risk(risk.model, loss, [*data, (data[0][0][:0], data[0][1][:0])])).evidence
    for name in ("risk", "order_parameter", "lambda_min", "odd_3", "dead_share"):
        assert found[name] == pytest.approx(whole[name])


def test_a_model_is_no_risk():
    with pytest.raises(TypeError, match="risk must be a Risk, got Linear"):
        phase(nn.Linear(2, 1))


def test_nothing_of_the_model_is_changed():
    risk = fresh()
    risk.model.train()
    before = [p.clone() for p in risk.model.parameters()]
    assert isinstance(phase(risk), Phase)
    assert all(torch.equal(a, b) for a, b in zip(before, risk.model.parameters(), strict=True))
    assert all(p.grad is None for p in risk.model.parameters())
    assert risk.model.training
