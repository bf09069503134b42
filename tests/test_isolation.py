import collections
import functools
import queue
import random
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_thermo import Risk
from torch_thermo.isolation import preserved_generators, shadow


class Holder(nn.Module):
    """A module with a weight to measure; tests hang more on it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.history = []

    def note(self, value):
        self.history.append(value)

    def forward(self, x):
        return self.layer(x)


def state(module):
    """Everything of a module that training it in place would change."""
    return {name: value.clone() for name, value in module.state_dict(keep_vars=True).items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestGenerators:
    def test_are_put_back(self):
        def draw():
            return float(torch.rand(())), random.random(), np.random.random()  # noqa: NPY002

        with preserved_generators():
            expected = draw()
        with preserved_generators():
            draw()
            torch.manual_seed(3)
            random.seed(3)
            np.random.seed(3)  # noqa: NPY002
        assert draw() == expected

    def test_are_put_back_after_an_error(self):
        before = torch.get_rng_state()

        @preserved_generators()
        def fail():
            torch.rand(())
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            fail()
        assert torch.equal(torch.get_rng_state(), before)

    def test_shadow_draws_nothing(self):
        model = nn.Sequential(nn.LSTM(2, 2), parametrizations.spectral_norm(nn.Linear(2, 2)))
        before = torch.get_rng_state()
        shadow(model)
        assert torch.equal(torch.get_rng_state(), before)


class TestParameters:
    def test_are_the_same_objects(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        model[2].weight = model[0].weight  # tied
        model[0].bias.requires_grad_(False)
        copied, uncopied = shadow(model)
        assert uncopied == []
        for a, b in zip(model.parameters(), copied.parameters(), strict=True):
            assert a is b
        assert copied[2].weight is copied[0].weight
        assert copied[1] is not model[1]
        assert copied[1].running_mean is not model[1].running_mean

    def test_stay_the_same_objects_wherever_they_are(self):
        model = Holder()
        model.groups = [{"params": [model.layer.weight]}, {model.layer.bias: "bias"}]
        copied, _ = shadow(model)
        assert copied.groups[0]["params"][0] is model.layer.weight
        assert copied.groups[1] == {model.layer.bias: "bias"}

    def test_recurrent_nets_keep_theirs(self):
        model = nn.LSTM(2, 3)
        copied, uncopied = shadow(model)
        assert uncopied == []
        assert all(a is b for a, b in zip(model._flat_weights, copied._flat_weights, strict=True))
        x = torch.ones(4, 1, 2)
        assert torch.equal(copied(x)[0], model(x)[0])

    def test_hooks_on_them_do_not_run_when_measured(self):
        model, calls = Holder(), []
        model.layer.weight.register_hook(lambda g: calls.append(1))
        copied, _ = shadow(model)
        Risk(copied, lambda o, y: o.square().mean(), [(torch.ones(2, 2), 0)]).gradient()
        assert calls == []

    def test_a_loss_with_the_original_module_is_differentiated(self):
        """A penalty written with the module of the script: its weights are the shadow's."""
        model = Holder()
        copied, _ = shadow(model)

        def penalised(output, target):
            return 0 * output.sum() + model.layer.weight.square().sum()

        risk = Risk(copied, penalised, [(torch.ones(2, 2), 0)])
        gradient = risk.gradient()[risk.blocks["layer.weight"]]
        torch.testing.assert_close(gradient, 2 * model.layer.weight.detach().flatten())


def batch_norm():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


