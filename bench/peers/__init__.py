"""Padless against its peers, each in a virtual environment and a process of its own: `python -m bench.peers`."""
