"""How a kernel reaches many arrays through one number.

A kernel is called with the address of a `PointerTable`. Passing the arrays themselves would cost more than most masks
do: each is unboxed at the call, and kernels would copy seven words of each from one to the next. In a kernel,
`tables(memory).edge_start` is an array; each access loads address and length from the table, and LLVM does that once
where it can.
"""

from __future__ import annotations

import ctypes
from typing import Any, get_type_hints

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import PrimitiveModel
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, register_model
from numba.np import arrayobj

_WORD = ir.IntType(64)
_NOTHING = ctypes.c_char * 0
_ELEMENT = {
    npt.NDArray[np.int32]: types.int32,
    npt.NDArray[np.int64]: types.int64,
    npt.NDArray[np.uint8]: types.uint8,
}


class PointerTable:
    """Addresses and lengths of arrays, which it keeps alive. A group is a named tuple of one-dimensional arrays."""

    def __init__(self, num_slots: int) -> None:
        self._words = np.zeros(2 * num_slots, np.int64)
        self._kept: dict[int, Any] = {}
        self.address = int(self._words.ctypes.data)

    def put(self, group: Any, first_slot: int = 0) -> None:
        """Put a group at `first_slot`, in the place of one that was there."""
        self._kept[first_slot] = group
        words = [word for array in group for word in (_address(array), len(array))]
        self._words[2 * first_slot : 2 * first_slot + len(words)] = words

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for group in self._kept.values() for array in group)


def _address(array: npt.NDArray[Any]) -> int:
    # Cheaper than `array.ctypes.data`, and a grammar has eighty arrays.
    return ctypes.addressof(_NOTHING.from_buffer(array))


class _Group(types.Type):
    """The type, in kernels, of a group of arrays in a pointer table: its value is the table's address."""

    def __init__(self, layout: Any, first_slot: int) -> None:
        super().__init__(f"{layout.__name__}@{first_slot}")
        self.fields = {name: types.Array(_ELEMENT[hint], 1, "C") for name, hint in get_type_hints(layout).items()}
        self.slots = {name: first_slot + index for index, name in enumerate(self.fields)}


@register_model(_Group)
class _GroupModel(PrimitiveModel):
    def __init__(self, manager: Any, group: _Group) -> None:
        super().__init__(manager, group, _WORD)


@infer_getattr
class _GroupAttributes(AttributeTemplate):
    key = _Group

    def generic_resolve(self, group: _Group, name: str) -> Any:
        return group.fields.get(name)


@lower_getattr_generic(_Group)
def _load_array(context: Any, builder: Any, group: _Group, address: Any, name: str) -> Any:
    table = builder.inttoptr(address, _WORD.as_pointer())

    def load(slot: int) -> Any:
        value = builder.load(builder.gep(table, [ir.Constant(_WORD, slot)]))
        # Tables change between calls of kernels only.
        value.set_metadata("invariant.load", builder.module.add_metadata([]))
        return value

    slot = 2 * group.slots[name]
    return _array(context, builder, group.fields[name], load(slot), load(slot + 1))


def _array(context: Any, builder: Any, field: Any, address: Any, length: Any) -> Any:
    array = arrayobj.make_array(field)(context, builder)
    item_size = ir.Constant(_WORD, context.get_abi_sizeof(context.get_data_type(field.dtype)))
    arrayobj.populate_array(
        array,
        data=builder.inttoptr(address, array.data.type),
        shape=cgutils.pack_array(builder, [length]),
        strides=cgutils.pack_array(builder, [item_size]),
        itemsize=item_size,
        meminfo=None,
    )
    return array._getvalue()


def reader(layout: Any, first_slot: int = 0) -> Any:
    """Return a kernel's function: address of a pointer table -> its arrays of `layout`, which begin at `first_slot`."""
    group = _Group(layout, first_slot)

    @intrinsic
    def read(_typing_context: Any, address: Any) -> Any:
        return group(types.int64), lambda _context, _builder, _signature, arguments: arguments[0]

    return read


@intrinsic
def _row_at(_typing_context: Any, address: Any, num_words: Any) -> Any:
    field = types.Array(types.int32, 1, "C")
    return field(types.int64, types.int64), lambda context, builder, _signature, arguments: _array(
        context, builder, field, *arguments
    )


# A kernel's function: (address, num_words) -> the int32 words there.
row_at: Any = _row_at
