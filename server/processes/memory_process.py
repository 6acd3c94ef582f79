"""Prints how many bytes of each CUDA device are free, one a line: `... memory_process INDEX...`. Run by the supervisor
before its engines."""

import sys
from collections.abc import Sequence

import torch

from runtime.config import UnusableConfig
from runtime.device import check_device
from server.processes.startup import CANNOT_START


def read_free_bytes(indices: Sequence[int]) -> list[int]:
    """Raises UnusableConfig where one of the devices is not there."""
    for index in indices:
        check_device(torch.device("cuda", index))
    return [torch.cuda.mem_get_info(index)[0] for index in indices]


def main() -> None:
    try:
        print(*read_free_bytes([int(index) for index in sys.argv[1:]]), sep="\n")
    except UnusableConfig as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()
