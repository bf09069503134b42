import collections
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torch_thermo import HessianOperator, Risk

HERE = Path(__file__).parent


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(outputs=1):
    model = nn.Linear(3, outputs).double()
    model.weight.data, model.bias.data = randn(outputs, 3, seed=1), randn(outputs, seed=2)
    return model


def batches(*sizes):
    return [(randn(n, 3, seed=n), randn(n, 1, seed=n + 50)) for n in sizes]


def squared(output, target):
    return (output - target).square().mean()


def each(output, target):
    return (output - target).square().flatten(1).mean(1)


class TestClosedForm:
    @pytest.mark.parametrize("loss_fn", [squared, each, lambda o, y: squared(o, y).reshape(1, 1)])
    def test_least_squares(self, loss_fn):
        model, cut = linear(), batches(4, 1, 2)
        x = torch.cat([torch.cat([x, torch.ones(len(x), 1)], dim=1) for x, _ in cut])
        y = torch.cat([y for _, y in cut])
        theta = torch.cat([model.weight.detach().flatten(), model.bias.detach()])
        error = x @ theta - y[:, 0]
        risk = Risk(model, loss_fn, cut)
        assert risk.value() == pytest.approx(float(error.square().sum()) / 7, rel=1e-14)
        torch.testing.assert_close(risk.gradient(), 2 * x.T @ error / 7, rtol=1e-13, atol=1e-14)
        hessian = HessianOperator(risk).dense()
        torch.testing.assert_close(hessian, 2 * x.T @ x / 7, rtol=1e-13, atol=1e-14)

    def test_closure_weights(self):
        model, cut = linear(), batches(4, 2)

        def closure(model, batch):
            return squared(model(batch[0]), batch[1]), torch.tensor(len(batch[0])) ** 2

        risk = Risk.from_closure(model, closure, cut)
        values = [float(squared(model(x), y).detach()) for x, y in cut]
        assert risk.value() == pytest.approx((16 * values[0] + 4 * values[1]) / 20, rel=1e-14)

    def test_a_closure_without_a_weight_weighs_examples(self):
        model, cut = linear(), batches(4, 2)
        risk = Risk.from_closure(model, lambda m, b: squared(m(b[0]), b[1]), cut)
        assert risk.value() == pytest.approx(Risk(model, squared, cut).value(), rel=1e-14)
        torch.testing.assert_close(risk.gradient(), Risk(model, squared, cut).gradient())


class TestDescription:
    def test_attributes(self):
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
        model[1].bias.requires_grad_(False)
        risk = Risk(model, squared, batches(4, 1))
        assert list(risk.parameters) == ["0.weight", "0.bias", "1.weight"]
        assert risk.blocks == {
            "0.weight": slice(0, 6),
            "0.bias": slice(6, 8),
            "1.weight": slice(8, 10),
        }
        assert (risk.numel, risk.samples, risk.dtype) == (10, 5, torch.float64)
        assert risk.structured
        assert not Risk.from_closure(model, lambda m, b: m(b[0]).sum(), batches(4)).structured

    def test_flat_vectors(self):
        risk = Risk(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double(), squared, batches(4))
        vector = randn(risk.numel)
        pieces = risk.unflatten(vector)
        assert [p.shape for p in pieces] == [p.shape for p in risk.parameters.values()]
        assert torch.equal(risk.flatten(pieces), vector)

    def test_params_by_name_tensor_and_alias(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)).double()
        model[1].weight = model[0].weight
        for params in ("0.weight", ["1.weight"], [model[1].weight], (n for n in ["0.weight"])):
            assert list(Risk(model, squared, batches(4), params=params).parameters) == ["0.weight"]
        order = Risk(model, squared, batches(4), params=[model[2].bias, "0.bias"])
        assert list(order.parameters) == ["0.bias", "2.bias"]

    def test_bfloat16_is_measured_in_float32(self):
        risk = Risk(linear().bfloat16(), squared, [(torch.ones(2, 3).bfloat16(), torch.ones(2, 1))])
        assert risk.dtype == risk.gradient().dtype == torch.float32


