import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from torch_thermo import HessianOperator, Risk, plasticity_order_parameter
from torch_thermo.risk import contexts


@pytest.fixture(autouse=True)
def _same_weights():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(n=9, seed=0):
    return randn(n, 3, seed=seed), randn(n, 1, seed=seed + 100).sign()


def parts(x, y, *sizes):
    return list(zip(x.split(list(sizes)), y.split(list(sizes)), strict=True))


def net(*extra):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), *extra, nn.Linear(4, 1)).double()


def hinge(output, target):
    return (0.3 - output * target).clamp(min=0).mean()


def squared(output, target):
    return (output.tanh() - target).square().mean()


def closure_of(loss_fn):
    return lambda model, batch: loss_fn(model(batch[0]), batch[1])


def close(a, b, tolerance=1e-12):
    scale = b.detach().abs().max().clamp(min=1e-3)
    torch.testing.assert_close(a, b, rtol=0, atol=float(tolerance * scale))


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


class TestNothingIsTouched:
    def test_model_and_generators(self):
        model = net(nn.BatchNorm1d(4).double(), nn.Dropout(0.5)).train()
        model[2].eval()  # a mixture of flags, as in fine-tuning
        x, y = data()
        squared(model(x), y).backward()
        flags = [module.training for module in model.modules()]
        grads = [p.grad for p in model.parameters()]
        values = [(g, g.clone()) for g in grads]
        buffers = [b.clone() for b in model.buffers()]
        loader = DataLoader(TensorDataset(x, y), batch_size=4)  # draws a seed when it is read
        risk = Risk(model, squared, loader)
        state = torch.get_rng_state()
        assert risk.samples == 9
        plasticity_order_parameter(risk)
        risk.value()
        HessianOperator(risk) @ torch.ones(risk.numel, dtype=torch.float64)
        assert torch.equal(torch.get_rng_state(), state)
        assert flags == [module.training for module in model.modules()]
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert all(torch.equal(now, before) for now, before in values)
        after = list(model.buffers())
        assert all(torch.equal(a, b) for a, b in zip(after, buffers, strict=True))

    def test_flags_come_back_after_an_error(self):
        model = net(nn.Dropout(0.5)).train()

        def broken(output, target):
            raise OSError("no")

        with pytest.raises(OSError, match="no"):
            HessianOperator(Risk(model, broken, [data()])).dense()
        assert all(module.training for module in model.modules())
        assert torch.backends.mha.get_fastpath_enabled()

    def test_hooks_on_parameters_do_not_run(self):
        model, calls = net(), []
        expected = HessianOperator(Risk(model, squared, [data()])).dense()
        plain = Risk(model, squared, [data()]).gradient()

        def double(gradient):
            calls.append(1)
            return 2 * gradient

        handle = model[0].weight.register_hook(double)
        risk = Risk(model, squared, [data()])
        close(risk.gradient(), plain)
        close(HessianOperator(risk).dense(), expected)
        assert not calls
        squared(model(data()[0]), data()[1]).backward()
        close(model[0].weight.grad.flatten(), 2 * plain[risk.blocks["0.weight"]])
        assert calls == [1]
        handle.remove()
        model.zero_grad()
        squared(model(data()[0]), data()[1]).backward()
        assert calls == [1]

    @pytest.mark.parametrize("allow", [True, False])
    def test_settings_of_the_accelerator(self, allow):
        """In the older interface, which raises when a part was set by the newer one alone."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        chosen = [
            (matmul, "allow_tf32", allow),
            (cudnn, "allow_tf32", allow),
            (cudnn, "deterministic", True),
            (cudnn, "benchmark", True),
        ]

        def settings():
            return [getattr(owner, name) for owner, name, _ in chosen] + [cudnn.enabled]

        original, inside = settings(), []

        def closure(model, batch):
            inside.append(torch.backends.cudnn.benchmark)
            with contexts._no_cudnn():  # as on a GPU with a recurrent net
                inside.append(torch.backends.cudnn.enabled)
                inside.append(torch.backends.cudnn.deterministic)
            return squared(model(batch[0]), batch[1])

        try:
            for owner, name, value in chosen:
                setattr(owner, name, value)
            before = settings()
            Risk.from_closure(net(), closure, [data()]).gradient()
            assert inside == [False, False, True]
            assert settings() == before
        finally:
            for (owner, name, _), value in zip(chosen, original, strict=False):
                setattr(owner, name, value)

    @pytest.mark.parametrize("setting", ["high", "highest"])
    def test_precision_settings(self, setting):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision(setting)
            Risk(net(), squared, [data()]).gradient()
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision(before)


class TestOutside:
    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
    def test_gradients_off(self, mode, case):
        operator, v = HessianOperator(case.risk()), case.vector()
        expected = operator @ v
        with mode():
            batches = [(x.clone(), y.clone()) for x, y in case.batches]
            case.batches = batches  # under inference_mode these are inference tensors
            product = HessianOperator(case.risk()) @ v
            gradient = case.risk().gradient()
        close(product, expected)
        close(gradient, case.risk().gradient())

    def test_inference_tensors_in_any_container(self):
        model = net()
        with torch.inference_mode():
            x, y = data()
            x, y = x.clone(), y.clone()
        batches = [{"deep": [{"x": x}, ("label", y)], "name": "a"}]

        def closure(model, batch):
            return squared(model(batch["deep"][0]["x"]), batch["deep"][1][1])

        expected = HessianOperator(Risk(model, squared, [data()])).dense()
        close(HessianOperator(Risk.from_closure(model, closure, batches)).dense(), expected)

    def test_autocast(self):
        model, (x, y) = net().float(), data()
        risk = Risk(model, squared, [(x.float(), y.float())])
        v = torch.ones(risk.numel)
        expected = HessianOperator(risk) @ v
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x.float()).dtype == torch.bfloat16
            assert torch.equal(HessianOperator(risk) @ v, expected)

    def test_compiled(self):
        model, x_y = net(), data()
        expected = HessianOperator(Risk(model, squared, [x_y])).dense()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(model, backend="aot_eager")
            compiled(x_y[0])
            close(HessianOperator(Risk(compiled, squared, [x_y])).dense(), expected)
            inner = nn.Sequential(compiled)
            close(HessianOperator(Risk(inner, squared, [x_y])).dense(), expected)
            model.compile(backend="aot_eager")
            model(x_y[0])
            close(HessianOperator(Risk(model, squared, [x_y])).dense(), expected)


class Forced(nn.Module):
    """Draws in eval mode too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.last(F.dropout(F.relu(self.first(x)), 0.5, training=True))


