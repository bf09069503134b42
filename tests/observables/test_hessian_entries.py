import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.operators.support import close, closure_of, data, hinge, net, parts, randn
from torch_thermo import FunctionalHessianOperator, Risk
from torch_thermo.observables import hessian_entries


def relu_net(*widths, seed=0, slope=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b, bias=False), nn.LeakyReLU(slope)]
        return nn.Sequential(*layers[:-1]).double()


def conv_net(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(2, 3, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3, 1, bias=False)),
        ).double()


def everything(risk, **options):
    every = range(risk.numel)
    return hessian_entries(risk, every, every, **options)


def dense(model, scalar):
    """The Hessian of scalar(model) in the flat parameters, by autograd."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def function(flat):
        values = (v.view(s) for v, s in zip(flat.split(sizes), shapes, strict=True))
        return scalar(
            lambda x: torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,))
        )

    point = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return torch.autograd.functional.hessian(function, point)


def of_each_example(model, x, y, loss_fn):
    """l'_n d2T_n of each example, from its loss's slope and the dense Hessian of its output."""
    found = []
    for a, b in zip(x.split(1), y.split(1), strict=True):
        output = model(a).detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_fn(output, b).sum(), output)
        found.append(dense(model, lambda f, a=a, s=slope: (s * f(a)).sum()))
    return torch.stack(found)


class Steep(nn.Module):
    """Logits so far apart that the cross entropy of class 0 is 0 to the last bit."""

    def forward(self, x):
        return x * 0.1 + x.new_tensor([1e4, 0.0])


class TestAgainstDirectComputation:
    def check(self, model, loss_fn, x, y, sizes, tolerance=1e-13):
        expected = of_each_example(model, x, y, loss_fn)
        assert expected.abs().max() > 1e-3
        risk = Risk(model, loss_fn, parts(x, y, *sizes))
        found = everything(risk)
        whole = torch.zeros_like(expected)
        whole[found.active] = found.entries
        close(whole, expected, tolerance)
        close(found.means(), FunctionalHessianOperator(risk).dense(), tolerance)
        assert found.samples == len(x)
        return found

    @pytest.mark.parametrize("build", [lambda: relu_net(3, 4, 3, 1), conv_net])
    def test_hinge(self, build):
        model = build()
        x = randn(12, 3) if isinstance(model[0], nn.Linear) else randn(12, 1, 6, 6)
        y = randn(12, 1, seed=1).sign()
        margin = float((model(x) * y).detach().median()) + 1e-3

        def loss_fn(output, target):
            return (margin - output * target).clamp(min=0).flatten(1).sum(1)

        found = self.check(model, loss_fn, x, y, (5, 1, 6))
        assert found.active.tolist() == (model(x) * y < margin)[:, 0].tolist()
        assert len(found.entries) == 6
        assert found.products == (6 + 4) * len(found.columns)

    def test_hinge_is_the_whole_hessian(self):
        model, (x, y) = relu_net(3, 4, 1), data(7)
        found = everything(Risk(model, hinge, [(x, y)]))
        close(found.means(), dense(model, lambda f: hinge(f(x), y)), 1e-13)

    def test_cross_entropy(self):
        """Several outputs: each adds its slope times its own second derivative."""
        labels = torch.tensor([0, 1, 2, 1, 0, 2, 2])
        self.check(
            relu_net(3, 4, 3),
            lambda o, y: F.cross_entropy(o, y, reduction="none"),
            randn(7, 3),
            labels,
            (4, 3),
        )

    def test_smooth_activation_and_bias(self):
        found = self.check(
            net(), lambda o, y: F.softplus(-o * y).flatten(), *data(9), (2, 7), 1e-12
        )
        assert (found.entries.diagonal(dim1=1, dim2=2) != 0).any()

    def test_scalar_outputs_without_an_axis(self):
        model = nn.Sequential(*relu_net(3, 4, 1), nn.Flatten(0))
        x, y = randn(6, 3), randn(6, seed=1).sign()
        self.check(model, lambda o, y: (1 - o * y).clamp(min=0), x, y, (6,))

    def test_weighted_and_ignored(self):
        """The mean over examples is the risk's, which divides by the weights.

        An ignored example has no weight: it is not an inactive one, which the mean counts.
        """
        weights = torch.tensor([0.5, 2.0, 1.0]).double()
        loss_fn = nn.CrossEntropyLoss(weight=weights)
        labels = torch.tensor([0, 1, -100, 1, 2, -100, 2])
        risk = Risk(relu_net(3, 4, 3), loss_fn, parts(randn(7, 3), labels, 4, 3))
        found = everything(risk)
        close(found.means(), FunctionalHessianOperator(risk).dense(), 1e-13)
        assert found.active.tolist() == 5 * [True]
        assert (found.samples, found.active_share) == (5, 1.0)

    def test_examples_that_count_for_nothing(self):
        """Ignored targets, a class of weight 0 and a whole ignored batch leave no trace in z."""
        labels = torch.tensor([0, 1, 2, 1, 0, -100, 2, -100, -100])
        loss_fn = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 0.0]).double())
        model, x = relu_net(3, 4, 3), randn(9, 3)
        risk = Risk(model, loss_fn, parts(x, labels, 4, 3, 2))
        found = everything(risk)
        kept = (labels == 0) | (labels == 1)
        alone = everything(Risk(model, loss_fn, [(x[kept], labels[kept])]))
        assert found.samples == int(kept.sum()) == 4
        close(found.means(), FunctionalHessianOperator(risk).dense(), 1e-13)
        close(found.entries, alone.entries, 1e-13)
        assert found.share_below() == alone.share_below()

    def test_an_example_that_is_fitted_counts(self):
        """A slope of 0 is not a weight of 0."""
        labels = torch.tensor([0, 1, -100])
        model = nn.Sequential(*relu_net(2, 3, 2), nn.Softsign()).double()
        model.append(Steep())
        found = everything(Risk(model, nn.CrossEntropyLoss(), [(randn(3, 2), labels)]))
        assert (found.samples, len(found.entries)) == (2, 1)

    def test_empty_batches(self):
        model, (x, y) = relu_net(3, 4, 3, 1), data(7)
        whole = everything(Risk(model, hinge, [(x, y)]))
        empty = (x[:0], y[:0])
        found = everything(Risk(model, hinge, [empty, (x[:4], y[:4]), (x[4:], y[4:]), empty]))
        close(found.entries, whole.entries, 1e-13)
        assert torch.equal(found.structural, whole.structural)
        assert found.samples == 7

    def test_chosen_entries(self):
        model, (x, y) = relu_net(3, 4, 3, 1), data(8)
        risk = Risk(model, hinge, [(x, y)])
        whole = everything(risk)
        columns, rows = torch.tensor([20, 3, 11]), [5, 26, 0]
        found = hessian_entries(risk, columns, rows)
        assert torch.equal(found.entries, whole.entries[:, columns][:, :, rows])
        assert torch.equal(found.structural, whole.structural[columns][:, rows])
        assert found.columns.tolist() == [20, 3, 11]
        assert found.rows.tolist() == rows

    def test_some_parameters(self):
        model, (x, y) = relu_net(3, 4, 3, 1), data(8)
        whole = everything(Risk(model, hinge, [(x, y)]))
        found = everything(Risk(model, hinge, [(x, y)], params=["2.weight", "4.weight"]))
        assert torch.equal(found.entries, whole.entries[:, 12:, 12:])
        assert torch.equal(found.structural, whole.structural[12:, 12:])

    def test_linear_last_layer(self):
        """Of a net that is linear in its weights all entries are 0."""
        model, (x, y) = relu_net(3, 1), data(5)
        found = everything(Risk(model, lambda o, y: -(o * y).mean(), [(x, y)]))
        assert found.entries.shape == (5, 3, 3)
        assert not found.entries.any()
        assert found.structural.all()

    def test_one_random_number_for_all_examples(self):
        """Drawn alike for the batch and for each of its examples."""

        class Shaken(nn.Sequential):
            def forward(self, x):
                return super().forward(x * torch.rand(1, dtype=x.dtype))

        risk = Risk(Shaken(*relu_net(3, 4, 1)), hinge, parts(*data(8), 5, 3))
        close(everything(risk).means(), FunctionalHessianOperator(risk).dense(), 1e-13)

    def test_float32(self):
        model, (x, y) = relu_net(3, 4, 3, 1), data(8)
        expected = everything(Risk(model, hinge, [(x, y)])).entries
        found = everything(Risk(model.float(), hinge, [(x.float(), y.float())])).entries
        assert found.dtype == torch.float64
        close(found, expected, 1e-5)


class TestStructuralZeros:
    def test_dense_net_by_counting(self):
        """Same layer, or neighbours that share no unit; all others lie on a path."""
        widths = (3, 4, 3, 2, 1)
        model = relu_net(*widths)
        x, y = randn(9, 3), randn(9, 1).sign()
        found = everything(Risk(model, lambda o, y: -(o * y).mean(), [(x, y)]))
        places = [
            (layer, out, into)
            for layer, (a, b) in enumerate(itertools.pairwise(widths))
            for out in range(b)
            for into in range(a)
        ]
        expected = torch.tensor(
            [
                [
                    one[0] == two[0]
                    or (two[0] - one[0] == 1 and two[2] != one[1])
                    or (one[0] - two[0] == 1 and one[2] != two[1])
                    for two in places
                ]
                for one in places
            ]
        )
        assert torch.equal(found.structural, expected)

    def test_dead_units_are_not_structural(self):
        model, (x, y) = relu_net(3, 4, 1), data(9)
        with torch.no_grad():
            model[0].weight[1] = -model[0].weight[1].abs()
        found = everything(Risk(model, lambda o, y: -(o * y).mean(), [(x.abs(), y)]))
        own = torch.arange(3, 6)  # the weights into the dead unit, and the one out of it
        assert found.silent[own, 13].all()
        assert not found.structural[own, 13].any()
        assert bool((found.silent | ~found.structural).all())

    def test_taps_that_only_meet_padding(self):
        model = nn.Sequential(
            nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(1, 1, bias=False)
        ).double()
        x, y = randn(5, 1, 1, 1), randn(5, 1).sign()
        found = everything(Risk(model, lambda o, y: -(o * y).mean(), [(x, y)]))
        expected = torch.ones(10, 10, dtype=torch.bool)
        expected[4, 9] = expected[9, 4] = False  # the centre tap and the last weight
        assert torch.equal(found.structural, expected)

    def test_tokens_that_the_data_lack(self):
        """All rows of an embedding count: a path from each token through its place's weights."""
        places, width, tokens = 2, 2, 5
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = nn.Sequential(
                nn.Embedding(tokens, width, padding_idx=4),
                *(nn.Flatten(), nn.Linear(places * width, 2, bias=False), nn.ReLU()),
                nn.Linear(2, 1, bias=False),
            ).double()
        x, y = torch.tensor([[0, 0], [1, 0]]), randn(2, 1).sign()
        found = everything(Risk(model, lambda o, y: -(o * y).mean(), [(x, y)])).structural
        first = slice(tokens * width, tokens * width + 2 * places * width)
        expected = torch.tensor(
            [
                [token == 4 or into % width != unit for _ in range(2) for into in range(4)]
                for token in range(tokens)
                for unit in range(width)
            ]
        )
        assert torch.equal(found[: tokens * width, first], expected)
        assert found[: tokens * width, : tokens * width].all()  # one embedding, no curvature

    def test_embeddings_of_positions_keep_their_place(self):
        class Places(nn.Module):
            def __init__(self):
                super().__init__()
                self.token, self.place = nn.Embedding(3, 2), nn.Embedding(2, 2)
                self.out = nn.Linear(4, 1, bias=False)

            def forward(self, x):
                return self.out((self.token(x) + self.place(torch.arange(2))).flatten(1))

        x, y = torch.tensor([[0, 0], [1, 0]]), randn(2, 1).sign()
        found = everything(Risk(Places().double(), lambda o, y: -(o * y).mean(), [(x, y)]))
        assert not found.structural[:6, 10:].view(3, 2, 2, 2).diagonal(dim1=1, dim2=3).any()
        # the weight of place p and unit u meets the embedding of that place and unit alone
        assert torch.equal(found.structural[6:10, 10:], ~torch.eye(4, dtype=torch.bool))

    def test_numbers_of_no_embedding_are_shuffled(self):
        """Features 0 and 1 are never on together in an example, and may be."""

        class Product(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(2).double())

            def forward(self, x):
                return (x * self.scale).prod(1, keepdim=True)

        x = torch.tensor([[1, 0], [0, 1], [1, 0], [0, 1]])
        risk = Risk(Product(), lambda o, y: o.sum(), [(x, torch.zeros(4))])
        found = [everything(risk, seed=seed) for seed in range(8)]
        assert all(one.silent.all() for one in found)
        assert any(not one.structural[0, 1] for one in found)

    def test_smooth_activations_have_none_within_a_layer(self):
        found = everything(Risk(net(), lambda o, y: F.softplus(-o * y).mean(), [data(9)]))
        assert not found.structural[:3, :3].any()

    def test_without_an_active_example(self):
        model, (x, _) = relu_net(3, 4, 1), data()
        risk = Risk(model, hinge, [(x, 100 * model(x).detach().sign())])
        found = everything(risk)
        moving = everything(Risk(model, lambda o, y: -(o * y).mean(), [data()]))
        assert found.entries.shape == (0, 16, 16)
        assert torch.equal(found.structural, moving.structural)
        assert not found.means().any()
        assert "none of 9 examples is active" in found.reason
        assert found.normalised_means().isnan().all()
        assert math.isnan(found.share_below())
        assert found.bound == 0.0

    def test_neither_weights_nor_generators_move(self):
        model, (x, y) = net(nn.Dropout(0.5)), data()
        before = {name: p.clone() for name, p in model.state_dict().items()}
        state = torch.get_rng_state()
        hessian_entries(Risk(model, hinge, [(x, y)]), 4, 4)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert model.training


