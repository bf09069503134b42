"""Each module, function and method of the tables, tried for real; the docs are the tables."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.network.support import randn, randomised
from torch_thermo.network import Network, UnreadableNetworkError
from torch_thermo.network.functional import FUNCTIONS, METHODS, READERS
from torch_thermo.network.modules import MODULES
from torch_thermo.network.refusals import REFUSED
from torch_thermo.network.table import support_table

LINE, PICTURE, BOX = (4, 9), (4, 8, 7), (4, 5, 4, 6)
ACCEPTED: list[tuple[nn.Module, tuple[int, ...]]] = [
    (nn.Linear(9, 5), LINE),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), LINE),
    (nn.Conv2d(4, 6, 3, padding="same", dilation=2), PICTURE),
    (nn.Conv3d(4, 2, 2, bias=False), BOX),
    (nn.BatchNorm1d(4), LINE),
    (nn.BatchNorm1d(7), (7,)),
    (nn.BatchNorm2d(4, affine=False), PICTURE),
    (nn.BatchNorm3d(4), BOX),
    (nn.SyncBatchNorm(4), PICTURE),
    (nn.MaxPool1d(2), LINE),
    (nn.MaxPool2d(3, 2, padding=1), PICTURE),
    (nn.MaxPool3d(2, ceil_mode=True), BOX),
    (nn.AvgPool1d(2), LINE),
    (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), PICTURE),
    (nn.AvgPool3d(2, divisor_override=3), BOX),
    (nn.AdaptiveMaxPool1d(4), LINE),
    (nn.AdaptiveMaxPool2d((3, None)), PICTURE),
    (nn.AdaptiveMaxPool3d(2), BOX),
    (nn.AdaptiveAvgPool1d(4), LINE),
    (nn.AdaptiveAvgPool2d((3, None)), PICTURE),
    (nn.AdaptiveAvgPool3d(2), BOX),
    (nn.Flatten(), PICTURE),
    (nn.Flatten(2), PICTURE),
    (nn.Unflatten(1, (2, 2)), LINE),
    (nn.Identity(), LINE),
    (nn.Dropout(0.5), LINE),
    (nn.Dropout1d(0.5), LINE),
    (nn.Dropout2d(0.5), PICTURE),
    (nn.Dropout3d(0.5), BOX),
    (nn.AlphaDropout(0.5), LINE),
    (nn.FeatureAlphaDropout(0.5), PICTURE),
    (nn.ReLU(), LINE),
    (nn.ReLU(inplace=True), LINE),
    (nn.LeakyReLU(0.3), LINE),
    (nn.RReLU(0.1, 0.9), LINE),
    (nn.Threshold(0.2, -1), LINE),
    (nn.ReLU6(), LINE),
    (nn.Hardtanh(-0.3, 0.4), LINE),
    (nn.ELU(0.7), LINE),
    (nn.SELU(), LINE),
    (nn.CELU(0.7), LINE),
    (nn.GELU("tanh"), LINE),
    (nn.SiLU(), LINE),
    (nn.Mish(), LINE),
    (nn.Tanh(), LINE),
    (nn.Sigmoid(), LINE),
    (nn.Softplus(2.0, 1.0), LINE),
    (nn.Softsign(), LINE),
    (nn.Hardswish(), LINE),
    (nn.Hardsigmoid(), LINE),
    (nn.LogSigmoid(), LINE),
    (nn.Tanhshrink(), LINE),
    (nn.Softshrink(0.3), LINE),
    (nn.Hardshrink(0.3), LINE),
    (nn.PReLU(), LINE),
    (nn.PReLU(4), PICTURE),
]

REFUSED_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "AdaptiveLogSoftmaxWithLoss": (3, 4, [2]),
    "Bilinear": (3, 3, 2),
    "ChannelShuffle": (1,),
    **{f"CircularPad{n}d": (1,) for n in (1, 2, 3)},
    **{f"ConstantPad{n}d": (1, 0.5) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": (3, 3, 2) for n in (1, 2, 3)},
    "CrossMapLRN2d": (2,),
    "Embedding": (3, 3),
    "EmbeddingBag": (3, 3),
    "Fold": (2, 1),
    **{f"FractionalMaxPool{n}d": (2, 1) for n in (2, 3)},
    "GRU": (3, 3),
    "GRUCell": (3, 3),
    "GroupNorm": (1, 3),
    **{f"InstanceNorm{n}d": (3,) for n in (1, 2, 3)},
    **{f"LPPool{n}d": (2, 2) for n in (1, 2, 3)},
    "LSTM": (3, 3),
    "LSTMCell": (3, 3),
    "LayerNorm": (3,),
    **{f"LazyConv{n}d": (3, 2) for n in (1, 2, 3)},
    **{f"LazyConvTranspose{n}d": (3, 2) for n in (1, 2, 3)},
    "LazyLinear": (3,),
    "LinearCrossEntropyLoss": (3, 4),
    "LocalResponseNorm": (2,),
    **{f"MaxUnpool{n}d": (2,) for n in (1, 2, 3)},
    "MultiheadAttention": (3, 1),
    "PixelShuffle": (1,),
    "PixelUnshuffle": (1,),
    "RMSNorm": (3,),
    "RNN": (3, 3),
    "RNNBase": ("LSTM", 3, 3),
    "RNNCell": (3, 3),
    "RNNCellBase": (3, 3, True, 4),
    **{f"ReflectionPad{n}d": (1,) for n in (1, 2, 3)},
    **{f"ReplicationPad{n}d": (1,) for n in (1, 2, 3)},
    "Softmax": (1,),
    "LogSoftmax": (1,),
    "Softmin": (1,),
    "Transformer": (4, 1, 1, 1, 4),
    "TransformerDecoder": (nn.TransformerDecoderLayer(4, 1, 4), 1),
    "TransformerDecoderLayer": (4, 1, 4),
    "TransformerEncoder": (nn.TransformerEncoderLayer(4, 1, 4), 1),
    "TransformerEncoderLayer": (4, 1, 4),
    "Unfold": (1,),
    **{f"ZeroPad{n}d": (1,) for n in (1, 2, 3)},
}

W = torch.full((4, 4), 0.5, dtype=torch.float64)
REFUSED_FUNCTIONS: list[tuple[str, Callable[[Tensor], Any]]] = [
    ("pow", lambda x: x**2),
    ("matmul", lambda x: x @ W),
    ("mm", lambda x: x.mm(W)),
    ("bmm", lambda x: x.unsqueeze(1).bmm(W.expand(4, 4, 4))),
    ("permute", lambda x: x.permute(0, 1)),
    ("transpose", lambda x: x.transpose(0, 1)),
    ("swapaxes", lambda x: x.swapaxes(0, 1)),
    ("movedim", lambda x: x.movedim(0, 1)),
    ("t", lambda x: x.t()),
    ("flip", lambda x: x.flip(1)),
    ("roll", lambda x: x.roll(1, 1)),
    ("getitem", lambda x: x[:, :2]),
    ("chunk", lambda x: x.chunk(2, 1)[0]),
    ("split", lambda x: x.split(2, 1)[0]),
    ("unbind", lambda x: x.unbind(1)[0]),
    ("narrow", lambda x: x.narrow(1, 0, 2)),
    # functions with the reason of a class
    ("Softmax", lambda x: F.softmax(x, 1)),
    ("LogSoftmax", lambda x: x.log_softmax(1)),
    ("GLU", lambda x: F.glu(x, 1)),
    ("LayerNorm", lambda x: F.layer_norm(x, (4,))),
    ("LayerNorm", lambda x: F.normalize(x)),
    ("MultiheadAttention", lambda x: F.scaled_dot_product_attention(x, x, x)),
    ("Upsample", lambda x: F.interpolate(x.unsqueeze(1), scale_factor=2)),
    ("ConstantPad2d", lambda x: F.pad(x, (1, 1))),
    ("PixelShuffle", lambda x: F.pixel_shuffle(x.view(-1, 4, 1, 1), 2)),
    ("ConvTranspose1d", lambda x: F.conv_transpose1d(x.unsqueeze(2), W.unsqueeze(2))),
]


class Function(nn.Module):
    """A layer behind a function."""

    def __init__(self, function: Callable[[Tensor], Any], width: int = 4) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Linear(width, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.function(x), 1))


def ids(case: Any) -> str | None:
    return repr(case) if isinstance(case, nn.Module) else None


@pytest.mark.parametrize(("module", "shape"), ACCEPTED, ids=ids)
def test_accepted_modules_are_read(module: nn.Module, shape: tuple[int, ...]) -> None:
    randomised(module)
    x = randn(5, *shape)
    with torch.no_grad():
        expected = module.eval()(x.clone())
    module.train()
    model = Function(module, expected.flatten(1).shape[1])
    network = Network.from_module(model, x)
    for operation in network.operations[:-1]:
        if operation.kind != "flatten":
            assert operation.kind == type(module).__name__
            assert operation.name == "function"
    again = randn(3, *shape, seed=5)
    torch.testing.assert_close(network(again), model.eval()(again.clone()), rtol=1e-12, atol=1e-12)


def test_each_accepted_module_is_tried() -> None:
    assert {type(module) for module, _ in ACCEPTED} == set(MODULES)


@pytest.mark.parametrize("name", [n for n in REFUSED if hasattr(nn, n)])
@pytest.mark.filterwarnings("ignore")
def test_refused_modules_are_refused_with_their_reason(name: str) -> None:
    module = getattr(nn, name)(*REFUSED_ARGUMENTS.get(name, ()))
    model = nn.Sequential(nn.Linear(3, 3), module)
    why, remedy = REFUSED[name]
    with pytest.raises(UnreadableNetworkError) as caught:
        Network.from_module(model, torch.zeros(2, 3))
    assert str(caught.value) == f"1 ({name}) cannot be read: {why}; {remedy}"


def test_each_module_of_torch_is_accepted_or_refused() -> None:
    here = {
        name
        for name, kind in vars(nn).items()
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    }
    # what is looked into, as modules of the user's are
    transparent = {"Sequential", "DataParallel", "ParameterDict", "ParameterList"}
    accepted = {kind.__name__ for kind in MODULES}
    assert not accepted & set(REFUSED)
    assert here - accepted - set(REFUSED) == transparent
    assert all(getattr(nn, kind.__name__) is kind for kind in MODULES)


@pytest.mark.parametrize(("name", "function"), REFUSED_FUNCTIONS)
def test_refused_functions_are_refused_with_their_reason(
    name: str, function: Callable[[Tensor], Any]
) -> None:
    with pytest.raises(UnreadableNetworkError) as caught:
        Network.from_module(Called(function, (), (), (4,)).double(), randn(4, 4))
    why, remedy = REFUSED[name]
    assert str(caught.value).endswith(f"cannot be read: {why}; {remedy}")


def test_each_refused_function_is_tried() -> None:
    tried = {name for name, _ in REFUSED_FUNCTIONS}
    assert {name for name in REFUSED if not name[0].isupper()} <= tried


# name: arguments behind the input, and the input's shape
FUNCTION_CASES: dict[str, tuple[tuple[Any, ...], tuple[int, ...]]] = {
    **{f"max_pool{n}d": ((3, 2, 1), s) for n, s in enumerate((LINE, PICTURE, BOX), 1)},
    **{f"avg_pool{n}d": ((3, 2, 1, True), s) for n, s in enumerate((LINE, PICTURE, BOX), 1)},
    **{f"adaptive_max_pool{n}d": ((2,), s) for n, s in enumerate((LINE, PICTURE, BOX), 1)},
    **{f"adaptive_avg_pool{n}d": ((2,), s) for n, s in enumerate((LINE, PICTURE, BOX), 1)},
    "mean": (((2, -1),), PICTURE),
    **{f"dropout{n}d": ((0.5, False), s) for n, s in enumerate((LINE, PICTURE, BOX), 1)},
    "dropout": ((0.5, False), LINE),
    "alpha_dropout": ((0.5, False), LINE),
    "feature_alpha_dropout": ((0.5, False), PICTURE),
    "flatten": ((2,), PICTURE),
    "reshape": (((-1, 6, 6),), LINE),
    "squeeze": ((1,), (1, 5)),
    "unflatten": ((1, (2, 2)), LINE),
    "unsqueeze": ((1,), LINE),
    "view": ((-1, 36), LINE),
    **{name: ((), LINE) for name in ("clone", "contiguous", "double")},
    "to": ((torch.float64,), LINE),
    **{
        name: ((), LINE)
        for name in (
            *("relu", "relu6", "selu", "silu", "mish", "tanh", "sigmoid", "softsign"),
            *("hardswish", "hardsigmoid", "logsigmoid", "tanhshrink"),
        )
    },
    "leaky_relu": ((0.3,), LINE),
    "rrelu": ((0.1, 0.9), LINE),
    "threshold": ((0.2, -1.0), LINE),
    "hardtanh": ((-0.3, 0.4), LINE),
    "clamp": ((-0.3, 0.4), LINE),
    "clip": ((0,), LINE),
    "elu": ((0.7,), LINE),
    "celu": ((0.7,), LINE),
    "gelu": ((), LINE),
    "softplus": ((2.0, 1.0), LINE),
    "softshrink": ((0.3,), LINE),
    "hardshrink": ((0.3,), LINE),
}
WEIGHTED = {  # name: shapes of the tensors behind the input, other arguments, the input's shape
    "linear": (((5, 9), (5,)), (), LINE),
    "conv1d": (((6, 2, 3), (6,)), (2, 1, 1, 2), LINE),
    "conv2d": (((3, 4, 2, 2), (3,)), (1, "same"), PICTURE),
    "conv3d": (((3, 4, 2, 2, 2), (3,)), ((1, 2, 1), 1), BOX),
    "batch_norm": (((4,), (4,), (4,), (4,)), (False, 0.1, 0.01), PICTURE),
    "prelu": (((4,),), (), PICTURE),
}


class Called(nn.Module):
    """A function, called with parameters of the module's own, behind a layer."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        shapes: tuple[tuple[int, ...], ...],
        arguments: tuple[Any, ...],
        shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.function = function
        self.own = nn.ParameterList(
            # a running mean can't have a gradient
            nn.Parameter(torch.rand(shape) + 0.1, requires_grad=False)
            for shape in shapes
        )
        self.arguments = arguments
        self.before = nn.Linear(shape[-1], shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.before(x), *self.own, *self.arguments)


