"""Measure without touching the run: a shadow of the model, and the generators put back."""

from __future__ import annotations

import collections
import io
import pickle
import queue
import random
import sys
import threading
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copyreg import __newobj__  # type: ignore[attr-defined]
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T", bound=nn.Module)

# what pickle stores by name: the same object serves the shadow
_BY_REFERENCE = (
    type,
    types.ModuleType,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
)
# a copy without what works at the other end would wait for it forever
_WORKERS = (threading.Thread, queue.Queue)
_ATOMS = (
    *(int, float, complex, str, bytes, bool, type(None), pickle.PickleBuffer),
    *(list, dict, tuple, set, frozenset),
)
_WEAK = (weakref.ref, weakref.ProxyType, weakref.CallableProxyType)
_HELD = (list, dict, set)
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


@contextmanager
def preserved_weights(module: nn.Module) -> Iterator[list[str]]:
    """Put parameters back: values, memory, `requires_grad`, `.grad` (which is None inside).

    A shadow shares them, and a forward pass may write to weights (`nn.Embedding(max_norm=)`), a
    training step too (target networks, clipped weights). Versions don't tell of writes through
    `.data`, so values are kept and compared: one copy of the weights while it lasts.

    Yields:
        A list that at the end names the parameters that had been written to.
    """
    kept = [
        (name, p, p.data, p.detach().clone(), p.requires_grad, p.grad)
        for name, p in module.named_parameters()
        if not isinstance(p, nn.parameter.UninitializedParameter)
    ]
    for _, parameter, *_ in kept:
        parameter.grad = None
    written: list[str] = []
    try:
        yield written
    finally:
        for name, parameter, memory, value, flag, gradient in kept:
            if parameter.data_ptr() != memory.data_ptr() or parameter.requires_grad != flag:
                written.append(name)
                parameter.data = memory
                parameter.requires_grad_(flag)
            if not _equal(memory, value):
                written.append(name)
                memory.copy_(value)
            parameter.grad = gradient
        written[:] = dict.fromkeys(written)


@contextmanager
def preserved_attributes(objects: Iterable[object]) -> Iterator[None]:
    """Put objects' attributes back, and what their own lists, dictionaries and sets hold."""
    kept = [(vars(obj), _Held(vars(obj))) for obj in objects]
    inner = [
        (value, _Held(value))
        for attributes, _ in kept
        for value in attributes.values()
        if type(value) in _HELD
    ]
    try:
        yield
    finally:
        for container, held in (*inner, *kept):
            held.put_back(container)


class _Held:
    """The items of a list, dictionary or set, to be put back into it."""

    def __init__(self, container: Any) -> None:
        self.items = container.copy()

    def put_back(self, container: Any) -> None:
        if type(container) is list:
            container[:] = self.items
        else:
            container.clear()
            container.update(self.items)


def _equal(one: Tensor, other: Tensor) -> bool:
    if one.is_sparse or hasattr(one, "to_local") or one.is_meta:
        return True  # such kinds can't be compared; a forward pass doesn't write to them
    if torch.equal(one, other):
        return True
    same = (one == other) | (one.isnan() & other.isnan())
    return bool(same.all())


