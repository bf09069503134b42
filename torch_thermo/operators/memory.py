"""How much memory is free, and how much a graph of autograd holds."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor


def available_bytes(device: torch.device) -> int:
    """Return the bytes that can still be allocated on `device`.

    CPU: what the kernel calls available, or what is left of the container's limit (cached files
    don't count) if that is less. CUDA: what the driver calls free plus what torch holds without
    using it.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    candidates = [_kernel_available(), _container_available()]
    known = [value for value in candidates if value is not None]
    if not known:
        known = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2]
    return min(known)


def graph_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of storage kept alive by `tensors` and the graph behind them.

    Walks the nodes and counts every storage once; parameters that are saved count too, although
    they would be there without the graph.
    """
    tensors = list(tensors)
    held = [part for t in tensors for part in _dense_parts(t)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    seen = set()
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        for saved in _saved(node):
            for part in _dense_parts(saved):
                storages[part.untyped_storage().data_ptr()] = part.untyped_storage().nbytes()
        stack.extend(following for following, _ in node.next_functions if following is not None)
    return sum(storages.values())


def gib(count: float) -> str:
    """Format a number of bytes for an error message."""
    return f"{count / 2**30:.2f} GiB"


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors with a storage: of a sparse one (a gradient of an embedding) its parts."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    # of other layouts it is not known where they lie
    return (tensor,) if tensor.layout == torch.strided else ()


def _saved(node: torch.autograd.graph.Node) -> Iterable[Tensor]:
    names = [name for name in dir(node) if name.startswith("_saved_")]
    if hasattr(node, "saved_tensors"):
        names.append("saved_tensors")
    for name in names:
        value = getattr(node, name)
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, Tensor):
                yield item


def _kernel_available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _container_available(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    for limit, usage, statistics in (
        ("memory.max", "memory.current", "memory.stat"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    ):
        try:
            left = int((root / limit).read_text()) - int((root / usage).read_text())
        except (OSError, ValueError):  # absent, or "max"
            continue
        return left + _cached_files(root / statistics)
    return None


def _cached_files(statistics: Path) -> int:
    """Return the bytes of the page cache that the kernel gives back when asked for memory."""
    try:
        pairs = [line.split() for line in statistics.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(value) for name, value in pairs if name == "inactive_file")
