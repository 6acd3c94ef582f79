"""Implementations that write into memory they are given. One file per op, with the stem of its file in `runtime.ops`.

`eager/` is plain torch and runs on every device; `cpu/` holds what only a CPU has.
"""
