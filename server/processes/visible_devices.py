"""Which CUDA device a process sees: its own and no other, which is then the first to it, whatever its number here.

So nothing in the process has to say where it computes, and what was compiled on one device is opened on the next. What
this process is told (`CUDA_VISIBLE_DEVICES`, by a container or a scheduler) its children are told a part of.
"""

from collections.abc import Mapping

from runtime.config import EngineConfig

VARIABLE = "CUDA_VISIBLE_DEVICES"


def show_device(engine: EngineConfig, replica: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for the process of a replica; none where it computes on the CPU. `environment`: this process's."""
    if engine.device == "cpu":
        return {}
    (index,) = engine.keep_device(replica).devices
    return {VARIABLE: name_device(index, environment.get(VARIABLE))}


def name_device(index: int, visible: str | None) -> str:
    """As the driver's library counts devices, or as those have been named that are to be seen: `2`, `GPU-8932f937`.
    Behind these there is none, whatever the machine has."""
    if visible is None:
        return str(index)
    names = visible.split(",")
    return names[index].strip() if index < len(names) else ""
