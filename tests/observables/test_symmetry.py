import math

import pytest
import torch
from torch import nn

from torch_thermo import Risk, gradient_symmetry, symmetry_test, weight_symmetry


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relu_net():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 1, bias=False))
    for i, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=i)
    return model.double()


def risk_of(model, n=9):
    x, y = randn(n, 4, seed=5), randn(n, 1, seed=6).sign()
    cut = zip(x.split(5), y.split(5), strict=True)
    return Risk(model, lambda o, t: (1 - o * t).clamp(min=0).mean(), list(cut))


class TestWeights:
    def test_each_parameter(self):
        model = relu_net()
        model[0].requires_grad_(False)  # measured all the same
        found = weight_symmetry(model, seed=3)
        assert list(found) == ["0.weight", "2.weight"]
        for name, p in model.named_parameters():
            assert found[name] == symmetry_test(p.detach(), seed=3)

    def test_closed_form(self):
        model = nn.Linear(4, 1)
        model.weight.data = torch.tensor([[1.0, -1.0, 2.0, 0.0]])
        model.bias.data = torch.zeros(1)
        found = weight_symmetry(model)
        assert found["weight"].n == 3
        assert found["weight"].sign_balance == pytest.approx(1 / 3)
        assert found["weight"].odd_moment == pytest.approx(8 / 10)
        assert found["bias"].n == 0
        assert math.isnan(found["bias"].sign_balance)
        assert found["bias"].reason

    def test_what_has_no_sign_is_left_out(self):
        model = nn.Linear(2, 2)
        model.empty = nn.Parameter(torch.zeros(0))
        model.whole = nn.Parameter(torch.ones(2, dtype=torch.int64), requires_grad=False)
        assert set(weight_symmetry(model)) == {"weight", "bias"}

    def test_nan(self):
        model = nn.Linear(2, 2)
        model.weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match="1 NaN or infinite of 4"):
            weight_symmetry(model)

    def test_nothing_is_drawn_or_changed(self):
        model = relu_net()
        before = [p.clone() for p in model.parameters()]
        state = torch.get_rng_state()
        weight_symmetry(model)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class TestGradient:
    def test_each_parameter(self):
        risk = risk_of(relu_net())
        found = gradient_symmetry(risk, seed=3)
        gradient = risk.gradient()
        assert list(found) == list(risk.blocks)
        for name, block in risk.blocks.items():
            assert found[name] == symmetry_test(gradient[block], seed=3)

    def test_last_layer_is_one_sided(self):
        """Its inputs are not negative: with one kind of label all entries have one sign."""
        model = relu_net()
        x = randn(9, 4, seed=5)
        risk = Risk(model, lambda o, t: -(o * t).mean(), [(x, torch.ones(9, 1).double())])
        found = gradient_symmetry(risk)["2.weight"]
        assert found.sign_balance == -1.0
        assert found.w_sym == pytest.approx(1.0)

    def test_dead_units_carry_no_sign(self):
        model = relu_net()
        model[0].weight.data[0] = 0.0
        found = gradient_symmetry(risk_of(model))["2.weight"]
        assert found.n == 5

    def test_no_gradient_left(self):
        """All examples are classified with margin: R = 0, nothing has a sign, with the reason."""
        model = relu_net()
        x = randn(9, 4, seed=5)
        y = 1e6 * model(x).detach() + 1e-300
        keep = y.abs().flatten() > 1
        risk = Risk(model, lambda o, t: (1 - o * t).clamp(min=0).mean(), [(x[keep], y[keep])])
        assert risk.value() == 0.0
        found = gradient_symmetry(risk)["0.weight"]
        assert found.n == 0
        assert math.isnan(found.sign_balance)
        assert found.reason == "no nonzero value among 24"

    def test_nan(self):
        model = relu_net()
        model[0].weight.data[0, 0] = torch.nan
        with pytest.raises(ValueError, match="NaN or infinite"):
            gradient_symmetry(
                Risk(model, lambda o, t: (o - t).square().mean(), [(randn(3, 4), randn(3, 1))])
            )


def test_a_model_is_no_risk_and_a_risk_no_model():
    model = relu_net()
    with pytest.raises(TypeError, match="risk must be a Risk, got Sequential"):
        gradient_symmetry(model)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got Risk"):
        weight_symmetry(risk_of(model))
