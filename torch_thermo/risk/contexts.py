"""The contexts in which exact first and second derivatives of a model can be had."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def second_order(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Make `model` measurable: the contexts that exact first and second derivatives need.

    Eval mode (dropout and train-mode BatchNorm make products disagree), gradients on and
    inference mode off, no autocast, math attention (the fused kernels have no second
    derivative) and no fast path of transformer layers (it answers otherwise where there is
    padding), TF32 and cudnn's benchmark off, cudnn off for recurrent nets (no second derivative,
    no backward in eval mode), torch.compile's results run eagerly (no double backward), random
    numbers from a fork with a fixed seed, no hooks on parameters (torch.autograd.grad runs them).
    """
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(torch.inference_mode(False))
        enter(torch.enable_grad())
        enter(torch.random.fork_rng(devices=cuda_devices(device)))
        seed(device, 0)
        enter(_eval_mode(model))
        enter(_no_parameter_hooks(model))
        enter(torch.autocast(device.type, enabled=False))
        enter(sdpa_kernel(SDPBackend.MATH))
        enter(_no_fast_path())
        enter(_full_precision())
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            enter(_no_cudnn())
        # set_stance imports the compiler, seconds of work that a run without it is spared
        if "torch._dynamo" in sys.modules:
            enter(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    for module, _ in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def _no_parameter_hooks(model: nn.Module) -> Iterator[None]:
    hooked = [(p, p._backward_hooks) for p in model.parameters() if p._backward_hooks]
    for parameter, _ in hooked:
        parameter._backward_hooks = None
    try:
        yield
    finally:
        for parameter, hooks in hooked:
            parameter._backward_hooks = hooks


@contextmanager
def _no_cudnn() -> Iterator[None]:
    # not torch.backends.cudnn.flags, which sets determinism and precision too, and raises where
    # the precision was set backend by backend
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@contextmanager
def _no_fast_path() -> Iterator[None]:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32: TF32 alone breaks agreement to 1e-6."""
    settings: list[tuple[Any, str, Any]] = [(torch.backends.cudnn, "benchmark", False)]
    # torch 2.9 has a setting for each backend; mixing the two interfaces raises there
    parts = [
        getattr(getattr(torch.backends, backend, None), part, None)
        for backend, part in (
            ("cuda", "matmul"),
            ("cudnn", "conv"),
            ("cudnn", "rnn"),
            ("mkldnn", "matmul"),
            ("mkldnn", "conv"),
            ("mkldnn", "rnn"),
        )
    ]
    if all(hasattr(part, "fp32_precision") for part in parts):
        settings += [(part, "fp32_precision", "ieee") for part in parts]
    else:
        settings += [
            (torch.backends.cuda.matmul, "allow_tf32", False),
            (torch.backends.cudnn, "allow_tf32", False),
        ]
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    try:
        for owner, name, wanted in settings:
            setattr(owner, name, wanted)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def seed(device: torch.device, number: int) -> None:
    """Seed the CPU's generator and the device's: only inside a fork of both."""
    # not torch.manual_seed, which seeds every device, also those that are not put back
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)


def cuda_devices(device: torch.device) -> list[torch.device]:
    """Return the device if its generator has to be forked beside the CPU's."""
    return [device] if device.type == "cuda" else []


def is_reentrant(scalar: Tensor) -> bool:
    """Return whether a part of the graph is hidden by reentrant activation checkpointing."""
    seen = set()
    stack = [scalar.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        stack.extend(following for following, _ in node.next_functions)
    return False