class TestBatches:
    def test_loader(self):
        x, y = randn(7, 3), randn(7, 1, seed=1)
        loader = DataLoader(TensorDataset(x, y), batch_size=3)  # gives lists, the last one short
        risk = Risk(linear(), squared, loader)
        assert risk.samples == 7
        whole = Risk(linear(), squared, [(x, y)])
        assert risk.value() == pytest.approx(whole.value(), rel=1e-14)
        torch.testing.assert_close(risk.gradient(), whole.gradient())

    def test_containers(self):
        """Batches reach the model as they are, whatever they are made of."""
        Pair = collections.namedtuple("Pair", "x y")
        counted = collections.defaultdict(list, x=randn(4, 3))
        packed = nn.utils.rnn.pack_sequence([randn(2, 3), randn(1, 3)])
        for batch, reach in (
            (Pair(randn(4, 3), "name"), lambda b: b.x),
            (collections.OrderedDict(x=randn(4, 3), none=None), lambda b: b["x"]),
            (counted, lambda b: b["absent"] or b["x"]),
            (packed, lambda b: b.data),
            ([(randn(4, 3),), [1, "a"]], lambda b: b[0][0]),
        ):
            seen = []

            def closure(model, batch, seen=seen, reach=reach):
                seen.append(type(batch))
                return model(reach(batch)).square().mean()

            assert Risk.from_closure(linear(), closure, [batch]).value() > 0
            assert seen == [type(batch)]

    def test_empty_batches_count_for_nothing(self):
        model, cut = linear(), batches(4, 2)
        nothing = (randn(0, 3), randn(0, 1))
        risk, plain = Risk(model, squared, [nothing, *cut]), Risk(model, squared, cut)
        assert risk.value() == plain.value()
        assert torch.equal(risk.gradient(), plain.gradient())
        assert torch.equal(HessianOperator(risk).dense(), HessianOperator(plain).dense())


class TestGroups:
    def test_are_weighted_means(self):
        model, cut = linear(), batches(4, 1, 2, 5, 3)
        groups = Risk(model, squared, cut).group_gradients(2)
        for index in range(2):
            part = Risk(model, squared, cut[index::2])
            torch.testing.assert_close(groups.gradients[index], part.gradient())
            assert float(groups.losses[index]) == pytest.approx(part.value())
        assert groups.weights.tolist() == [9, 6]
        assert Risk(model, squared, cut).group_gradients(8).weights.tolist() == [4, 1, 2, 5, 3]

    def test_frozen_makes_one_pass(self):
        model, calls = linear(), []
        model.register_forward_hook(lambda *_: calls.append(1))
        risk = Risk(model, squared, batches(4, 1, 2))
        value, gradient = risk.value(), risk.gradient()
        calls.clear()
        with risk.frozen(2), risk.frozen(3):
            assert risk.value() == pytest.approx(value, rel=1e-14)
            torch.testing.assert_close(risk.gradient(), gradient)
            risk.group_gradients(2)
            assert len(calls) == 3
        risk.gradient()
        assert len(calls) == 6

    def test_frozen_forgets(self):
        model = linear()
        risk = Risk(model, squared, batches(4))
        with risk.frozen():
            before = risk.gradient()
        model.weight.data.mul_(2)
        with risk.frozen():
            assert not torch.equal(risk.gradient(), before)


