import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.observables.nets import LOSSES, NETS, batches, filled, hinge, mlp, randn
from torch_thermo import (
    FunctionalHessianOperator,
    HessianOperator,
    Network,
    Risk,
    sample_circuits,
    symmetry_test,
)
from torch_thermo.observables import hessian_entries
from torch_thermo.observables.assumptions import check_assumptions
from torch_thermo.observables.identities import LAWS, measure_identities

F_ROWS = ("functional_blocks", "functional_trace", "functional_homogeneity")
# the rows that break on a kind of net, with a loss that is piecewise linear
BROKEN = {
    "ReLU": set(),
    "ReLU, 2 layers": set(),
    "leaky ReLU": set(),
    "max-pool": set(),
    "average-pool": set(),
    "biases": {"homogeneity", "layer_balance", "functional_homogeneity"},
    "BatchNorm": {"homogeneity", "layer_balance", "functional_homogeneity"},
    "residual": {"homogeneity", "layer_balance", "functional_homogeneity"},
    "residual, biases, BatchNorm": {"homogeneity", "layer_balance", "functional_homogeneity"},
    "tied": {"own_blocks", "trace", "layer_balance", "functional_blocks", "functional_trace"},
    "GELU": {"own_blocks", "trace", "homogeneity", "layer_balance", *F_ROWS},
    "tanh": {"own_blocks", "trace", "homogeneity", "layer_balance", *F_ROWS},
}
# a loss with a curvature of its own breaks what is said of H, not what is said of F
OF_H = {"own_blocks", "trace", "homogeneity", "mirror_spectrum"}
LAYERS = {"ReLU, 2 layers": 2, "tied": 4}


def risk_of(kind: str, loss: str = "hinge", seed: int = 0) -> Risk:
    return Risk(filled(NETS[kind](), seed), LOSSES[loss], batches(seed=seed))