class TestDraws:
    def test_are_distinct_and_of_the_seed(self):
        risk = Risk(relu_net(3, 4, 3, 1), hinge, [data()])
        one, same, other = (hessian_entries(risk, 10, 20, seed=s) for s in (3, 3, 4))
        for indices, count in ((one.columns, 10), (one.rows, 20)):
            assert indices.dtype == torch.int64
            assert len(set(indices.tolist())) == count
            assert (indices.diff() > 0).all()
        assert torch.equal(one.columns, same.columns)
        assert torch.equal(one.entries, same.entries)
        assert not torch.equal(one.columns, other.columns)

    def test_rows_are_drawn_apart_from_columns(self):
        found = hessian_entries(Risk(relu_net(3, 4, 3, 1), hinge, [data()]), 10, 10)
        assert not torch.equal(found.columns, found.rows)

    def test_defaults_of_a_small_net_are_all(self):
        found = hessian_entries(Risk(relu_net(3, 1), hinge, [data()]))
        assert found.columns.tolist() == found.rows.tolist() == [0, 1, 2]
        found = hessian_entries(Risk(relu_net(3, 40, 1), hinge, [data()]))
        assert (len(found.columns), len(found.rows)) == (32, 128)

    def test_all(self):
        found = hessian_entries(Risk(relu_net(3, 1), hinge, [data()]), 3, 3)
        assert found.columns.tolist() == [0, 1, 2]