class TestErrors:
    def test_batches(self):
        model = linear()
        with pytest.raises(TypeError, match="one-shot generator"):
            Risk(model, squared, (b for b in batches(4)))
        with pytest.raises(TypeError, match="one-shot list_iterator"):
            Risk(model, squared, iter(batches(4)))
        with pytest.raises(ValueError, match="batches is empty"):
            Risk(model, squared, [])
        for wrong in (torch.ones(3), {"x": torch.ones(3)}, 3, None):
            with pytest.raises(TypeError, match=f"must be a list .* got {type(wrong).__name__}"):
                Risk(model, squared, wrong)
        empty = DataLoader(TensorDataset(torch.ones(0, 3)), batch_size=4)
        risk = Risk(model, squared, empty)
        for measure in (risk.value, risk.gradient, HessianOperator(risk).dense):
            with pytest.raises(ValueError, match="batches is empty"):
                measure()

    @pytest.mark.parametrize(
        ("batch", "got"),
        [
            (torch.ones(2, 3), "a Tensor"),
            ({"x": torch.ones(2, 3)}, "a dict"),
            ((torch.ones(2, 3),), "a tuple of 1"),
            ([torch.ones(2, 3)] * 3, "a list of 3"),
        ],
    )
    def test_structure_of_a_batch(self, batch, got):
        with pytest.raises(TypeError, match=rf"a pair \(input, target\), got {got}; .* closure"):
            Risk(linear(), squared, [batch]).value()

    def test_examples_that_cannot_be_counted(self):
        risk = Risk.from_closure(linear(), lambda m, b: m(randn(2, 3)).mean(), [{"text": "a"}])
        with pytest.raises(ValueError, match=r"\(a dict\): return \(mean, weight\)"):
            risk.value()

    @pytest.mark.parametrize("shape", [(4, 1), (2,), (5,), (4, 4)])
    def test_shape_of_a_loss(self, shape):
        risk = Risk(linear(), lambda o, y: o.sum() * torch.ones(shape), batches(4))
        with pytest.raises(
            ValueError, match=rf"scalar mean or \(4,\) losses, got shape \({shape[0]}"
        ):
            risk.value()

    def test_kind_of_a_loss(self):
        with pytest.raises(TypeError, match="loss_fn must return a tensor, got float"):
            Risk(linear(), lambda o, y: 0.5, batches(4)).value()
        with pytest.raises(TypeError, match="closure must return a tensor, got NoneType"):
            Risk.from_closure(linear(), lambda m, b: None, batches(4)).value()
        with pytest.raises(
            ValueError, match=r"closure must return a scalar mean, got shape \(4, 1\)"
        ):
            Risk.from_closure(linear(), lambda m, b: m(b[0]), batches(4)).value()

    @pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
    def test_weights(self, weight):
        risk = Risk.from_closure(linear(), lambda m, b: (m(b[0]).mean(), weight), batches(4))
        with pytest.raises(ValueError, match=f"finite and not negative, got {weight}"):
            risk.gradient()

    def test_callables(self):
        for wrong in (None, 3):
            with pytest.raises(
                TypeError, match=f"loss_fn must be callable, got {type(wrong).__name__}"
            ):
                Risk(linear(), wrong, batches(4))
            with pytest.raises(TypeError, match="closure must be callable, got"):
                Risk.from_closure(linear(), wrong, batches(4))

    def test_parameters(self):
        model = linear()
        with pytest.raises(ValueError, match="must name parameters of the model, got 'wieght'"):
            Risk(model, squared, batches(4), params=["wieght"])
        with pytest.raises(ValueError, match="a tensor that is none of them"):
            Risk(model, squared, batches(4), params=[torch.ones(3)])
        with pytest.raises(ValueError, match="params is empty"):
            Risk(model, squared, batches(4), params=[])
        model.bias.requires_grad_(False)
        with pytest.raises(ValueError, match="'bias' is frozen"):
            Risk(model, squared, batches(4), params="bias")
        model.weight.requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            Risk(model, squared, batches(4))
        with pytest.raises(ValueError, match="no parameter that requires a gradient"):
            Risk(nn.ReLU(), squared, batches(4))
        with pytest.raises(ValueError, match="no shape yet"):
            Risk(nn.LazyLinear(2), squared, batches(4))
        with pytest.raises(TypeError, match="complex"):
            Risk(nn.Linear(3, 1, dtype=torch.complex64), squared, batches(4))
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1, device="meta"))
        with pytest.raises(ValueError, match=r"on one device, got \['cpu', 'meta'\]"):
            Risk(model, squared, batches(4))

    def test_groups(self):
        with pytest.raises(ValueError, match="groups must be at least 1, got 0"):
            Risk(linear(), squared, batches(4)).group_gradients(0)

    def test_nan_weights(self):
        model = linear()
        model.weight.data[0, 0] = torch.nan
        risk = Risk(model, squared, batches(4))
        assert torch.tensor(risk.value()).isnan()
        assert risk.gradient().isnan().any()

    def test_an_error_of_the_model_comes_through(self):
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
            Risk(nn.Linear(4, 1).double(), squared, batches(4)).value()