def shadow(module: T, share: Iterable[object] = ()) -> tuple[T, list[str]]:
    """Return a deep copy of `module` that shares its parameters, and what else had to be shared.

    Everything is copied that a forward pass or a training step could change: buffers, tensors,
    lists, counters, metrics, generators, flags, what local functions have in their closures, and
    the collections that forward hooks reach. Parameters are the same objects: the shadow follows
    the training, and whatever leads to a parameter, a loss written with the original module too,
    is differentiated in the run's own weights. Classes, other functions and the objects in `share`
    are the same. So is what cannot be copied (locks, threads, queues, open files, process groups,
    Python's generators): the second value names the types. What torch.compile made of a function
    is replaced by that function.

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
    pickler = _Pickler(buffer, share, module)
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

    def __init__(self, file: io.BytesIO, share: Iterable[object], module: nn.Module) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._hooks = _hooks(module)
        self._parts = {id(part) for part in module.modules()}
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
        if kind in _WEAK:  # first: whatever is asked of a dead proxy raises
            target = _target(obj)
            if id(target) in self._parts:
                return None
            shared = target is None or id(target) in self._shared
            return self._keep(obj, obj) if shared else self._give_up(obj)
        if key in self._shared or isinstance(obj, _BY_REFERENCE):
            return self._keep(obj, obj)
        if isinstance(obj, types.FunctionType):
            return None if key in self._hooks or _is_local(obj) else self._keep(obj, obj)
        if isinstance(obj, types.BuiltinFunctionType):
            owner = getattr(obj, "__self__", None)
            bound = not (owner is None or isinstance(owner, types.ModuleType | type))
            return None if bound else self._keep(obj, obj)
        if isinstance(obj, nn.Parameter):
            return self._keep(obj, obj)
        if isinstance(obj, _WORKERS):
            return self._give_up(obj)
        if isinstance(obj, Tensor):
            return self._keep(obj, _copied_tensor(obj))
        if isinstance(obj, torch.Generator):
            generator = torch.Generator(obj.device)
            generator.set_state(obj.get_state())
            return self._keep(obj, generator)
        if isinstance(obj, nn.Module):
            return None
        try:
            reduced = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        except Exception:  # its class says that it can't be copied, in one of many ways
            return self._give_up(obj)
        if isinstance(reduced, str):  # the name of a global, which a cache of a method is not
            return self._keep(obj, obj) if _is_global(obj, reduced) else self._give_up(obj)
        return None

    def reducer_override(self, obj: Any) -> Any:
        """Copy functions with their closures, and modules that refuse to be pickled."""
        if isinstance(obj, types.FunctionType):
            # only those that have something of their own: the others are in the table
            compiled_from = getattr(obj, "_torchdynamo_orig_callable", None)
            if compiled_from is not None:
                return _same, (compiled_from,)
            template = _Template(obj)
            self._keep(template, template)
            reached = _collections(obj) if id(obj) in self._hooks else {}
            return template, (), (_contents(obj), reached), None, None, _furnish
        if isinstance(obj, types.MethodType):
            # not by name, as pickle would: the instance may have no attribute of that name
            return types.MethodType, (obj.__func__, obj.__self__)
        if type(obj) in _WEAK:
            return (weakref.ref if type(obj) is weakref.ref else weakref.proxy), (_target(obj),)
        if isinstance(obj, nn.Module):
            try:
                obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            except Exception:
                return __newobj__, (type(obj),), obj.__dict__
        return NotImplemented

    def _give_up(self, obj: object) -> int:
        kind = type(obj)
        self.uncopied.add(f"{kind.__module__}.{kind.__qualname__}")
        return self._keep(obj, obj)

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
        return types.FunctionType(like.__code__, names, like.__name__, None, cells)


def _contents(function: types.FunctionType) -> tuple[Any, ...]:
    """Return what a function holds: cells (by place, some may be empty), defaults, attributes."""
    cells = {}
    for place, cell in enumerate(function.__closure__ or ()):
        with suppress(ValueError):
            cells[place] = cell.cell_contents
    return cells, function.__defaults__, function.__kwdefaults__, function.__dict__


def _furnish(
    function: types.FunctionType, state: tuple[tuple[Any, ...], dict[str, object]]
) -> None:
    (cells, defaults, function.__kwdefaults__, attributes), reached = state
    function.__defaults__ = defaults
    function.__dict__.update(attributes)
    function.__globals__.update(reached)
    for place, content in cells.items():
        (function.__closure__ or ())[place].cell_contents = content


def _same(obj: Any) -> Any:
    return obj


def _is_global(obj: object, name: str) -> bool:
    found: object = sys.modules.get(getattr(obj, "__module__", None) or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def _is_local(function: types.FunctionType) -> bool:
    """Return whether a function holds objects of its own, as one made inside another does."""
    if hasattr(function, "_torchdynamo_orig_callable"):
        return True
    held = function.__closure__ or function.__defaults__ or function.__kwdefaults__
    return bool(held) and not _is_global(function, function.__qualname__)


def _target(weak: Any) -> object:
    if type(weak) is weakref.ref:
        return weak()
    try:
        # a proxy passes everything on but its type: a bound method gives away whose it is
        return weak.__reduce_ex__.__self__
    except ReferenceError:  # it is gone
        return None


def _collections(function: types.FunctionType) -> dict[str, object]:
    """Return the global collections and tensors a function names: what it may gather results in."""
    named = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    return {name: value for name, value in named.items() if isinstance(value, _COLLECTIONS)}


def _hooks(module: nn.Module) -> set[int]:
    """Return the ids of the forward hooks that are functions."""
    return {
        id(hook)
        for part in module.modules()
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
        if isinstance(hook, types.FunctionType)
    }


def _copied_tensor(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        copied = tensor.detach().clone()
    return copied.requires_grad_(tensor.requires_grad and tensor.is_leaf)
