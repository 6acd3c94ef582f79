"""The structs that compiled kernels take, laid out after the ops' schemas.

Everything in a struct is a word of 8 bytes: an address, a whole number or a double. A tensor is TENSOR_WORDS of them,
all 0 where it is not given. Arguments that are types have no field: the type of the result is that of `out`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from runtime.ops.spec import Op, Words

MAX_DIMS = 5
DATA, KIND, NUM_DIMS, SIZES, STRIDES = 0, 1, 2, 3, 3 + MAX_DIMS
"""Where a tensor's words stand."""
TENSOR_WORDS = 3 + 2 * MAX_DIMS
KINDS = {
    torch.float32: "FP32",
    torch.bfloat16: "BF16",
    torch.float16: "FP16",
    torch.int8: "INT8",
    torch.uint8: "QUANTISED",
    torch.int32: "INT32",
    torch.int64: "INT64",
}
"""Types of tensors, by the names that kernels have for them. uint8: `quantized_rows`, or a packed weight."""
KIND_NUMBERS = {dtype: number for number, dtype in enumerate(KINDS)}

WIDTHS = {"tensor": TENSOR_WORDS, "tensors": 2, "int": 1, "float": 1}
"""Words of a field, by its kind."""
FIELD_KINDS = {
    "Tensor": "tensor",
    "Optional[Tensor]": "tensor",
    "List[Tensor]": "tensors",
    "int": "int",
    "bool": "int",
    "str": "int",
    "float": "float",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One argument of an op. `start`: its first word in the struct."""

    name: str
    kind: str
    """tensor, tensors (the address of some, and their count), int or float."""
    start: int
    words: Words | None = None
    """Of an int that stands for a word."""


@dataclass(frozen=True, slots=True)
class Struct:
    """The arguments of one op in their order, then `out`."""

    op: Op
    fields: tuple[Field, ...]

    @property
    def name(self) -> str:
        """As in C++: that of add_norm is AddNorm."""
        return self.op.name.title().replace("_", "")

    @property
    def num_words(self) -> int:
        last = self.fields[-1]
        return last.start + WIDTHS[last.kind]


def lay_struct(op: Op) -> Struct:
    """Raises KeyError where an argument has a type that no field has."""
    fields: list[Field] = []
    start = 0
    for argument in op.target._schema.arguments:
        if "ScalarType" in str(argument.real_type):
            continue
        kind = FIELD_KINDS[str(argument.type)]
        fields.append(Field(argument.name, kind, start, op.words.get(argument.name)))
        start += WIDTHS[kind]
    return Struct(op, (*fields, Field("out", "tensor", start)))


def list_places(struct: Struct) -> list[int]:
    """The places of the fields, and the size of all, in bytes: what a compiled library says of them too."""
    return [8 * field.start for field in struct.fields] + [8 * struct.num_words]


TENSOR = f"""struct Tensor {{
    void* data;
    Kind kind;
    int64_t num_dims, sizes[{MAX_DIMS}], strides[{MAX_DIMS}];
}};
"""


def declare_structs(structs: Iterable[Struct]) -> str:
    """A header of C++."""
    structs = list(structs)
    words = {each.name: each.values for struct in structs for each in struct.op.words.values()}
    enums = {"Kind": tuple(KINDS.values())} | words
    return "\n".join(
        [
            "#pragma once\n#include <cstdint>\n\nnamespace padless {\n",
            *(declare_enum(name, values) for name, values in enums.items()),
            TENSOR,
            *map(declare_struct, structs),
            "}  // namespace padless\n",
        ]
    )


def declare_enum(name: str, values: Iterable[str]) -> str:
    return f"enum {name} : int64_t {{ {', '.join(value.upper() for value in values)} }};\n"


def declare_struct(struct: Struct) -> str:
    return "\n".join([f"struct {struct.name} {{", *(f"    {declare_field(field)}" for field in struct.fields), "};\n"])


def declare_field(field: Field) -> str:
    if field.kind == "tensors":
        return f"const Tensor* {field.name}; int64_t num_{field.name};"
    if field.words is not None:
        return f"{field.words.name} {field.name};"
    return f"{ {'tensor': 'Tensor', 'int': 'int64_t', 'float': 'double'}[field.kind] } {field.name};"


def export_places(structs: Iterable[Struct]) -> str:
    """A source of C++: for each op `padless_places_<op>`, what `list_places` has, by the compiler's account."""
    lines = ['#include <cstddef>\n\n#include "kernel.h"\n']
    for each in structs:
        places = [f"offsetof(padless::{each.name}, {field.name})" for field in each.fields]
        table = ", ".join([*places, f"sizeof(padless::{each.name})"])
        lines.append(f'extern "C" const int64_t padless_places_{each.op.name}[] = {{{table}}};')
    return "\n".join([*lines, ""])
