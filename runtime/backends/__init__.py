"""What a graph is rewritten for and run by. One folder for each target, with its own passes and its kernels, one file
per op with the stem of its file in `runtime.ops`; `backend.py` is what the rest of the runtime knows of them.

`plain/` is torch itself and runs on every device; `cpu/` has compiled kernels.
"""
