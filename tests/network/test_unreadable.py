"""What cannot be read says which part, what it is, why, and what would be."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.network.support import randn
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.errors import READ


class Net(nn.Module):
    """A layer, a part whose forward is given, a layer."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.part = Part(forward)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.part(self.first(x)))


class Part(nn.Module):
    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.own = forward

    def forward(self, x: Tensor) -> Any:
        return self.own(self, x)


def message(model: nn.Module, x: Tensor | None = None) -> str:
    with pytest.raises(UnreadableNetworkError) as caught:
        Network.from_module(model, torch.ones(4, 4) if x is None else x)
    return str(caught.value)


JOINED = (
    "it joins several values that come from the input, and is no sum, difference or concatenation"
)
PARTS: list[tuple[Callable[..., Any], str]] = [
    (lambda m, x: F.linear(x, x), rf"part\.linear \(linear\) cannot be read: {JOINED}; {READ}"),
    (lambda m, x: x @ m.layer(x).flatten(1), rf"part\.matmul \(matmul\).*: {JOINED}"),
    (lambda m, x: torch.maximum(x, m.layer(x)), rf"part\.maximum \(maximum\).*: {JOINED}"),
    (lambda m, x: torch.stack([x, m.layer(x)]).sum(0), rf"part\.stack \(stack\).*: {JOINED}"),
    (
        lambda m, x: x * torch.sigmoid(x),
        r"part\.mul \(mul\) cannot be read: it multiplies values that come from the input by each "
        rf"other, as gates and attention do; {READ}",
    ),
    (lambda m, x: x.mul(m.layer(x)), r"part\.mul \(mul\).*as gates and attention do"),
    (lambda m, x: 1 / x, r"part\.truediv \(div\).*it divides by values that come from the input"),
    (lambda m, x: x / m.layer(x), r"part\.truediv \(div\).*it divides by values that come from"),
    (
        lambda m, x: torch.div(x, 2, rounding_mode="floor"),
        r"part\.div \(div\).*it rounds its quotient \(floor\)",
    ),
    (lambda m, x: torch.cat([x, m.layer(x)]), r"part\.cat \(cat\).*along the first axis"),
    (lambda m, x: torch.cat([x, m.layer(x)], -2), r"part\.cat \(cat\).*which is the batch"),
    (
        lambda m, x: torch.cat([x, m.layer.weight], 1)[:, :4],
        r"part\.layer \(cat\).*joins what comes from the input with other tensors",
    ),
    (
        lambda m, x: m.layer(x.view(-1, 1, 4)) + x,
        r"part\.add \(add\).*examples of other numbers of axes, \(1, 4\) and \(4,\)",
    ),
    (
        lambda m, x: torch.add(x, x, alpha=m.norm.num_batches_tracked),
        r"part(\.norm \(add\).*its alpha is a Live, not a number"
        r"| \(Part\).*'alpha' must be Number, not _Proxy)",
    ),
    (
        lambda m, x: x.view(-1, 4, 1) * m.layer.weight,
        r"part\.layer \(mul\).*its weight of \(4, 4\) does not fit each example of \(4, 1\)",
    ),
    (
        lambda m, x: x.view(-1, 1, 4) + m.layer.weight.view(4, 1, 4),
        r"part\.layer \(add\)",
    ),
    (
        lambda m, x: x[:, :4] + torch.cat([x, m.layer(x)], 1)[:, :4],
        r"part\.getitem \(getitem\) cannot be read: it takes a part of a value",
    ),
    (
        lambda m, x: F.dropout(x, 0.5),
        r"part\.dropout \(dropout\) cannot be read: it is active in eval mode",
    ),
    (lambda m, x: F.rrelu(x, training=True), r"part\.rrelu \(rrelu\).* random in eval mode"),
    (
        lambda m, x: F.batch_norm(x, m.norm.running_mean, m.norm.running_var, training=True),
        r"part\.norm \(batch_norm\).*the batch's own statistics",
    ),
    (
        lambda m, x: F.batch_norm(x, None, None, training=True),
        r"part\.batch_norm \(batch_norm\).*the batch's own statistics",
    ),
    (lambda m, x: x.mean(1, keepdim=True).expand(-1, 4), r"part\.mean \(mean\).*other axes"),
    (
        lambda m, x: x.view(-1, 1, 2, 2).mean((1, 2)).repeat(1, 2),
        r"part\.mean \(mean\).*other axes",
    ),
    (lambda m, x: x - x.mean(), r"part\.mean \(mean\).*averages over the batch"),
    (
        lambda m, x: x.reshape(-1, 2).reshape(-1, 4),
        r"part\.reshape \(reshape\).*it makes \(4, 2\) of \(2, 4\), whose first axis is the batch",
    ),
    (lambda m, x: x.reshape(4, 4), r"part\.reshape \(reshape\) cannot be read: shape '\[4, 4\]'"),
    (lambda m, x: x if x.sum() > 0 else -x, r"part \(Part\) cannot be read: torch\.fx cannot"),
    (lambda m, x: x if x.shape[0] == 4 else -x, r"part \(Part\) cannot be read: torch\.fx cannot"),
    (lambda m, x: x.view(4, *x.shape[1:]), r"part\.view \(view\) cannot be read: shape '\[4, 4\]'"),
    (lambda m, x: torch.clamp(x, m.norm.running_mean), r"part\.norm \(clamp\).*limits are tensors"),
    (
        lambda m, x: m.layer(x) if float(x[0, 0]) else x,
        r"part \(Part\) cannot be read: torch\.fx cannot",
    ),
    (lambda m, x: m.layer(x, x), r"part\.layer \(Linear\).*takes other inputs than it is given"),
    (lambda m, x: F.relu(x, unknown=1), r"part \(Part\) cannot be read: torch\.fx cannot.*unknown"),
    (lambda m, x: x.exp(), r"part\.exp \(exp\) cannot be read: it is not in the table"),
]


