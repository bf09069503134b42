import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_thermo import FunctionalHessianOperator, HessianOperator, Risk
from torch_thermo.operators.functional_hessian import is_whole_hessian


def close(a, b, tolerance=1e-12):
    scale = b.detach().abs().max().clamp(min=1e-3)
    torch.testing.assert_close(a, b, rtol=0, atol=float(tolerance * scale))


@pytest.mark.parametrize("keep_graph", [True, False, None])
def test_against_dense(case, dense, keep_graph):
    operator = FunctionalHessianOperator(case.risk(), keep_graph)
    exact, v = dense(case).functional(), case.vector()
    close(operator @ v, exact @ v)
    close(operator @ (-2 * v), exact @ (-2 * v))


def test_symmetric(case):
    matrix = FunctionalHessianOperator(case.risk()).dense()
    close(matrix, matrix.T)


@pytest.mark.parametrize("name", ["conv-relu-hinge", "batch-norm-hinge", "transformer-layer"])
def test_is_the_hessian_where_the_loss_is_piecewise_linear(named, name):
    case = named(name)
    close(FunctionalHessianOperator(case.risk()).dense(), HessianOperator(case.opaque()).dense())


@pytest.mark.parametrize("name", ["conv-relu-hinge", "batch-norm-hinge", "transformer-layer"])
def test_where_the_loss_is_piecewise_linear_it_is_known_to_be_the_hessian(named, name):
    case = named(name)
    assert is_whole_hessian(case.risk())
    assert not is_whole_hessian(case.opaque())
    plain = case.loss_fn
    case.loss_fn = lambda o, y: plain(o, y) + 1e-3 * o.square().mean()
    assert not is_whole_hessian(case.risk())


def test_is_zero_of_a_linear_model():
    generator = torch.Generator().manual_seed(0)
    batch = tuple(torch.randn(5, n, generator=generator).double() for n in (3, 2))
    risk = Risk(nn.Linear(3, 2).double(), F.mse_loss, [batch])
    assert not FunctionalHessianOperator(risk).dense().any()


def test_needs_structure(named):
    with pytest.raises(TypeError, match="built from a closure"):
        FunctionalHessianOperator(named("tied").opaque())


def test_needs_a_tensor():
    class Net(nn.Linear):
        def forward(self, x):
            return {"logits": super().forward(x)}

    risk = Risk(Net(3, 1), lambda o, y: o["logits"].mean(), [(torch.ones(2, 3), torch.ones(2))])
    with pytest.raises(TypeError, match="needs a tensor as model output"):
        FunctionalHessianOperator(risk).dense()


def test_needs_a_loss_of_the_output_alone(named):
    case = named("tied")
    plain, weight = case.loss_fn, case.model.first.weight
    case.loss_fn = lambda o, y: plain(o, y) + weight.square().sum()
    with pytest.raises(TypeError, match="through the output alone"):
        FunctionalHessianOperator(case.risk()).dense()