# -- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found; they end by themselves, or the time limit fails the tests."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "two_ranks.py")]
    where = [str(folder / "rendezvous"), str(folder / "result")]
    processes = [
        subprocess.Popen([*command, str(rank), *where], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"result.{rank}", weights_only=True) for rank in range(2)]


def script():
    spec = importlib.util.spec_from_file_location("two_ranks", HERE / "two_ranks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch without gloo",
)


@needs_gloo
class TestTwoRanks:
    def test_unequal_shards_give_the_answer_of_one_process(self, ranks):
        module = script()
        expected = module.measured(module.problem()[1])
        for result in (rank["measured"] for rank in ranks):
            assert result.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.isfinite(value).all()
                torch.testing.assert_close(
                    result[name], value, rtol=1e-11, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}"
                )

    def test_a_rank_that_fails_stops_all(self, ranks):
        module = script()
        model, all_batches = module.problem()
        value = Risk(model, module.squared_hinge, all_batches).value()
        sound, broken = (dict(rank["failing"]) for rank in ranks)
        assert sound.pop("afterwards") == pytest.approx(value)
        assert broken.pop("afterwards") == pytest.approx(value)
        assert set(broken.values()) == {"OSError: the disk is gone"}
        assert len(broken) == 8
        assert set(sound.values()) == {
            "RuntimeError: the measurement stopped: another rank failed in it"
        }

    def test_examples_that_one_rank_cannot_count(self, ranks):
        module = script()
        model, all_batches = module.problem()
        norm = Risk(model, module.squared_hinge, all_batches).gradient().square().sum()
        for told in (rank["uncounted"] for rank in ranks):
            assert told["value"] == pytest.approx(float(norm))
            assert "got 100" in told["population"]


class TestDivisors:
    """The mean of a criterion with class weights or ignored targets is put together rightly."""

    @pytest.mark.parametrize(
        "criterion",
        [
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)),
            nn.CrossEntropyLoss(ignore_index=0),
            nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.1),
        ],
    )
    def test_ragged_batches_give_the_whole(self, criterion):
        generator = torch.Generator().manual_seed(5)
        model = nn.Linear(4, 3).double()
        x = torch.randn(23, 4, generator=generator, dtype=torch.float64)
        y = torch.randint(3, (23,), generator=generator)
        y[:3] = criterion.ignore_index if criterion.ignore_index >= 0 else y[:3]
        parts = [(x[:3], y[:3]), (x[3:10], y[3:10]), (x[10:], y[10:])]
        whole, risk = Risk(model, criterion, [(x, y)]), Risk(model, criterion, parts)
        expected = criterion(model(x), y)
        assert risk.value() == pytest.approx(float(expected), rel=1e-13)
        torch.testing.assert_close(risk.gradient(), whole.gradient(), rtol=1e-12, atol=1e-14)
        v = torch.randn(risk.numel, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            HessianOperator(risk) @ v, HessianOperator(whole) @ v, rtol=1e-12, atol=1e-14
        )
        by_examples = sum(len(b) * float(criterion(model(a), b)) for a, b in parts[1:]) / 20
        assert abs(by_examples - float(expected)) > 1e-4  # the weights matter here
