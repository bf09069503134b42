"""The papers' own systems, ready to train and to measure."""

from torch_thermo.systems.resnet import ResNet
from torch_thermo.systems.tanh_mlp import TanhMLP
from torch_thermo.systems.vgg import VGG

__all__ = ["VGG", "ResNet", "TanhMLP"]
