"""Measure without touching the run: a shadow of the model, and the generators put back."""

from __future__ import annotations

import collections
import io
import pickle
import random
import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copyreg import __newobj__  # type: ignore[attr-defined]
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bound=nn.Module)

# what pickle stores by name: the same object serves the shadow
_BY_REFERENCE = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    torch.dtype,
    torch.device,
)
_ATOMS = (
    *(int, float, complex, str, bytes, bool, type(None), pickle.PickleBuffer),
    *(list, dict, tuple, set, frozenset),
)
_COLLECTIONS = (list, dict, set, collections.deque, Tensor)


@contextmanager
def preserved_generators() -> Iterator[None]:
    """Put the global generators of torch (CPU, every CUDA device), numpy and python back."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def shadow(module: T, share: Iterable[object] = ()) -> tuple[T, list[str]]:
    """Return a deep copy of `module` over the same weights, and what else had to be shared.

    Everything is copied that a forward pass or a training step could change: buffers, tensors,
    lists, counters, metrics, generators, flags, and the collections that forward hooks reach.
    Parameters are new leaves over the run's memory: the shadow follows the training, and has
    neither its `.grad` nor its hooks (those on parameters fire in `torch.autograd.grad` too).
    Classes, functions and the objects in `share` are the same. So is what cannot be copied
    (locks, open files, process groups, Python's generators): the second value names the types.

    The copy is made by pickle, which keeps references between objects, asks every class how it is
    copied, and, unlike `copy.deepcopy`, lets a single object inside a list be shared. Tensors
    with a graph are detached. What methods keep in global variables is out of reach.

    Raises:
        TypeError: the module holds TorchScript, whose flags cannot be separated from the run's.
        RuntimeError: an object cannot be rebuilt from its own state.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise TypeError(
                f"{name or type(module).__name__} is TorchScript, which can't be copied apart "
                "from the run: measure the module it was compiled from"
            )
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, share, _hooks(module))
    try:
        pickler.dump(module)
        buffer.seek(0)
        copied = _Unpickler(buffer, pickler.table).load()
    except Exception as error:
        raise RuntimeError(
            f"cannot copy {type(module).__name__} to measure it apart from the run: {error}"
        ) from error
    for part in copied.modules():
        # Module.compile leaves a compiled call that is bound to the original module
        part.__dict__.pop("_compiled_call_impl", None)
    return copied, sorted(pickler.uncopied)


class _Pickler(pickle.Pickler):
    """Pickle with a table of objects beside it, for what is shared or copied by hand."""

    def __init__(self, file: io.BytesIO, share: Iterable[object], hooks: set[int]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._hooks = hooks
        self.table: list[object] = []
        self.uncopied: set[str] = set()
        self._index: dict[int, int] = {}
        self._originals: list[object] = []  # keeps ids unique while we pickle
        self._shared = {id(item) for item in share}

    def persistent_id(self, obj: object) -> int | None:
        """Return the place in the table of what is not pickled."""
        kind = type(obj)
        if kind in _ATOMS:
            return None
        key = id(obj)
        if key in self._index:
            return self._index[key]
        if key in self._hooks:
            return None
        if key in self._shared or isinstance(obj, _BY_REFERENCE):
            return self._keep(obj, obj)
        if isinstance(obj, nn.Parameter):
            return self._keep(obj, _same_memory(obj))
        if isinstance(obj, Tensor):
            return self._keep(obj, _copied_tensor(obj))
        if isinstance(obj, torch.Generator):
            generator = torch.Generator(obj.device)
            generator.set_state(obj.get_state())
            return self._keep(obj, generator)
        if isinstance(obj, nn.Module):
            return None
        try:
            obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        except Exception:  # its class says that it can't be copied, in one of many ways
            self.uncopied.add(f"{kind.__module__}.{kind.__qualname__}")
            return self._keep(obj, obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Copy hooks with their closures, and modules that refuse to be pickled by attributes."""
        if isinstance(obj, types.FunctionType):
            # reached for hooks only: the others are in the table
            template = _Template(obj)
            self._keep(template, template)
            cells = [cell.cell_contents for cell in obj.__closure__ or ()]
            return template, (), (cells, _collections(obj)), None, None, _furnish
        if isinstance(obj, nn.Module):
            try:
                obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            except Exception:
                return __newobj__, (type(obj),), obj.__dict__
        return NotImplemented

    def _keep(self, original: object, stored: object) -> int:
        self._index[id(original)] = len(self.table)
        self._originals.append(original)
        self.table.append(stored)
        return len(self.table) - 1


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, table: list[object]) -> None:
        super().__init__(file)
        self._table = table

    def persistent_load(self, pid: Any) -> Any:
        return self._table[pid]


class _Template:
    """Makes a function like another, with globals and a closure of its own, still empty."""

    def __init__(self, function: types.FunctionType) -> None:
        self.function = function

    def __call__(self) -> types.FunctionType:
        like = self.function
        cells = tuple(types.CellType() for _ in like.__closure__ or ())
        names = dict(like.__globals__)
        made = types.FunctionType(like.__code__, names, like.__name__, like.__defaults__, cells)
        made.__kwdefaults__ = like.__kwdefaults__
        made.__dict__.update(like.__dict__)
        return made


def _furnish(function: types.FunctionType, state: tuple[list[object], dict[str, object]]) -> None:
    contents, reached = state
    function.__globals__.update(reached)
    for cell, content in zip(function.__closure__ or (), contents, strict=True):
        cell.cell_contents = content


def _collections(function: types.FunctionType) -> dict[str, object]:
    """Return the global collections and tensors a function names: what it may gather results in."""
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in named.items() if isinstance(value, _COLLECTIONS)}


def _hooks(module: nn.Module) -> set[int]:
    """Return the ids of the forward hooks that are functions, their cells all filled."""
    found: set[int] = set()
    for part in module.modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            if isinstance(hook, types.FunctionType):
                try:
                    [cell.cell_contents for cell in hook.__closure__ or ()]
                except ValueError:
                    continue
                found.add(id(hook))
    return found


def _same_memory(parameter: nn.Parameter) -> nn.Parameter:
    """Return a leaf of its own over a parameter's memory, and over its version counter."""
    if type(parameter) is not nn.Parameter:
        return parameter  # a kind of its own: lazy, sharded, quantised
    with torch.inference_mode(False):
        return nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)


def _copied_tensor(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        copied = tensor.detach().clone()
    return copied.requires_grad_(tensor.requires_grad and tensor.is_leaf)
