"""Prints how many bytes of the CUDA device are free: `... memory_process`. Run by the supervisor before its engines."""

import sys

import torch

from runtime.config import UnusableConfig
from runtime.device import check_device
from server.processes.startup import CANNOT_START


def main() -> None:
    device = torch.device("cuda")
    try:
        check_device(device)
    except UnusableConfig as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_START)
    print(torch.cuda.mem_get_info(device)[0])


if __name__ == "__main__":
    main()
