import warnings

import torch
from torch import nn

from tests.operators.support import close, closure_of, data, hinge, net, parts, randn
from torch_thermo import HessianOperator, Risk


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
