"""CUDA devices: kernels in Triton, one file per op with the stem of its file in `runtime.ops`.

A file has a kernel, its tiles as data, and a launcher that is called as those in `backends/plain` are. Launchers read
nothing from the device: sizes are those of tensors and Python's own numbers, so that no step waits, and each can be
captured in a CUDA graph. What differs from batch to batch is not specialised on, or Triton would compile while texts
wait. Only `table.py` and the kernels import Triton; `library.py` loads them when a device is used.
"""
