import itertools
import math

import pytest
import torch
from torch import nn

from torch_thermo import Risk, plasticity_order_parameter


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def squared(output, target):
    return (output - target).square().mean()


def net():
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    for i, p in enumerate(model.parameters()):
        p.data = randn(*p.shape, seed=i)
    return model


def population(n):
    x = randn(n, 2, seed=10)
    return x, x.sum(1, keepdim=True) + randn(n, 1, seed=11)


def batches(x, y, *sizes):
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def gradients(model, cut):
    """The gradient of each batch, by .backward()."""
    rows = []
    for x, y in cut:
        model.zero_grad()
        squared(model(x), y).backward()
        rows.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    return torch.stack(rows)


def pairs(rows, weights):
    """Mean product of two different groups, weighted: by brute force."""
    total = mass = 0.0
    for i, j in itertools.permutations(range(len(rows)), 2):
        total += weights[i] * weights[j] * float(rows[i] @ rows[j])
        mass += weights[i] * weights[j]
    return total / mass


class TestValue:
    @pytest.mark.parametrize("sizes", [(8,), (4, 4), (5, 1, 2), (1,) * 8])
    def test_is_the_squared_norm_of_the_mean_gradient(self, sizes):
        x, y = population(8)
        model = net()
        mean = gradients(model, [(x, y)])[0]
        found = plasticity_order_parameter(Risk(model, squared, batches(x, y, *sizes)))
        assert found.value == pytest.approx(float(mean @ mean), rel=1e-13)
        assert found.risk_value == pytest.approx(float(squared(model(x), y).detach()), rel=1e-13)

    def test_shares_add_up(self):
        model = net()
        risk = Risk(model, squared, batches(*population(8), 5, 3))
        found = plasticity_order_parameter(risk)
        assert math.fsum(found.per_layer.values()) == found.value
        gradient = risk.gradient()
        for name, block in risk.blocks.items():
            expected = float(gradient[block].square().sum())
            assert found.per_layer[name] == pytest.approx(expected, rel=1e-14)

    def test_scaled(self):
        found = plasticity_order_parameter(Risk(net(), squared, batches(*population(8), 5, 3)))
        assert found.scaled(dict.fromkeys(found.per_layer, 0.1)) == pytest.approx(0.1 * found.value)
        rates = {name: float(i) for i, name in enumerate(found.per_layer)}
        expected = sum(i * share for i, share in enumerate(found.per_layer.values()))
        assert found.scaled(rates) == pytest.approx(expected)
        with pytest.raises(KeyError, match=r"2\.bias"):
            found.scaled({name: 1.0 for name in found.per_layer if name != "2.bias"})

    @pytest.mark.parametrize("rate", [1e-4, 1e-6])
    def test_is_the_rate_at_which_a_step_lowers_the_risk(self, rate):
        model = net()
        risk = Risk(model, squared, batches(*population(8), 5, 3))
        found = plasticity_order_parameter(risk)
        with torch.no_grad():
            steps = risk.unflatten(risk.gradient())
            for p, step in zip(model.parameters(), steps, strict=True):
                p.sub_(step, alpha=rate)
        drop = (found.risk_value - risk.value()) / (rate * found.value)
        assert drop == pytest.approx(1.0, abs=1e3 * rate)

    def test_float32_sums_in_float64(self):
        """The squares of small float32 gradients underflow."""
        model = nn.Linear(2, 1, bias=False)
        x, y = torch.full((1, 2), 1e-13), torch.ones(1, 1)
        model.weight.data.zero_()
        found = plasticity_order_parameter(Risk(model, squared, [(x, y)]))
        assert found.value == pytest.approx(8e-26, rel=1e-6, abs=0)  # (2 * 1e-13)^2 in two entries
        tiny = plasticity_order_parameter(Risk(model, squared, [(x * 1e-12, y)]))
        assert tiny.value == pytest.approx(8e-50, rel=1e-6, abs=0)


