import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.operators.support import close, closure_of, data, net, parts, randn, squared
from torch_thermo import HessianOperator, Risk


class TestAgainstDense:
    @pytest.mark.parametrize("keep_graph", [True, False, None])
    def test_products(self, case, dense, keep_graph):
        operator = HessianOperator(case.risk(), keep_graph=keep_graph)
        exact, v = dense(case).hessian(), case.vector()
        close(operator @ v, exact @ v)
        close(operator @ (-2 * v), exact @ (-2 * v))

    def test_opaque(self, case, dense):
        close(HessianOperator(case.opaque()).dense(), dense(case).hessian())

    def test_gradient_and_value(self, case, dense):
        exact = dense(case)

        def risk(flat):
            return exact.mean(lambda x, y: case.loss_fn(exact.output(flat, x), y).mean())

        assert case.risk().value() == pytest.approx(float(risk(exact.point).detach()), rel=1e-13)
        close(case.risk().gradient(), torch.func.grad(risk)(exact.point))

    def test_columns(self, case):
        operator = HessianOperator(case.risk())
        columns = case.vector(3)
        singles = torch.stack([operator @ columns[:, i] for i in range(3)], dim=1)
        assert torch.equal(operator @ columns, singles)
        assert (operator @ columns[:, :0]).shape == (operator.shape[0], 0)

    def test_symmetric(self, case):
        matrix = HessianOperator(case.risk()).dense()
        close(matrix, matrix.T)

    def test_subset_is_a_block(self, named):
        case = named("unused-and-frozen")
        whole, blocks = HessianOperator(case.risk()).dense(), case.risk().blocks
        case.params = ["body.weight", "head.bias"]
        rows = torch.cat([torch.arange(whole.shape[0])[blocks[name]] for name in case.params])
        close(HessianOperator(case.risk()).dense(), whole[rows][:, rows])

    def test_unused_parameter_has_zero_rows(self, named):
        case = named("unused-and-frozen")
        risk = case.risk()
        assert "frozen.weight" not in risk.blocks
        assert not HessianOperator(risk).dense()[risk.blocks["unused"]].any()

    def test_float32(self, named):
        case = named("conv-relu-hinge")
        exact, v = HessianOperator(case.risk()).dense(), case.vector()
        case.model.float()
        case.batches = [(x.float(), y.float()) for x, y in case.batches]
        product = HessianOperator(case.risk()) @ v.float()
        assert product.dtype == torch.float32
        close(product.double(), exact @ v, 1e-5)

    def test_bfloat16_parameters_have_float32_vectors(self, named):
        case = named("tanh-cross-entropy")
        exact, v = HessianOperator(case.risk()).dense(), case.vector()
        case.model.bfloat16()
        case.batches = [(x.bfloat16(), y) for x, y in case.batches]
        operator = HessianOperator(case.risk())
        assert operator.dtype == torch.float32
        product = operator @ v.float()
        assert product.dtype == torch.float32
        close(product.double(), exact @ v, 0.1)

    def test_mixed_dtypes(self):
        model = net()
        model[0].float()
        model = nn.Sequential(model[0], nn.Identity(), model[1], model[2])
        model[1].forward = lambda x: x.double()
        x, y = data()
        risk = Risk(model, squared, [(x.float(), y)])
        assert risk.dtype == torch.float64
        matrix = HessianOperator(risk).dense()
        close(matrix, matrix.T, 1e-6)

    @pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
    def test_recurrent_in_float32(self, kind):
        """On the CPU float32 takes other kernels than float64."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = kind(3, 3, batch_first=True), nn.Linear(3, 1)

            def forward(self, x):
                return self.out(self.rnn(x)[0])

        model, x = Net(), randn(4, 5, 3)
        single = HessianOperator(Risk(model, F.mse_loss, [(x.float(), torch.ones(4, 5, 1))]))
        narrow = single.dense()
        wide = HessianOperator(
            Risk(model.double(), F.mse_loss, [(x, torch.ones(4, 5, 1).double())])
        )
        close(narrow.double(), wide.dense(), 1e-5)


class TestWeights:
    def test_ragged_batches_are_one_batch(self, case):
        x, y = (torch.cat(items) for items in zip(*case.batches, strict=True))
        v = case.vector()
        expected = HessianOperator(case.risk()) @ v
        case.batches = [(x, y)]
        close(HessianOperator(case.risk()) @ v, expected)

    def test_class_weights(self):
        """A weighted mean with a weight: the risk of all examples, however they are cut."""
        weights = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
        model, x = nn.Linear(3, 3).double(), randn(9, 3)
        y = torch.randint(0, 3, (9,), generator=torch.Generator().manual_seed(0))

        def closure(model, batch):
            loss = F.cross_entropy(model(batch[0]), batch[1], weight=weights)
            return loss, weights[batch[1]].sum()

        cut = Risk.from_closure(model, closure, parts(x, y, 1, 5, 3))
        whole = Risk.from_closure(model, closure, [(x, y)])
        assert cut.value() == pytest.approx(whole.value(), rel=1e-13)
        close(cut.gradient(), whole.gradient())
        close(HessianOperator(cut).dense(), HessianOperator(whole).dense())

    def test_ignored_tokens(self):
        """A batch in which every token is ignored has a NaN mean and no weight."""
        model, x = nn.Linear(3, 3).double(), randn(6, 4, 3)
        y = torch.randint(0, 3, (6, 4), generator=torch.Generator().manual_seed(0))
        y[0, :2], y[2:4] = -100, -100

        def closure(model, batch):
            output, target = model(batch[0]).flatten(0, 1), batch[1].flatten()
            return F.cross_entropy(output, target), (target != -100).sum()

        whole = Risk.from_closure(model, closure, [(x, y)])
        cut = Risk.from_closure(model, closure, parts(x, y, 2, 2, 2))
        assert cut.value() == pytest.approx(whole.value(), rel=1e-13)
        close(cut.gradient(), whole.gradient())
        close(HessianOperator(cut).dense(), HessianOperator(whole).dense())
        with cut.frozen(2):
            assert cut.value() == pytest.approx(whole.value(), rel=1e-13)

    def test_zero_total_weight(self):
        model = nn.Linear(3, 1).double()
        risk = Risk.from_closure(model, lambda m, b: (m(b[0]).mean(), 0.0), [data()])
        for measure in (risk.value, risk.gradient, HessianOperator(risk).dense):
            with pytest.raises(ValueError, match=r"positive sum, got 0\.0"):
                measure()


class TestGraphs:
    def test_are_built_once(self):
        calls = []
        model, x_y = net(), data()
        model.register_forward_hook(lambda *_: calls.append(1))
        risk = Risk.from_closure(model, closure_of(squared), [x_y])
        v = torch.ones(risk.numel, dtype=torch.float64)
        for keep_graph, passes in ((True, 1), (None, 1), (False, 3)):
            calls.clear()
            operator = HessianOperator(risk, keep_graph=keep_graph)
            for _ in range(3):
                operator @ v
            assert len(calls) == passes

    @pytest.mark.parametrize("how", ["optimizer", "data", "swap", "buffer"])
    def test_are_built_anew(self, how):
        model = net(nn.BatchNorm1d(4).double())
        risk = Risk(model, squared, [data()])
        operator = HessianOperator(risk, keep_graph=True)
        v = randn(risk.numel)
        before = operator @ v
        weight = model[0].weight
        if how == "optimizer":
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            squared(model(data()[0]), data()[1]).backward()
            optimizer.step()
        elif how == "data":  # leaves the version counter alone
            weight.data.mul_(2)
        elif how == "swap":
            weight.data = weight.data * 2
        else:
            model[2].running_var.mul_(3)
        assert not torch.allclose(operator @ v, before, rtol=1e-3)
        close(operator @ v, HessianOperator(risk, keep_graph=False) @ v)

    def test_do_not_fit(self, monkeypatch):
        calls = []
        model = net()
        model.register_forward_hook(lambda *_: calls.append(1))
        risk = Risk.from_closure(model, closure_of(squared), parts(*data(), 4, 5))
        monkeypatch.setattr("torch_thermo.operators.base.available_bytes", lambda device: 100)
        operator, v = HessianOperator(risk), randn(risk.numel)
        close(operator @ v, operator @ v)
        assert len(calls) == 4

    def test_checkpointing(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.body, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)
                self.reentrant = None

            def forward(self, x):
                x = self.first(x)
                if self.reentrant is None:
                    return self.last(self.body(x).tanh())

                def body(x):
                    return self.body(x).tanh()

                return self.last(checkpoint(body, x, use_reentrant=self.reentrant))

        cheap = Net().double()
        expected = HessianOperator(Risk(cheap, squared, [data()])).dense()
        cheap.reentrant = False
        for keep_graph in (True, False, None):
            operator = HessianOperator(Risk(cheap, squared, [data()]), keep_graph)
            close(operator.dense(), expected)
        cheap.reentrant = True
        for params in (None, ["last.weight", "body.weight"]):
            # without `first` no parameter lies before the checkpoint: autograd says nothing and
            # gives no gradient for `body`
            risk = Risk(cheap, squared, [data()], params=params)
            for measure in (risk.gradient, HessianOperator(risk).dense):
                with pytest.raises(RuntimeError, match="use_reentrant=False"):
                    measure()


class TestArguments:
    def test_vectors(self):
        operator = HessianOperator(Risk(nn.Linear(3, 1).double(), squared, [data()]))
        with pytest.raises(TypeError, match=r"must be torch\.float64, got torch\.float32"):
            operator @ torch.ones(4)
        with pytest.raises(TypeError, match="multiplies tensors, got list"):
            operator @ [1.0]
        for shape in ((5,), (4, 2, 1), ()):
            with pytest.raises(ValueError, match=r"must have shape \(4,\) or \(4, k\), got"):
                operator @ torch.ones(shape, dtype=torch.float64)

    def test_a_loss_without_a_gradient(self):
        model = nn.Linear(3, 1).double()

        @torch.no_grad()
        def closure(model, batch):
            return squared(model(batch[0]), batch[1])

        risk = Risk.from_closure(model, closure, [data()])
        assert risk.value() > 0
        for measure in (risk.gradient, HessianOperator(risk).dense):
            with pytest.raises(ValueError, match="computed under no_grad or detached"):
                measure()

    def test_one_batch_without_a_gradient(self):
        """As of a detector on an image without objects."""
        model = nn.Linear(3, 1).double()

        def closure(model, batch):
            if len(batch[0]) == 1:
                return torch.zeros(())
            return squared(model(batch[0]), batch[1])

        x, y = data()
        risk = Risk.from_closure(model, closure, parts(x, y, 1, 8))
        rest = Risk.from_closure(model, closure, [(x[1:], y[1:])])
        close(risk.gradient(), rest.gradient() * 8 / 9)
        close(HessianOperator(risk).dense(), HessianOperator(rest).dense() * 8 / 9)
