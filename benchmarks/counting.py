"""What a sampler asks of the machine, counted and not timed: operations, bytes, allocations, waits for the device."""

import weakref

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_kts.kpe.sums import BLOCK

CACHED = 4 * BLOCK  # bytes: temporaries of this size are written and read again without leaving the cache

WAITS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero", "equal", "allclose"}


def _is_view(func):
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _size(tensor):
    return tensor.numel() * tensor.element_size()


class Traffic(TorchDispatchMode):
    """Counts what is done while it is entered.

    Attributes:
        calls: names of the operations that are no views.
        moved: bytes read and written by them, of tensors whose memory does not fit the cache.
        allocated: sizes of the new tensors that do not fit the cache.
        peak: most bytes that new tensors of any size took at a time.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.moved, self.allocated, self.peak, self._new = [], 0, [], 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if _is_view(func):
            return result
        self.calls.append(func.overloadpacket.__name__)
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
        self.moved += sum(_size(tensor) for tensor in given + made if tensor.untyped_storage().nbytes() > CACHED)
        new = [tensor for tensor in made if not any(tensor is other for other in given)]
        self.allocated += [_size(tensor) for tensor in new if _size(tensor) > CACHED]
        self._new = [ref for ref in self._new + [weakref.ref(tensor) for tensor in new] if ref() is not None]
        self.peak = max(self.peak, sum(_size(tensor) for ref in self._new if (tensor := ref()) is not None))
        return result


class _WaitsInside(TorchDispatchMode):
    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"):
            self.waits.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    """Names, in ``seen``, of what would wait for the device if the tensors lay there: reading their numbers on the host, by a
    method of the tensor or from inside an operation."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self._inside = _WaitsInside(self.seen)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in WAITS:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))

    def __enter__(self):
        self._inside.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._inside.__exit__(*error)