class TestUnbiased:
    @pytest.mark.parametrize("sizes", [(4, 4), (5, 1, 2), (1,) * 8])
    def test_is_the_mean_over_pairs(self, sizes):
        cut = batches(*population(8), *sizes)
        model = net()
        found = plasticity_order_parameter(Risk(model, squared, cut))
        expected = pairs(gradients(model, cut), sizes)
        assert found.unbiased == pytest.approx(expected, rel=1e-11)
        assert found.groups == len(sizes)

    def test_batches_fold_into_groups(self):
        cut = batches(*population(9), 2, 1, 3, 2, 1)
        model = net()
        found = plasticity_order_parameter(Risk(model, squared, cut), groups=2)
        rows = gradients(model, cut)
        sizes = torch.tensor([2.0, 1, 3, 2, 1], dtype=torch.float64)
        folded = [sizes[i::2] @ rows[i::2] / sizes[i::2].sum() for i in range(2)]
        assert found.unbiased == pytest.approx(pairs(folded, (6.0, 3.0)), rel=1e-11)
        assert found.groups == 2

    @pytest.mark.parametrize("sizes", [(1, 1), (1, 1, 1), (2, 1), (1, 2, 1)])
    @pytest.mark.parametrize("replacement", [True, False])
    def test_all_draws_average_to_the_truth(self, sizes, replacement):
        """Every possible draw from a population of 5: the mean is its order parameter, exactly."""
        x, y = population(5)
        model = net()
        truth = plasticity_order_parameter(Risk(model, squared, [(x, y)])).value
        ways = itertools.product if replacement else itertools.permutations
        options = {"repeat": sum(sizes)} if replacement else {"r": sum(sizes)}
        found = [
            plasticity_order_parameter(
                Risk(model, squared, batches(x[list(draw)], y[list(draw)], *sizes)),
                population=None if replacement else 5,
            )
            for draw in ways(range(5), **options)
        ]
        mean = math.fsum(f.unbiased for f in found) / len(found)
        assert mean == pytest.approx(truth, rel=1e-12)
        biased = math.fsum(f.value for f in found) / len(found)
        assert biased > 1.01 * truth

    @pytest.mark.parametrize("sizes", [(3, 3), (2, 2, 2), (1,) * 6])
    def test_of_the_whole_population_is_the_value(self, sizes):
        risk = Risk(net(), squared, batches(*population(6), *sizes))
        found = plasticity_order_parameter(risk, population=6)
        assert found.unbiased == pytest.approx(found.value, rel=1e-12)

    def test_weights_of_any_unit(self):
        """Only the share of the population counts, not the unit in which a closure weighs."""
        cut = batches(*population(8), 5, 1, 2)

        def closure(unit):
            return lambda model, batch: (squared(model(batch[0]), batch[1]), unit * len(batch[0]))

        expected = plasticity_order_parameter(Risk(net(), squared, cut), population=20)
        for unit in (1, 1000):
            risk = Risk.from_closure(net(), closure(unit), cut)
            found = plasticity_order_parameter(risk, population=20)
            assert found.unbiased == pytest.approx(expected.unbiased, rel=1e-12)
            assert found.stderr == pytest.approx(expected.stderr, rel=1e-12)

    def test_ignored_batches_are_no_group(self):
        cut = batches(*population(9), 4, 1, 4)

        def closure(model, batch):
            if len(batch[0]) == 1:
                return torch.tensor(math.nan), 0
            return squared(model(batch[0]), batch[1]), len(batch[0])

        found = plasticity_order_parameter(Risk.from_closure(net(), closure, cut))
        expected = plasticity_order_parameter(Risk(net(), squared, [cut[0], cut[2]]))
        assert found.unbiased == pytest.approx(expected.unbiased, rel=1e-12)
        assert found.groups == 2