class TestStochasticForward:
    @pytest.mark.parametrize("loss_fn", [squared, hinge])
    @pytest.mark.parametrize("keep_graph", [True, False])
    def test_is_one_function(self, loss_fn, keep_graph):
        """Value, gradient and Hessian belong together: checked by finite differences."""
        model = Forced().double()
        risk = Risk(model, loss_fn, parts(*data(), 4, 1, 4))
        v = randn(risk.numel)

        def shifted(step, measure):
            with torch.no_grad():
                for p, d in zip(model.parameters(), risk.unflatten(v), strict=True):
                    p.add_(d, alpha=step)
                result = measure()
                for p, d in zip(model.parameters(), risk.unflatten(v), strict=True):
                    p.sub_(d, alpha=step)
            return result

        h = 1e-6
        slope = (shifted(h, risk.value) - shifted(-h, risk.value)) / (2 * h)
        assert slope == pytest.approx(float(risk.gradient() @ v), rel=1e-6)
        bend = (shifted(h, risk.gradient) - shifted(-h, risk.gradient)) / (2 * h)
        operator = HessianOperator(risk, keep_graph)
        close(operator @ v, bend, 1e-6)
        assert torch.equal(operator @ v, operator @ v)

    def test_batches_draw_differently(self):
        seen = []

        def closure(model, batch):
            seen.append(float(torch.rand(())))
            return model(batch[0]).sum()

        risk = Risk.from_closure(net(), closure, parts(*data(), 3, 3, 3))
        risk.gradient()
        first = list(seen)
        assert len(set(first)) == 3
        risk.value()
        assert seen[3:] == first

    def test_random_augmentation_in_the_loader(self):
        class Noisy(TensorDataset):
            def __getitem__(self, index):
                x, y = super().__getitem__(index)
                return x + torch.randn_like(x), y

        loader = DataLoader(Noisy(*data()), batch_size=4, shuffle=True)
        risk = Risk(Forced().double(), hinge, loader)
        opaque = Risk.from_closure(risk.model, closure_of(hinge), loader)
        assert risk.value() == risk.value() == opaque.value()
        assert torch.equal(risk.gradient(), opaque.gradient())
        close(HessianOperator(risk).dense(), HessianOperator(opaque).dense())