class TestIdentities:
    @pytest.mark.parametrize("loss", LOSSES)
    @pytest.mark.parametrize("kind", NETS)
    def test_which_hold(self, kind, loss):
        """The specification's table, a row a kind of net and loss."""
        found, degree, active = measure_identities(risk_of(kind, loss), None, 0)
        assert list(found) == list(LAWS)
        broken = {name for name, row in found.items() if row.holds is False}
        assert broken == BROKEN[kind] | (
            set()
            if loss == "hinge"
            else OF_H - {"mirror_spectrum"}
            | ({"mirror_spectrum"} if kind == "ReLU, 2 layers" else set())
        )
        unmeasured = {name for name, row in found.items() if row.holds is None}
        assert unmeasured == (set() if kind == "ReLU, 2 layers" else {"mirror_spectrum"}) | (
            {"active_examples"} if active == 1 else set()
        )
        for row in found.values():
            assert math.isnan(row.error) == (row.holds is None) == bool(row.reason)
            if row.holds is False:
                assert row.error > 1e-3  # broken, not missed by rounding
        if "functional_homogeneity" not in broken:
            assert degree == LAYERS.get(kind, 3)

    @pytest.mark.parametrize("kind", ["ReLU", "max-pool", "average-pool", "BatchNorm", "residual"])
    def test_in_float32(self, kind):
        double = risk_of(kind)
        data = [(x.float(), y.float()) for x, y in double.batches()]
        found, _, _ = measure_identities(Risk(double.model.float(), hinge, data), None, 0)
        assert {name for name, row in found.items() if row.holds is False} == BROKEN[kind]
        assert found["layer_balance"].tolerance == 1e-3

    @pytest.mark.parametrize("kind", ["tied", "tanh", "ReLU"])
    @pytest.mark.parametrize("loss", ["hinge", "cross entropy"])
    def test_own_blocks_and_trace_against_the_dense_matrix(self, kind, loss):
        risk = risk_of(kind, loss)
        found, _, _ = measure_identities(risk, None, 0)
        for rows, operator in (
            (("own_blocks", "trace"), HessianOperator),
            (("functional_blocks", "functional_trace"), FunctionalHessianOperator),
        ):
            dense = operator(risk).dense()
            own = max(float(dense[b, b].abs().max()) for b in risk.blocks.values())
            assert found[rows[0]].holds == (own == 0.0)
            assert found[rows[1]].holds == (abs(float(dense.trace())) < 1e-12)

    def test_the_trace_is_that_of_random_signs_on_each_block(self):
        """With one weight a block there is no noise: the trace itself."""
        model = nn.Sequential(nn.Linear(1, 1), nn.Tanh(), nn.Linear(1, 1)).double()
        for p in model.parameters():
            p.data = randn(*p.shape, seed=p.dim())
        x, y = randn(9, 1), randn(9, 1, seed=1)
        risk = Risk(model, nn.MSELoss(), [(x, y)])
        dense = HessianOperator(risk).dense()
        error = measure_identities(risk, None, 0)[0]["trace"].error
        assert error == pytest.approx(abs(float(dense.trace() / dense.norm())))

    def test_mirror_against_eigenvalues(self):
        risk = risk_of("ReLU, 2 layers", "cross entropy")
        values = torch.linalg.eigvalsh(HessianOperator(risk).dense())
        expected = float((values + values.flip(0)).abs().max() / values.abs().max())
        assert measure_identities(risk, None, 0)[0]["mirror_spectrum"].error == pytest.approx(
            expected, rel=1e-6
        )

    def test_layers_may_be_given(self):
        risk = risk_of("ReLU")
        found, degree, _ = measure_identities(risk, 4, 0)
        assert degree == 4
        # 2 grad R against 3 grad R
        assert found["homogeneity"].error == pytest.approx(1 / 3)
        assert found["homogeneity"].holds is False

    def test_several_outputs(self):
        model = filled(nn.Sequential(*list(mlp())[:-1], nn.Linear(6, 3, bias=False)))
        data = [(x, torch.arange(len(x)) % 3) for x, _ in batches()]
        found, degree, active = measure_identities(
            Risk(model, nn.CrossEntropyLoss(), data), None, 0
        )
        assert degree == 3
        assert active == 1
        assert {n for n, r in found.items() if r.holds} == {"layer_balance", *F_ROWS}

    def test_active_share_and_the_reason_for_all(self):
        risk = risk_of("ReLU")
        active = torch.cat([hinge(risk.model(x), y) > 0 for x, y in risk.batches()]).double().mean()
        assert measure_identities(risk, None, 0)[2] == pytest.approx(float(active))
        found, _, share = measure_identities(risk_of("ReLU", "cross entropy"), None, 0)
        assert share == 1
        assert found["active_examples"].reason == "every example has a slope: none is left out"

    def test_a_net_at_rest_has_no_identities(self):
        risk = risk_of("ReLU")
        risk.model[1].weight.data.zero_()
        found, degree, _ = measure_identities(risk, None, 0)
        assert math.isnan(degree)
        for name in ("own_blocks", "trace", "homogeneity", "layer_balance", *F_ROWS):
            assert found[name].holds is None
            assert "or all units rest" in found[name].reason

    def test_opaque(self):
        risk = risk_of("ReLU")
        opaque = Risk.from_closure(
            risk.model, lambda m, b: hinge(m(b[0]), b[1]).mean(), list(risk.batches())
        )
        found, degree, active = measure_identities(opaque, None, 0)
        assert degree == 3
        assert math.isnan(active)
        assert {n for n, r in found.items() if r.holds} == {
            "own_blocks",
            "trace",
            "homogeneity",
            "layer_balance",
        }
        assert "loss_fn(output, target)" in found["functional_trace"].reason

    def test_a_penalty_is_no_part_of_the_output(self):
        risk = risk_of("ReLU")

        def penalised(output, target):
            return hinge(output, target).mean() + risk.model[1].weight.square().sum()

        found, _, _ = measure_identities(Risk(risk.model, penalised, list(risk.batches())), None, 0)
        assert found["own_blocks"].holds is False
        assert found["functional_blocks"].holds is None

    def test_parameters_that_the_output_does_not_use_are_no_layers(self):
        class Unused(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = NETS["ReLU, 2 layers"]()
                self.spare = nn.Linear(3, 3)

            def forward(self, x):
                return self.net(x)

        plain = risk_of("ReLU, 2 layers")
        model = Unused()
        model.net = plain.model
        model.spare.double()
        found, degree, _ = measure_identities(Risk(model, hinge, batches()), None, 0)
        assert degree == 2
        for name in ("layer_balance", "mirror_spectrum"):
            assert found[name].holds, found[name]

    def test_empty_batches_add_nothing(self):
        risk = risk_of("ReLU")
        data = list(risk.batches())
        empty = (data[0][0][:0], data[0][1][:0])
        whole, degree, active = measure_identities(risk, None, 0)
        found = measure_identities(Risk(risk.model, hinge, [*data, empty]), None, 0)
        assert found[1:] == (degree, active)
        assert {n: r.holds for n, r in found[0].items()} == {n: r.holds for n, r in whole.items()}

    def test_a_net_that_is_linear_in_its_weights(self):
        risk = Risk(filled(nn.Sequential(nn.Flatten(), nn.Linear(16, 1))), hinge, batches())
        found, _, _ = measure_identities(risk, None, 0)
        assert "the output is linear in the weights" in found["functional_trace"].reason
        assumptions = check_assumptions(risk, paths=0, columns=0)
        assert "the output is linear in the weights" in assumptions.reasons["spectrum"]


class TestAssumptions:
    @pytest.mark.parametrize("state", ["solved", "dead"])
    def test_why_there_are_no_layers(self, state):
        """Of a net without a gradient it is not said that it is not homogeneous."""
        risk = risk_of("ReLU")
        if state == "dead":
            risk.model[1].weight.data.zero_()
        else:
            risk = Risk(risk.model, lambda o, t: 0 * hinge(o, t), list(risk.batches()))
        found = check_assumptions(risk, paths=0, columns=0)
        assert math.isnan(found.layers)
        assert found.reasons["layers"].startswith("the gradient is 0: no example has a slope")

    def test_a_loss_without_second_derivatives(self):
        model = filled(nn.Sequential(*list(mlp())[:-1], nn.Linear(6, 3, bias=False)))
        data = [(x, torch.arange(len(x)) % 3) for x, _ in batches()]
        found = check_assumptions(Risk(model, nn.MultiMarginLoss(), data), columns=2, rows=3)
        assert list(found.identities) == list(LAWS)
        for row in found.identities.values():
            assert row.holds is None
            assert row.reason.startswith("the model or loss has no second derivatives (")
        assert math.isnan(found.layers)
        assert math.isnan(found.active)
        for name in ("layers", "spectrum", "entries"):
            assert found.reasons[name].startswith("the model or loss has no second")
        assert found.assembly["weights_w_sym"] > 0
        assert found.markdown().count("no second derivatives") == len(LAWS)

    def test_of_its_parts(self):
        risk = risk_of("max-pool")
        found = check_assumptions(risk, seed=3, paths=50, columns=5, rows=7)
        assert found.layers == 3
        assert found.broken == []
        gradient = symmetry_test(risk.gradient(), 3)
        weights = symmetry_test(torch.cat([p.flatten() for p in risk.model.parameters()]), 3)
        for name in ("sign_balance", "odd_moment", "w_sym", "w_sym_null"):
            assert found.assembly[f"gradient_{name}"] == pytest.approx(getattr(gradient, name))
            assert found.assembly[f"weights_{name}"] == pytest.approx(getattr(weights, name))
        x = batches()[0][0]
        drawn = sample_circuits(Network.from_module(risk.model, x), x, 50, seed=3)
        circuits = symmetry_test(drawn.values() * drawn.inputs, 3)
        assert found.assembly["circuits_w_sym"] == pytest.approx(circuits.w_sym)
        assert found.assembly["circuits_sign_balance"] == circuits.sign_balance
        entries = hessian_entries(risk, 5, 7, seed=3).summary(3)
        assert found.diversity["entries_share_below"] == pytest.approx(entries["share_below"])
        assert found.diversity["entries_bound"] == entries["bound"]
        values = torch.linalg.eigvalsh(FunctionalHessianOperator(risk).dense())
        odd = float(values.pow(3).sum() / values.abs().pow(3).sum())
        error = found.assembly["spectrum_odd_3_stderr"]
        assert found.assembly["spectrum_odd_3"] == pytest.approx(odd, abs=4 * error + 0.03)

    def test_summary_and_table(self):
        found = check_assumptions(risk_of("biases"), paths=20, columns=2, rows=3)
        summary = found.summary()
        assert summary["holds_own_blocks"] == 1.0
        assert summary["holds_homogeneity"] == 0.0
        assert math.isnan(summary["holds_mirror_spectrum"])
        assert summary["error_layer_balance"] == found.identities["layer_balance"].error
        assert math.isnan(summary["layers"])
        assert found.reasons["layers"] == "the output is not homogeneous in the weights"
        assert all(isinstance(value, float) for value in summary.values())
        table = found.markdown().splitlines()
        assert len(table) == len(LAWS) + 2
        assert "| no |" in table[4]
        assert "| yes |" in table[2]

    def test_what_is_not_asked_for(self):
        found = check_assumptions(risk_of("ReLU"), paths=0, columns=0)
        assert found.diversity == {}
        assert not [name for name in found.assembly if name.startswith("circuits")]

    def test_what_can_not_be_measured_has_a_reason(self):
        found = check_assumptions(risk_of("tanh"), paths=20, columns=2, rows=3)
        assert math.isnan(found.assembly["circuits_w_sym"])
        assert "Tanh" in found.reasons["circuits"]
        assert found.reasons["entries_coupling_set_size"].startswith("it needs 1000 active")
        risk = risk_of("ReLU")
        opaque = Risk.from_closure(
            risk.model, lambda m, b: hinge(m(b[0]), b[1]).mean(), list(risk.batches())
        )
        found = check_assumptions(opaque, paths=20)
        assert math.isnan(found.assembly["spectrum_odd_3"])
        assert math.isnan(found.diversity["entries_share_below"])
        assert {"spectrum", "entries"} <= set(found.reasons)
        assert found.assembly["circuits_w_sym"] >= 0

    def test_seeded(self):
        risk = risk_of("max-pool")
        before = torch.get_rng_state()
        one, two, other = (
            check_assumptions(risk, seed=seed, paths=20, columns=2, rows=3).summary()
            for seed in (1, 1, 2)
        )
        assert str(one) == str(two) != str(other)
        assert torch.equal(torch.get_rng_state(), before)

    def test_not_finite(self):
        risk = risk_of("ReLU")
        risk.model[1].weight.data[0, 0] = math.nan
        with pytest.raises(FloatingPointError, match="the gradient is not finite"):
            check_assumptions(risk)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"paths": -1}, "paths must be at least 0, got -1"),
        ({"columns": -1}, "columns must be at least 0, got -1"),
        ({"rows": -2}, "rows must be at least 0, got -2"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"layers": 2.5}, "layers must be a whole number, got 2.5"),
        ({"layers": "2"}, "layers must be a whole number, got '2'"),
        ({"paths": 1.5}, "paths must be a whole number, got 1.5"),
        ({"columns": True}, "columns must be a whole number, got True"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(TypeError if "whole" in message else ValueError, match=message):
        check_assumptions(risk_of("ReLU"), **arguments)


def test_a_model_is_no_risk():
    with pytest.raises(TypeError, match="risk must be a Risk, got Linear"):
        check_assumptions(nn.Linear(2, 1))


def test_a_kink_made_smooth_is_seen():
    """A ReLU that is only nearly one."""
    model = filled(mlp(lambda: nn.Softplus(beta=50.0)))
    found, _, _ = measure_identities(Risk(model, hinge, batches()), None, 0)
    assert found["own_blocks"].holds is False
    assert found["homogeneity"].holds is False
    assert F.softplus(torch.tensor(0.1), beta=50.0) == pytest.approx(0.1, abs=2e-4)


def test_correlations_stand_beside_the_null_that_decides():
    model, x = filled(mlp(nn.ReLU)), randn(30, 16)
    risk = Risk(model, nn.MSELoss(), [(x, randn(30, 1))])
    found = check_assumptions(risk, seed=3, paths=0).diversity
    entries = hessian_entries(risk, 8, min(64, risk.numel), seed=3).summary(3)
    for name in ("correlation", "correlation_null", "correlation_sign_null", "correlated_share"):
        assert found[f"entries_{name}"] == entries[name]
    assert found["entries_correlation_sign_null"] > 0


@pytest.mark.parametrize("active", [0, 1, 5])
def test_diversity_says_why_it_is_undefined(active):
    """Few active examples: no correlation, no spread given active; the numbers have reasons."""
    model, x = filled(mlp(nn.ReLU)), randn(30, 16)
    y = torch.full((30, 1), -1e6, dtype=torch.float64)
    y[:active] = 1e6

    def loss_fn(output, target):
        return (output + target).clamp(min=0).mean()

    found = check_assumptions(Risk(model, loss_fn, [(x, y)]), paths=0)
    undefined = [name for name, value in found.diversity.items() if math.isnan(value)]
    assert len(undefined) >= 4
    for name in undefined:
        assert found.reasons.get(name) or found.reasons.get("entries"), name
