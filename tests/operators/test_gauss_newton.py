import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo import (
    FunctionalHessianOperator,
    GaussNewtonOperator,
    HessianOperator,
    Risk,
)


def close(a, b, tolerance=1e-12):
    scale = b.detach().abs().max().clamp(min=1e-3)
    torch.testing.assert_close(a, b, rtol=0, atol=float(tolerance * scale))


@pytest.mark.parametrize("keep_graph", [True, False, None])
def test_against_dense(case, dense, keep_graph):
    operator = GaussNewtonOperator(case.risk(), keep_graph)
    exact, v = dense(case).gauss_newton(), case.vector()
    close(operator @ v, exact @ v)
    close(operator @ (-2 * v), exact @ (-2 * v))


def test_parts_add_up(case):
    risk, v = case.risk(), case.vector(2)
    parts = GaussNewtonOperator(risk) @ v + FunctionalHessianOperator(risk) @ v
    close(parts, HessianOperator(risk) @ v)


def test_positive_semidefinite(case):
    values = torch.linalg.eigvalsh(GaussNewtonOperator(case.risk()).dense())
    assert values.min() >= -1e-14 * values.abs().max()


def test_least_squares():
    """Of a linear model with half the squared error GGN = X^T X / n, whatever the targets."""
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).double()
    risk = Risk(
        nn.Linear(4, 1, bias=False).double(),
        lambda o, y: 0.5 * (o - y).square().mean(),
        [(x[:5], torch.ones(5, 1).double()), (x[5:], torch.ones(2, 1).double())],
    )
    close(GaussNewtonOperator(risk).dense(), x.T @ x / 7, 1e-14)


def test_logistic_regression():
    """GGN = H = X^T diag(p (1 - p)) X / n."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 4, generator=generator).double()
    y = torch.randint(0, 2, (7, 1), generator=generator).double()
    model = nn.Linear(4, 1, bias=False).double()
    risk = Risk(model, F.binary_cross_entropy_with_logits, [(x[:3], y[:3]), (x[3:], y[3:])])
    p = model(x).sigmoid().detach()
    expected = x.T @ (p * (1 - p) * x) / 7
    close(GaussNewtonOperator(risk).dense(), expected)
    close(HessianOperator(risk).dense(), expected)


def test_needs_structure(named):
    with pytest.raises(TypeError, match="Gauss-Newton matrix needs the loss as loss_fn"):
        GaussNewtonOperator(named("tied").opaque())


def test_needs_a_tensor():
    class Net(nn.Linear):
        def forward(self, x):
            return [super().forward(x)]

    risk = Risk(Net(3, 1), lambda o, y: o[0].mean(), [(torch.ones(2, 3), torch.ones(2))])
    with pytest.raises(TypeError, match="needs a tensor as model output, got list"):
        GaussNewtonOperator(risk).dense()


def test_needs_a_loss_of_the_output_alone(named):
    case = named("tied")
    plain, weight = case.loss_fn, case.model.first.weight
    case.loss_fn = lambda o, y: plain(o, y) + weight.square().sum()
    with pytest.raises(TypeError, match="through the output alone"):
        GaussNewtonOperator(case.risk()).dense()


def test_a_model_without_a_gradient():
    class Net(nn.Linear):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    risk = Risk(Net(3, 1), F.mse_loss, [(torch.ones(2, 3), torch.ones(2, 1))])
    for operator in (GaussNewtonOperator(risk), FunctionalHessianOperator(risk)):
        with pytest.raises(ValueError, match="no gradient in the parameters"):
            operator.dense()