class TestStandardError:
    @pytest.mark.parametrize("size", [None, 50])
    @pytest.mark.parametrize("sizes", [(3, 3, 3), (5, 1, 2, 3), (1,) * 8])
    def test_is_the_jackknife(self, sizes, size):
        cut = batches(*population(sum(sizes)), *sizes)
        found = plasticity_order_parameter(Risk(net(), squared, cut), population=size)
        left_out = []
        for i in range(len(cut)):
            rest = cut[:i] + cut[i + 1 :]
            left_out.append(
                plasticity_order_parameter(Risk(net(), squared, rest), population=size).unbiased
            )
        m = len(cut)
        mean = sum(left_out) / m
        expected = math.sqrt((m - 1) / m * sum((v - mean) ** 2 for v in left_out))
        assert found.stderr == pytest.approx(expected, rel=1e-9)

    def test_covers_the_spread(self):
        """Over 200 draws: the mean variance the jackknife reports against the variance there is."""
        model, draws = net(), []
        for seed in range(200):
            x = randn(24, 2, seed=1000 + seed)
            y = x.sum(1, keepdim=True) + randn(24, 1, seed=5000 + seed)
            draws.append(plasticity_order_parameter(Risk(model, squared, batches(x, y, *[3] * 8))))
        values = torch.tensor([d.unbiased for d in draws])
        reported = torch.tensor([d.stderr for d in draws]).square().mean()
        assert 0.8 < float(reported / values.var()) < 1.6


class TestUndefined:
    def test_too_few_batches(self):
        one = plasticity_order_parameter(Risk(net(), squared, batches(*population(4), 4)))
        assert math.isfinite(one.value)
        assert math.isnan(one.unbiased)
        assert "2 batches or more, got 1" in one.reason
        two = plasticity_order_parameter(Risk(net(), squared, batches(*population(4), 2, 2)))
        assert math.isfinite(two.unbiased)
        assert math.isnan(two.stderr)
        assert "3 batches or more, got 2" in two.reason
        three = plasticity_order_parameter(Risk(net(), squared, batches(*population(4), 2, 1, 1)))
        assert math.isfinite(three.stderr)
        assert three.reason == ""

    def test_weights_that_are_nan(self):
        model = net()
        model[0].weight.data[0, 0] = math.nan
        found = plasticity_order_parameter(Risk(model, squared, batches(*population(4), 2, 1, 1)))
        for value in (found.value, found.unbiased, found.stderr, found.risk_value):
            assert math.isnan(value)
        assert found.reason == "the gradient is not finite (the risk is nan)"

    def test_a_gradient_that_overflows(self):
        risk = Risk(net(), lambda o, y: (o.mean() + 800).exp(), batches(*population(4), 2, 1, 1))
        found = plasticity_order_parameter(risk)
        assert not math.isfinite(found.value)
        assert math.isnan(found.unbiased)
        assert "the risk is inf" in found.reason

    def test_a_loss_that_is_nan(self):
        risk = Risk(net(), lambda o, y: (o - y).mean().log(), batches(*population(9), 3, 3, 3))
        found = plasticity_order_parameter(risk)
        assert math.isnan(found.risk_value)
        assert math.isnan(found.unbiased)
        assert found.reason

    def test_population(self):
        risk = Risk(net(), squared, batches(*population(4), 2, 2))
        with pytest.raises(ValueError, match="at least the 4 examples measured, got 3"):
            plasticity_order_parameter(risk, population=3)

    def test_examples_that_cannot_be_counted(self):
        data = population(4)

        def closure(model, index):
            x, y = (part[index["of"]] for part in data)
            return squared(model(x), y), len(x)

        risk = Risk.from_closure(net(), closure, [{"of": [0, 1]}, {"of": [2, 3]}])
        expected = plasticity_order_parameter(Risk(net(), squared, batches(*data, 2, 2)))
        assert plasticity_order_parameter(risk).unbiased == pytest.approx(expected.unbiased)
        with pytest.raises(ValueError, match=r"population must be None .* got 10"):
            plasticity_order_parameter(risk, population=10)

    def test_groups(self):
        with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
            plasticity_order_parameter(Risk(net(), squared, batches(*population(4), 4)), groups=0)

    def test_a_model_is_no_risk(self):
        with pytest.raises(TypeError, match="risk must be a Risk, got Sequential"):
            plasticity_order_parameter(net())