NORMED = {
    "batch-norm": batch_norm,
    "weight-norm": lambda: parametrizations.weight_norm(nn.Linear(2, 2)),
    "spectral-norm": lambda: parametrizations.spectral_norm(nn.Linear(2, 2)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(2, 2)),
    "old-weight-norm": lambda: nn.utils.weight_norm(nn.Linear(2, 2)),
    "old-spectral-norm": lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", NORMED)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_training_the_shadow_leaves_the_original_alone(name):
    model = nn.Sequential(NORMED[name](), nn.ReLU()).train()
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    model(x)
    before = state(model)
    copied, uncopied = shadow(model)
    assert uncopied == []
    with preserved_generators():
        torch.manual_seed(0)
        output = copied.train()(3 * x)
        gradients = torch.autograd.grad(output.sum(), list(model.parameters()))
    assert any(g.abs().max() > 0 for g in gradients)
    assert equal(state(model), before)
    with preserved_generators():
        torch.manual_seed(0)
        assert torch.equal(model(3 * x), output)


class TestCompiled:
    """Nothing a compiled part does may reach the original; `aot` and `inductor` add only time."""

    def check(self, model, norm, run):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(model)
            before = norm(model).running_mean.clone()
            copied, uncopied = shadow(model)
            assert uncopied == []
            run(copied)
        assert torch.equal(norm(model).running_mean, before)
        assert not torch.equal(norm(copied).running_mean, before)

    def run(self, model):
        return model(torch.randn(5, 2, generator=torch.Generator().manual_seed(0)))

    def test_part(self):
        model = nn.Sequential(torch.compile(batch_norm(), backend="eager"), nn.ReLU())
        self.check(model, lambda m: m[0]._orig_mod[1], self.run)

    def test_whole(self):
        model = batch_norm()
        model.compile(backend="eager")
        self.check(model, lambda m: m[1], self.run)
        assert model._compiled_call_impl is not None

    def test_method(self):
        model = batch_norm()
        model.quick = torch.compile(model[1].forward, backend="eager")
        self.check(model, lambda m: m[1], lambda m: m.quick(torch.randn(5, 2)))
        # measured eagerly, it needs no compiler's caches
        assert not hasattr(shadow(model)[0].quick, "_torchdynamo_orig_callable")


class TestState:
    def test_lists_counters_and_arrays(self):
        model = Holder()
        model.history += [1, (model.layer.weight * 2), {"deep": [model.layer(torch.ones(2))]}]
        model.count, model.array = 3, np.arange(3.0)
        model.queue = collections.deque([1, 2], maxlen=2)
        model.default = collections.defaultdict(lambda: 7, a=1)
        copied, uncopied = shadow(model)
        assert uncopied == []
        assert torch.equal(copied.history[1], model.history[1])
        assert copied.history[1].grad_fn is None  # a tensor with a graph is detached
        copied.history[1].mul_(0)
        copied.history.clear()
        copied.count += 1
        copied.array[:] = -1
        copied.queue.append(3)
        copied.default["b"] += 1
        assert len(model.history) == 3
        assert model.history[1].abs().sum() > 0
        assert model.history[1].grad_fn is not None
        assert (model.count, model.array.tolist()) == (3, [0, 1, 2])
        assert list(model.queue) == [1, 2]
        assert dict(model.default) == {"a": 1}
        assert copied.default["b"] == 8
        assert copied.queue.maxlen == 2

    def test_references_are_kept(self):
        model = Holder()
        model.me, model.alias, model.shared = model, model.history, [model.layer]
        model.pairs = {"a": model.history}
        copied, _ = shadow(model)
        assert copied.me is copied
        assert copied.alias is copied.history is copied.pairs["a"] is not model.history
        assert copied.shared[0] is copied.layer is not model.layer

    def test_flags(self):
        model = batch_norm()
        model[1].eval()
        copied, _ = shadow(model)
        assert [m.training for m in copied.modules()] == [m.training for m in model.modules()]
        copied.eval()
        assert model[2].training

    def test_generators(self):
        model = Holder()
        model.torch, model.python = torch.Generator().manual_seed(3), random.Random(3)
        model.numpy = np.random.default_rng(3)

        def draw(m):
            return float(torch.rand((), generator=m.torch)), m.python.random(), m.numpy.random()

        copied, uncopied = shadow(model)
        assert uncopied == []
        assert draw(copied) == draw(model)
        draw(copied)
        assert draw(shadow(model)[0]) == draw(model)

    def test_inference_tensors_become_usable(self):
        model = Holder()
        with torch.inference_mode():
            model.register_buffer("scale", torch.ones(2))
            inside, _ = shadow(model)
        outside, _ = shadow(model)
        for copied in (inside, outside):
            assert not copied.scale.is_inference()
            copied.scale.mul_(2)
        assert model.scale.tolist() == [1, 1]

    def test_leaves_that_are_no_parameters(self):
        model = Holder()
        model.plain = torch.ones(2, requires_grad=True)
        copied, _ = shadow(model)
        assert copied.plain is not model.plain
        assert copied.plain.requires_grad

    def test_constants_of_torch(self):
        model = Holder()
        model.constants = (torch.float64, torch.strided, torch.channels_last, torch.Size([2]))
        model.device = torch.device("cpu")
        copied, uncopied = shadow(model)
        assert uncopied == []
        assert copied.constants == model.constants

    def test_shared_on_request(self):
        class Trainer:
            def __init__(self):
                self.steps = [1]

        model = Holder()
        model.trainer = Trainer()
        model.link = weakref.ref(model.trainer)
        model.proxy = weakref.proxy(model.trainer)
        copied, uncopied = shadow(model, share=[model.trainer])
        assert copied.trainer is copied.link() is model.trainer
        assert copied.proxy.steps is model.trainer.steps
        assert uncopied == []


def math_like(x, power=2):
    return x**power


class TestWhatCannotBeCopied:
    def test_is_shared_and_named(self, tmp_path):
        model = Holder()
        with (tmp_path / "file").open("w") as file:
            model.things = [file, threading.Lock(), (i for i in range(3))]
            model.cached = functools.lru_cache(model.note)
            copied, uncopied = shadow(model)
        assert all(a is b for a, b in zip(copied.things, model.things, strict=True))
        assert uncopied == [
            "_io.TextIOWrapper",
            "_thread.lock",
            "builtins.generator",
            "functools._lru_cache_wrapper",
        ]
        copied.note(1)
        assert model.history == []

    def test_workers(self):
        """A copied queue without its consumer would block the run when it is full."""

        class Writer:
            def __init__(self):
                self.queue = queue.Queue(maxsize=2)
                self.thread = threading.Thread(target=self.drain, daemon=True)
                self.thread.start()

            def drain(self):
                while self.queue.get() is not None:
                    pass

        model = Holder()
        model.writer = Writer()
        copied, uncopied = shadow(model)
        assert {"queue.Queue", "threading.Thread"} <= set(uncopied)
        for item in (1, 2, 3, 4, 5, None):
            copied.writer.queue.put(item, timeout=20)
        model.writer.thread.join(timeout=20)
        assert not model.writer.thread.is_alive()

    def test_dead_references(self):
        model, gone = Holder(), Holder()
        model.links = weakref.ref(gone), weakref.proxy(gone)
        del gone
        copied, uncopied = shadow(model)
        assert copied.links[0]() is None
        assert uncopied == []

    def test_torchscript_is_refused(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = nn.Sequential(torch.jit.script(nn.Linear(2, 2)))
        with pytest.raises(TypeError, match=r"^0 is TorchScript"):
            shadow(model)

    def test_an_object_that_breaks(self):
        class Broken:
            def __reduce_ex__(self, protocol):
                return math_like, ()

        model = Holder()
        model.broken = Broken()
        with pytest.raises(RuntimeError, match=r"cannot copy Holder .* math_like"):
            shadow(model)