@pytest.mark.parametrize(("forward", "expected"), PARTS)
def test_parts(forward: Callable[..., Any], expected: str) -> None:
    assert re.match(expected, message(Net(forward)))


def test_a_weight_with_entries_for_examples() -> None:
    def forward(m: Part, x: Tensor) -> Tensor:
        return (x.view(-1, 1, 4) + m.layer.weight[:2].view(2, 1, 4)).flatten(1)

    text = message(Net(forward), torch.ones(1, 4))
    assert "its weight of (2, 1, 4) does not fit each example of (1, 4)" in text


class Given(nn.Module):
    def __init__(self, forward: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.parts = nn.ModuleList(parts)
        self.own = forward

    def forward(self, x: Tensor) -> Any:
        return self.own(self, x)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x)


def quiet(make: Callable[..., nn.Module], *arguments: Any) -> nn.Module:
    """What torch deprecates and models still have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make(*arguments)


MODELS: list[tuple[nn.Module, str]] = [
    (nn.Sequential(nn.ReLU(), nn.Flatten()), r"the model \(Sequential\).*no layer of weights"),
    (nn.Sequential(), r"the model \(Sequential\).*no layer of weights"),
    (Given(lambda m, x: (m.layer(x), x)), r"the model \(Given\).*returns a tuple"),
    (Given(lambda m, x: {"logits": m.layer(x)}), r"the model \(Given\).*returns a dict"),
    (Given(lambda m, x: None), r"the model \(Given\).*returns a NoneType"),
    (Given(lambda m, x: m.layer.weight * 1), r"the model \(Given\).*does not depend on its input"),
    (
        Given(lambda m, x: m.layer(x) * 1j),
        r"mul \(mul\).*other argument is a complex, not a number",
    ),
    (Two(), r"the model \(Two\).*takes other inputs than it is given here \(missing.*'y'\)"),
    (nn.Module(), r"the model \(Module\).*it has no forward of its own"),
    (nn.ModuleList([nn.Linear(2, 2)]), r"the model \(ModuleList\).*no forward of its own"),
    (nn.Linear(3, 2), r"the model \(Linear\).*its forward fails on an example_input of shape"),
    (nn.LazyLinear(3), r"the model \(LazyLinear\) cannot be read: its weights have no shape yet"),
    (nn.Sequential(nn.LazyConv1d(3, 2)), r"0 \(LazyConv1d\) cannot be read: its weights have no"),
    (
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))),
        r"1\.1 \(LayerNorm\) cannot be read: it normalises with statistics of the example itself",
    ),
    (
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)),
        r"1 \(BatchNorm1d\) cannot be read: it normalises with the batch's own statistics",
    ),
    (
        nn.Sequential(
            nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1, padding_mode="circular")
        ),
        r"1 \(Conv1d\) cannot be read: its padding mode is 'circular', not 'zeros'",
    ),
    (
        nn.Sequential(nn.Linear(4, 4), nn.MaxPool1d(2)),
        r"1 \(MaxPool1d\) cannot be read: its input has 2 axes, not 3",
    ),
    (nn.Sequential(nn.Conv1d(4, 2, 1)), r"0 \(Conv1d\) cannot be read: its input has 2 axes"),
    (
        Given(
            lambda m, x: m.parts[0](x.view(-1, 1, 4))[0].flatten(1),
            nn.MaxPool1d(2, return_indices=True),
        ),
        r"parts\.0 \(MaxPool1d\) cannot be read: it returns indices beside its output",
    ),
    (
        quiet(torch.jit.script, nn.Linear(4, 2)),
        r"the model \(\w+\) cannot be read: it is TorchScript",
    ),
    (
        nn.Sequential(quiet(torch.jit.script, nn.Linear(4, 2))),
        r"0 \(RecursiveScriptModule\) cannot be read: it is TorchScript",
    ),
    (
        quiet(nn.utils.weight_norm, nn.Linear(4, 2)),
        r"the model \(Linear\).*its weight is rewritten at each forward pass \(WeightNorm\)",
    ),
    (
        nn.Sequential(quiet(nn.utils.spectral_norm, nn.Linear(4, 2))),
        r"0 \(Linear\).*\(SpectralNorm\)",
    ),
    (
        nn.Sequential(prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5)),
        r"0 \(Linear\).*\(L1Unstructured\); .*prune\.remove makes",
    ),
]


@pytest.mark.parametrize(("model", "expected"), MODELS)
def test_models(model: nn.Module, expected: str) -> None:
    assert re.match(expected, message(model))


def test_pruning_that_is_made_final_is_read() -> None:
    layer = prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5)
    prune.remove(layer, "weight")
    assert Network.from_module(layer, torch.ones(2, 4)).sizes == (4, 2)


def test_a_lazy_module_is_read_after_a_batch() -> None:
    layer = nn.LazyLinear(2)
    layer(torch.ones(2, 4))
    assert Network.from_module(layer, torch.ones(2, 4)).sizes == (4, 2)


BESIDE = "what was read gives another output than the model"


def test_hooks_that_change_an_output_are_found() -> None:
    model = Net(lambda m, x: m.layer(x))
    assert Network.from_module(model, torch.ones(2, 4)).sizes == (4, 4, 4, 2)
    handle = model.part.register_forward_hook(lambda module, args, output: 2 * output)
    assert BESIDE in message(model)
    handle.remove()
    model.last.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    assert BESIDE in message(model)


def relu_of_all(m: Part, x: Tensor) -> Tensor:
    F.relu_(x)
    return m.layer(x)


def relu_of_a_view(m: Part, x: Tensor) -> Tensor:
    x.view(-1).relu_()
    return m.layer(x)


def relu_by_argument(m: Part, x: Tensor) -> Tensor:
    F.relu(x, True)
    return m.layer(x)


def relu_into(m: Part, x: Tensor) -> Tensor:
    torch.clamp(x, 0, out=x)
    return m.layer(x)


def relu_by_module(m: Part, x: Tensor) -> Tensor:
    m.activation(x)
    return m.layer(x)


IN_PLACE = [
    (relu_of_all, r"part\.relu_ \(relu\)"),
    (relu_of_a_view, r"part\.relu_ \(relu\)"),
    (relu_by_argument, r"part\.relu \(relu\)"),
    (relu_into, r"part\.clamp \(clamp\)"),
    (relu_by_module, r"part\.activation \(ReLU\)"),
]


@pytest.mark.parametrize(("forward", "part"), IN_PLACE)
def test_what_is_done_in_place_beside_the_forward_is_found(
    forward: Callable[..., Any], part: str
) -> None:
    model = Net(forward)
    model.part.activation = nn.ReLU(inplace=True)
    # on zeros without biases nothing shows
    for x in (torch.zeros(4, 4), randn(4, 4).float()):
        with torch.no_grad():
            model.first.bias.mul_(0)
        assert re.match(
            f"{part} cannot be read: it works in place on what comes", message(model, x)
        )


def test_what_is_done_in_place_to_a_buffer_with_the_input_is_found() -> None:
    def forward(m: Part, x: Tensor) -> Tensor:
        m.norm.running_mean.relu_().add_(x.sum()).mul_(2)
        return m.layer(x)

    assert "it works in place on what comes from the input" in message(Net(forward))


def test_what_is_done_in_place_to_other_things_is_read() -> None:
    def forward(m: Part, x: Tensor) -> Tensor:
        m.norm.running_mean.add_(x.sum())
        m.norm.num_batches_tracked.add_(1)
        x.requires_grad_(False)
        return m.layer(x)

    model = Net(forward)
    assert Network.from_module(model, torch.ones(2, 4)).sizes == (4, 4, 4, 2)
    assert not model.part.norm.running_mean.any()


def test_an_example_of_zeros_hides_nothing() -> None:
    torch.manual_seed(0)  # in one of some fifty draws all units are dead on the random numbers
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    x, y = torch.zeros(2, 4), randn(2, 4).float()
    assert torch.equal(Network.from_module(model, x)(y), model(y))
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    assert f"{BESIDE} on random numbers of the example_input's shape" in message(model, x)


def test_a_model_that_fails_on_random_numbers_is_compared_on_the_example() -> None:
    def positive(module: nn.Module, args: tuple[Tensor]) -> None:
        if (args[0] <= 0).any():
            raise ValueError("positive numbers alone")

    model = nn.Linear(4, 2)
    model.register_forward_pre_hook(positive)
    assert Network.from_module(model, torch.ones(2, 4)).sizes == (4, 2)
    model.register_forward_hook(lambda module, args, output: 2 * output)
    assert f"{BESIDE} on the example_input" in message(model, torch.ones(2, 4))


CHANGES: list[tuple[Callable[[Tensor], Tensor], str]] = [
    (lambda y: y[:, :1], r"shape \(2, 2\) instead of \(2, 1\)"),
    (lambda y: y.double(), r"dtype torch\.float32 instead of torch\.float64"),
    (lambda y: 2 * y, r"values differ by up to 4, the largest is 8"),
    (lambda y: y / 0, r"values that are not finite are elsewhere"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_the_difference_is_named(change: Callable[[Tensor], Tensor], expected: str) -> None:
    model = nn.Linear(4, 2, bias=False)
    nn.init.ones_(model.weight)
    model.register_forward_hook(lambda module, args, output: change(output))
    text = message(model, torch.ones(2, 4))
    assert re.search(rf"on the example_input \({expected}\): a forward hook", text)


def test_models_that_are_nested_too_deeply() -> None:
    model: nn.Module = nn.Linear(4, 4)
    for _ in range(300):
        model = nn.Sequential(model)
    text = message(model)
    assert text.startswith("the model (Sequential) cannot be read: its modules are nested too deep")
    assert len(text) < 200


def test_what_is_no_model_and_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"^model must be a torch\.nn\.Module, got function$"):
        Network.from_module(lambda x: x, torch.ones(2, 4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^example_input must be a tensor, got list$"):
        Network.from_module(nn.Linear(4, 2), [1, 2])  # type: ignore[arg-type]


def test_another_dtype_is_found() -> None:
    model = Given(lambda m, x: m.layer(x))
    model.register_forward_hook(lambda module, args, output: output.double())
    assert BESIDE in message(model)


def test_outputs_that_are_not_numbers_are_no_difference() -> None:
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight[0, 0], model.weight[1, 0] = float("nan"), float("inf")
    assert Network.from_module(model, torch.ones(2, 2)).sizes == (2, 3)


def test_running_out_of_memory_is_no_property_of_the_model() -> None:
    def forward(m: Given, x: Tensor) -> Tensor:
        if type(x) is Tensor:
            raise torch.OutOfMemoryError("no memory")
        return m.layer(x)

    with pytest.raises(torch.OutOfMemoryError):
        Network.from_module(Given(forward), torch.ones(2, 4))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (torch.tensor(1.0), r"at least 1 example, got \(\)"),
        (torch.zeros(0, 4), r"at least 1 example, got \(0, 4\)"),
        (torch.ones(2, 4, dtype=torch.int64), "floating-point numbers, got torch.int64"),
    ],
)
def test_examples(example: Tensor, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^example_input must be .*{expected}"):
        Network.from_module(nn.Linear(4, 2), example)


def test_the_error_is_a_type_error() -> None:
    assert issubclass(UnreadableNetworkError, TypeError)
