"""INT8: which linears, from which statistics, how accurate. The op and its kernels lie elsewhere."""
