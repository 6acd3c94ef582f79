"""A module whose weights stay in their files: each is read when it is asked for, and what it took is given back.

So a model is captured before anything of it is read, and packed weight by weight: what compiling takes at most is the
result and one layer, not all weights in fp32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode


@dataclass(frozen=True, slots=True, eq=False)
class LazyWeight:
    """`like`: its shape and type, on the meta device. `read` gives its values, anew each time, on the CPU."""

    like: Tensor
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, value: Tensor) -> "LazyWeight":
        """One that is in memory already."""
        return cls(value.to("meta"), lambda: value)

    def then(self, change: Callable[[Tensor], Tensor]) -> "LazyWeight":
        """What `change` makes of it, once it is read."""
        return LazyWeight(change(self.like), lambda: change(self.read()))


def concatenate(weights: list[LazyWeight]) -> LazyWeight:
    """Their rows below each other."""
    like = torch.cat([weight.like for weight in weights])

    def read() -> Tensor:
        rows = torch.empty_like(like, device="cpu")
        start = 0
        for weight in weights:
            end = start + len(weight.like)
            rows[start:end] = weight.read()
            start = end
        return rows

    return LazyWeight(like, read)


@dataclass(frozen=True, slots=True, eq=False)
class LazyModule:
    """`weights` are those of the module's parameters that are on the meta device, by their names. `encoder`: what
    encodes the sources of a decoder that reads such; its module may share parameters with this one."""

    module: nn.Module
    weights: Mapping[str, LazyWeight]
    encoder: "LazyModule | None" = None

    def fill(self) -> nn.Module:
        """The module with all of its weights."""
        values = {name: weight.read() for name, weight in self.weights.items()}
        self.module.load_state_dict(values, assign=True, strict=False)
        return self.module

    def prepare(self, device: torch.device) -> nn.Module:
        """The module as an exporter takes it: on `device`, by the shapes and types of its weights. It cannot run."""
        with FakeTensorMode():
            for name, weight in self.weights.items():
                owner, _, leaf = name.rpartition(".")
                fake = torch.empty(weight.like.shape, dtype=weight.like.dtype, device=device)
                setattr(self.module.get_submodule(owner), leaf, nn.Parameter(fake, requires_grad=False))
        for module in self.module.modules():
            for value in (*module._parameters.values(), *module._buffers.values()):
                if value is not None and value.device != device:
                    value.data = value.to(device)
        return self.module.eval().requires_grad_(False)


def as_lazy(module: nn.Module | LazyModule) -> LazyModule:
    """A module that has its weights has none to read."""
    return module if isinstance(module, LazyModule) else LazyModule(module, {})


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A small generator that guesses for a large one, `num_tokens` at a time."""

    model: nn.Module | LazyModule
    num_tokens: int
