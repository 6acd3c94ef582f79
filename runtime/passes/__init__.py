"""Rewrites of a captured graph, one per file. `pipeline` is the ordered list."""
