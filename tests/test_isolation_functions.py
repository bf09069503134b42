import functools
import logging
import types
import weakref

import numpy as np
import torch
from torch import nn

from torch_thermo.isolation import shadow

seen_by_a_global = []


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


def math_like(x, power=2):
    return x**power


class TestFunctions:
    """Whatever a module calls works on the shadow, not on the run."""

    def check(self, prepare, call):
        model = Holder()
        prepare(model)
        copied, uncopied = shadow(model)
        assert uncopied == []
        call(copied)
        assert len(copied.history) == 1
        assert model.history == []

    def call(self, model):
        model(torch.ones(1, 2))

    def test_hook_with_a_closure(self):
        def prepare(model):
            model.layer.register_forward_hook(lambda m, i, o: model.history.append(1))

        self.check(prepare, self.call)

    def test_hook_that_is_a_method(self):
        def prepare(model):
            model.layer.register_forward_pre_hook(lambda m, i: model.note(1))

        self.check(prepare, self.call)

        def bound(model):
            model.hook = lambda m, i, o: model.note(1)
            model.layer.register_forward_hook(model.hook)

        self.check(bound, self.call)

    def test_hook_of_a_global(self):
        model = Holder()
        model.layer.register_forward_hook(lambda m, i, o: seen_by_a_global.append(1))
        copied, _ = shadow(model)
        copied(torch.ones(1, 2))
        assert seen_by_a_global == []

    def test_hook_with_defaults(self):
        def prepare(model):
            def hook(module, inputs, output, owner=model, *, also=model):
                also.note(1) if owner is also else None

            model.layer.register_forward_hook(hook)

        self.check(prepare, self.call)

    def test_hook_with_an_empty_cell(self):
        """Of a function whose closure names what was never set."""
        model = Holder()

        def hook(module, inputs, output):
            model.note(1)
            if len(model.history) > 5:
                never()

        if model.history:

            def never():
                return None

        model.layer.register_forward_hook(hook)
        copied, _ = shadow(model)
        self.call(copied)
        assert (model.history, copied.history) == ([], [1])

    def test_function_that_calls_itself(self):
        def prepare(model):
            def descend(depth):
                return descend(depth - 1) if depth else model.note(depth)

            model.descend = descend

        self.check(prepare, lambda m: m.descend(3))

    def test_lambda(self):
        def prepare(model):
            model.act = lambda x: (model.note(1), model.layer(x))[1]

        self.check(prepare, lambda m: m.act(torch.ones(1, 2)))

    def test_partial_and_bound_methods(self):
        def prepare(model):
            model.later = functools.partial(model.note, 1)

        self.check(prepare, lambda m: m.later())

        def builtin(model):
            model.push = model.history.append

        self.check(builtin, lambda m: m.push(1))

    def test_patched_forward(self):
        """As libraries patch modules: a method of the instance whose name is not its own."""

        def prepare(model):
            def patched(self, x):
                self.note(1)
                return self.layer(x)

            model.forward = types.MethodType(patched, model)

        self.check(prepare, self.call)

        def wrapped(model):
            inner = model.forward

            @functools.wraps(inner)
            def forward(x):
                model.note(1)
                return inner(x)

            model.forward = forward

        self.check(wrapped, self.call)

    def test_parents(self):
        def prepare(model):
            model.layer.parents = [weakref.proxy(model)]  # an attribute would make it a child
            model.layer.link = weakref.ref(model)

        self.check(prepare, lambda m: m.layer.parents[0].note(1))
        self.check(prepare, lambda m: m.layer.link().note(1))

    def test_attributes_of_a_function(self):
        def prepare(model):
            def act():
                act.owner.note(1)

            act.owner = model
            model.act = act

        self.check(prepare, lambda m: m.act())

    def test_ordinary_functions_are_the_same(self):
        model = Holder()
        model.functions = [torch.relu, torch.nn.functional.gelu, len, np.mean, math_like]
        model.log = logging.getLogger("a")
        copied, uncopied = shadow(model)
        assert uncopied == []
        assert all(a is b for a, b in zip(copied.functions, model.functions, strict=True))
        assert copied.log is model.log
