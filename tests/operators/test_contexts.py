"""What surrounds a product: nothing outside changes it, and it changes nothing outside."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.operators.support import close, closure_of, data, hinge, net, parts, randn, squared
from torch_thermo import HessianOperator, Risk, plasticity_order_parameter
from torch_thermo.risk import contexts


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