def spellings(name: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    for place, owner in (("F", F), ("torch", torch)):
        for spelling in (name, f"{name}_"):
            if callable(f := getattr(owner, spelling, None)) and f in FUNCTIONS:
                yield f"{place}.{spelling}", f
    for spelling in (name, f"{name}_"):
        if spelling in METHODS:
            yield f"x.{spelling}", partial(called, spelling)


def called(method: str, x: Tensor, *arguments: Any) -> Any:
    return getattr(x, method)(*arguments)


@pytest.mark.parametrize("name", sorted(READERS))
def test_functions_and_methods_are_read(name: str) -> None:
    shapes, arguments, shape = (
        WEIGHTED[name] if name in WEIGHTED else ((), *FUNCTION_CASES.get(name, ((), LINE)))
    )
    tried = 0
    for spelling, function in spellings(name):
        if name == "float":
            continue
        model = Called(function, shapes, arguments, shape).double().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # even kernels that are padded alike
            network = Network.from_module(model, randn(5, *shape))
            x = randn(3, *shape, seed=7)
            y = model(x)
        torch.testing.assert_close(network(x), y, rtol=1e-12, atol=1e-12, msg=spelling)
        assert all(o.kind in (name, "Linear") for o in network.operations)
        tried += 1
    assert tried or name == "float"


def test_a_cast_that_does_nothing_is_read() -> None:
    x = torch.ones(2, 4)
    model = Function(lambda x: x.float()).float()
    assert len(Network.from_module(model, x).operations) == 1
    with pytest.raises(UnreadableNetworkError, match=r"\(float\).*makes torch.float32"):
        Network.from_module(Function(lambda x: x.float().double()), x.double())


def test_each_function_is_tried() -> None:
    assert {*FUNCTION_CASES, *WEIGHTED, "float"} == set(READERS)


def test_the_docs_are_the_table() -> None:
    docs = Path(__file__).parents[2] / "docs" / "modules.md"
    written = docs.read_text(encoding="utf-8")
    assert written == support_table(), "python -m torch_thermo.network.table docs/modules.md"
    for kind in MODULES:
        assert f"`nn.{kind.__name__}`" in written
    for name in REFUSED:
        assert f"`{name}`" in written
