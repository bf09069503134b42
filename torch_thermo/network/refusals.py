"""What is not read, and why."""

from __future__ import annotations

import re

from torch_thermo.network.errors import READ

__all__ = ["REFUSED", "refusal"]

_LOGITS = "return the logits and leave the softmax to the loss"
_PART = "give module= the part that is a chain of layers"
_JOINS = "it joins several values that come from the input"
_DATA = "prepare the data that way before the model"

_GROUPS: tuple[tuple[str, str, str], ...] = (
    (
        "Softmax Softmax2d Softmin LogSoftmax",
        "it mixes the units of a layer and is no elementwise activation",
        _LOGITS,
    ),
    ("AdaptiveLogSoftmaxWithLoss", "it is layers, a softmax and a loss in one", _LOGITS),
    ("GLU", "it multiplies one half of the units by a gate of the other", READ),
    (
        "LayerNorm RMSNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d "
        "LocalResponseNorm CrossMapLRN2d",
        "it normalises with statistics of the example itself, in eval mode too",
        "BatchNorm with running statistics is read",
    ),
    (
        "MultiheadAttention Transformer TransformerEncoder TransformerDecoder "
        "TransformerEncoderLayer TransformerDecoderLayer",
        "attention multiplies values by weights that come from the input",
        _PART,
    ),
    (
        "RNNBase RNN LSTM GRU RNNCellBase RNNCell LSTMCell GRUCell",
        "it is recurrent and keeps a state beside its output",
        _PART,
    ),
    ("Embedding EmbeddingBag", "its inputs are indices, not numbers", _PART),
    (
        "Bilinear CosineSimilarity PairwiseDistance",
        "it takes two inputs",
        _PART,
    ),
    (
        "ConvTranspose1d ConvTranspose2d ConvTranspose3d",
        "transposed convolutions are not among the layers",
        READ,
    ),
    (
        "Upsample UpsamplingNearest2d UpsamplingBilinear2d",
        "resampling is not among the pools",
        READ,
    ),
    (
        "Fold Unfold PixelShuffle PixelUnshuffle ChannelShuffle",
        "it moves an example's numbers to other places",
        READ,
    ),
    (
        "CircularPad1d CircularPad2d CircularPad3d ConstantPad1d ConstantPad2d ConstantPad3d "
        "ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d ReplicationPad2d "
        "ReplicationPad3d ZeroPad1d ZeroPad2d ZeroPad3d",
        "padding is read as a part of convolutions and pools alone",
        "give the convolution padding=, with zeros",
    ),
    (
        "LPPool1d LPPool2d LPPool3d",
        "it is neither an average nor a maximum",
        "average and maximum pools are read",
    ),
    (
        "FractionalMaxPool2d FractionalMaxPool3d",
        "its windows are drawn at random, in eval mode too",
        "average and maximum pools are read",
    ),
    (
        "MaxUnpool1d MaxUnpool2d MaxUnpool3d",
        "it takes the indices of a pool beside its input",
        READ,
    ),
    (
        "BCELoss BCEWithLogitsLoss CTCLoss CosineEmbeddingLoss CrossEntropyLoss GaussianNLLLoss "
        "HingeEmbeddingLoss HuberLoss KLDivLoss L1Loss LinearCrossEntropyLoss MSELoss "
        "MarginRankingLoss MultiLabelMarginLoss MultiLabelSoftMarginLoss MultiMarginLoss NLLLoss "
        "NLLLoss2d PoissonNLLLoss SmoothL1Loss SoftMarginLoss TripletMarginLoss "
        "TripletMarginWithDistanceLoss",
        "it is a loss",
        "keep the loss out of the model's forward",
    ),
    (
        "LazyBatchNorm1d LazyBatchNorm2d LazyBatchNorm3d LazyConv1d LazyConv2d LazyConv3d "
        "LazyConvTranspose1d LazyConvTranspose2d LazyConvTranspose3d LazyInstanceNorm1d "
        "LazyInstanceNorm2d LazyInstanceNorm3d LazyLinear",
        "its weights have no shape yet",
        "run one batch first: then it is read, or refused, as the module it has become",
    ),
    (
        "Module Container ModuleDict ModuleList",
        "it has no forward of its own",
        "read is a module that calls its parts in forward",
    ),
    (
        "permute transpose swapaxes movedim t flip roll",
        "it moves an example's numbers to other places",
        READ,
    ),
    (
        "pow matmul mm bmm",
        "it is arithmetic in forward, not a layer",
        f"{_DATA}, or as a layer; {READ}",
    ),
    ("getitem chunk split unbind narrow", "it takes a part of a value", READ),
)

REFUSED: dict[str, tuple[str, str]] = {
    name: (why, remedy) for names, why, remedy in _GROUPS for name in names.split()
}
"""From the name of a class of `torch.nn` or of a function to why it is not read, and what is."""

_OTHER_NAMES = {
    "interpolate": "Upsample",
    "normalize": "LayerNorm",
    "pad": "ConstantPad2d",
    "scaled_dot_product_attention": "MultiheadAttention",
}


def _plain(name: str) -> str:
    """The spelling that functions and classes share: layer_norm and LayerNorm."""
    return re.sub(r"[\d]+d$", "", name.lower()).replace("_", "")


_BY_PLAIN_NAME = {_plain(name): reason for name, reason in REFUSED.items()}


def refusal(name: str, joins: bool = False) -> tuple[str, str]:
    """Return why the class or function `name` is not read, and what would be.

    Args:
        name: of the class or function.
        joins: whether it takes several values that come from the input.
    """
    reason = _BY_PLAIN_NAME.get(_plain(_OTHER_NAMES.get(name, name)))
    if joins and (reason is None or reason == REFUSED["pow"]):
        return f"{_JOINS}, and is no sum, difference or concatenation", READ
    return reason or ("it is not in the table of what is read", READ)