class TestOnlyActiveExamples:
    """With hinge loss examples without a slope are left out; the product is that of all."""

    def both(self, model, loss_fn, batches):
        structured = HessianOperator(Risk(model, loss_fn, batches)).dense()
        opaque = HessianOperator(Risk.from_closure(model, closure_of(loss_fn), batches)).dense()
        assert opaque.abs().max() > 1e-3
        close(structured, opaque, 1e-14)

    def test_equal(self):
        model, (x, y) = net(), data(40)
        active = (0.3 - model(x) * y > 0).flatten()
        assert 0 < active.sum() < 40
        self.both(model, hinge, parts(x, y, 25, 15))

    def test_are_really_left_out(self):
        sizes = []
        model, (x, y) = net(), data(40)
        active = int((0.3 - model(x) * y > 0).sum())
        model.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
        HessianOperator(Risk(model, hinge, [(x, y)])).dense()
        assert sizes == [40, active]

    def test_none_active(self):
        model, (x, _) = net(), data()
        y = 100 * model(x).detach().sign()
        assert not HessianOperator(Risk(model, hinge, [(x, y)])).dense().any()

    def test_batch_statistics(self):
        """Without its own statistics BatchNorm mixes the examples in eval mode too."""
        model = net(nn.BatchNorm1d(4, track_running_stats=False).double())
        self.both(model, hinge, parts(*data(20), 11, 9))

    def test_batch_statistics_of_a_single_active_example(self):
        model = net(nn.BatchNorm1d(4, track_running_stats=False).double())
        x, y = data()

        self.both(model, lambda o, y: o[:1].abs().sum(), [(x, y)])

    def test_time_first(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.rnn, self.out = nn.GRU(3, 4), nn.Linear(4, 1)

            def forward(self, x):
                return self.out(self.rnn(x)[0])

        x = randn(6, 5, 3)

        def last_steps(output, target):
            return (0.3 - output * target)[3:].clamp(min=0).mean()

        self.both(Net().double(), last_steps, [(x, torch.ones(6, 5, 1).double())])

    def test_nan_is_seen(self):
        model, (x, y) = net(), data()
        x[4] = torch.nan
        assert HessianOperator(Risk(model, hinge, [(x, y)])).dense().isnan().any()

    def test_loss_with_parameters_of_its_own(self):
        """A penalty or a learned scale in loss_fn is curvature that the output does not show."""
        model = net()

        def penalised(output, target):
            return hinge(output, target) + 0.5 * model[0].weight.square().sum()

        self.both(model, penalised, [data()])

    def test_output_of_another_kind(self):
        class Net(nn.Sequential):
            def forward(self, x):
                return {"logits": super().forward(x)}

        model = Net(*net())
        self.both(model, lambda o, y: hinge(o["logits"], y), [data()])

    def test_no_dimension(self):
        class Net(nn.Linear):
            def forward(self, x):
                return super().forward(x).square().sum()

        model = Net(3, 2).double()
        self.both(model, lambda o, y: o * y.mean(), [(randn(3), randn(1))])

    def test_padding_in_transformer_layers(self):
        """The fast path of a layer without gradients answers otherwise where there is padding."""

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                layer = nn.TransformerEncoderLayer(4, 2, 4, batch_first=True)
                self.body = nn.TransformerEncoder(layer, 1)

            def forward(self, batch):
                x, padding = batch
                return self.body(x, src_key_padding_mask=padding)

        padding = torch.zeros(3, 5, dtype=torch.bool)
        padding[0, 3:], padding[2, 1:] = True, True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            batch = ((randn(3, 5, 4), padding), randn(3, 5, 4, seed=1))
            self.both(Net().double(), lambda o, y: (o * y).abs().mean(), [batch])


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