class TestRefusals:
    def risk(self, model=None, loss_fn=hinge, batches=None):
        return Risk(model or net(), loss_fn, batches or [data()])

    def test_opaque(self):
        risk = Risk.from_closure(net(), closure_of(hinge), [data()])
        with pytest.raises(TypeError, match=r"Hessian entries of each example needs? the loss as"):
            hessian_entries(risk)

    def test_no_risk(self):
        with pytest.raises(TypeError, match="risk must be a Risk, got Sequential"):
            hessian_entries(net())

    @pytest.mark.parametrize(
        ("indices", "error", "message"),
        [
            (0, ValueError, "columns must lie between 1 and the 21 parameters, got 0"),
            (22, ValueError, "columns must lie between 1 and the 21 parameters, got 22"),
            ([], ValueError, "columns must be a list of at least one index"),
            ([3, 21], ValueError, "columns must lie between 0 and 20, got 21"),
            ([3, 5, 3], ValueError, "columns must not repeat an index, got 3 more than once"),
            ([-1], ValueError, "columns must lie between 0 and 20, got -1"),
            ([0.5], TypeError, "columns must be whole numbers, got torch.float32"),
            ([True], TypeError, "columns must be whole numbers, got torch.bool"),
            ("3", TypeError, "columns must be a number or a list of indices, got '3'"),
            (True, TypeError, "columns must be a number or a list of indices, got True"),
        ],
    )
    def test_indices(self, indices, error, message):
        with pytest.raises(error, match=message):
            hessian_entries(self.risk(), indices, 3)
        with pytest.raises(error, match=message.replace("columns", "rows")):
            hessian_entries(self.risk(), 3, indices)

    def test_examples_that_mix(self):
        class Centred(nn.Sequential):
            def forward(self, x):
                return super().forward(x - x.mean(0))

        with pytest.raises(TypeError, match="answers an example alone as in its batch"):
            hessian_entries(self.risk(Centred(*net())), 3, 3)

    def test_examples_that_must_not_be_alone(self):
        model = net(nn.BatchNorm1d(4, track_running_stats=False).double())
        with pytest.raises(TypeError, match="takes one alone: Expected more than 1 value"):
            hessian_entries(self.risk(model), 3, 3)

    def test_random_forward(self):
        class Noisy(nn.Sequential):
            def forward(self, x):
                return super().forward(x) + torch.randn(len(x), 1, dtype=x.dtype)

        with pytest.raises(TypeError, match="random numbers in forward"):
            hessian_entries(self.risk(Noisy(*net())), 3, 3)

    def test_loss_with_parameters_of_its_own(self):
        model = net()

        def penalised(output, target):
            return hinge(output, target) + model[0].weight.square().sum()

        with pytest.raises(TypeError, match="through the output alone"):
            hessian_entries(self.risk(model, penalised), 3, 3)

    def test_output_of_another_kind(self):
        class Net(nn.Sequential):
            def forward(self, x):
                return {"logits": super().forward(x)}

        with pytest.raises(TypeError, match="need a tensor as model output"):
            hessian_entries(self.risk(Net(*net()), lambda o, y: hinge(o["logits"], y)), 3, 3)

    def test_inputs_of_another_kind(self):
        class Net(nn.Sequential):
            def forward(self, batch):
                return super().forward(batch["x"])

        x, y = data()
        with pytest.raises(TypeError, match="an example a row as input, got <class 'dict'>"):
            hessian_entries(self.risk(Net(*net()), batches=[({"x": x}, y)]), 3, 3)

    def test_output_without_examples(self):
        class Net(nn.Sequential):
            def forward(self, x):
                return super().forward(x).sum()

        with pytest.raises(TypeError, match=r"got shape \(\) for 9 examples"):
            hessian_entries(self.risk(Net(*net()), lambda o, y: o.abs()), 3, 3)

    @pytest.mark.parametrize("where", ["loss", "model"])
    def test_no_second_derivatives(self, where):
        x = torch.randint(6, (5, 3), generator=torch.Generator().manual_seed(0))
        y = torch.tensor([0, 1, 2, 1, 0])
        first = nn.EmbeddingBag(6, 4) if where == "model" else nn.Embedding(6, 4)
        model = nn.Sequential(first, nn.Flatten(), nn.LazyLinear(3)).double()
        model(x)
        loss_fn = nn.MultiMarginLoss() if where == "loss" else nn.CrossEntropyLoss()
        with pytest.raises(RuntimeError, match=r"model or loss has no second derivatives \(.+"):
            everything(self.risk(model, loss_fn, [(x, y)]))

    def test_nan(self):
        x, y = data()
        x[4] = torch.nan
        with pytest.raises(FloatingPointError, match="not finite"):
            hessian_entries(self.risk(batches=[(x, y)]), 3, 3)

    def test_no_gradient(self):
        class Cut(nn.Sequential):
            def forward(self, x):
                return super().forward(x).detach()

        with pytest.raises(ValueError, match="the loss has no gradient in the parameters"):
            hessian_entries(self.risk(Cut(*net())), 3, 3)

    def test_too_much(self, monkeypatch):
        from torch_thermo.observables import hessian_entries as function

        module = __import__("sys").modules[function.__module__]
        monkeypatch.setattr(module, "available_bytes", lambda device: 2 * 8 * 9 * 11)
        hessian_entries(self.risk(), 3, 3)
        with pytest.raises(MemoryError, match=r"3 x 4 entries of 9 examples .* at most 11 entries"):
            hessian_entries(self.risk(), 3, 4)
