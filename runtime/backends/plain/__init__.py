"""Kernels in plain torch through its `out=` forms. Work is cut into row blocks where torch has no such form, so what a
kernel allocates for itself stays small, and in cache."""
