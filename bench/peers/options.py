"""What the comparisons with peers are told on the command line, all of them alike."""

import argparse
from collections.abc import Mapping

from bench.peers.catalogue import Peer, list_engines
from bench.peers.measuring import MAX_CELL_S


def add_engines(parser: argparse.ArgumentParser, peers: Mapping[str, Peer]) -> None:
    """Which rows, and for how long."""
    parser.add_argument(
        "--engines", nargs="+", choices=list_engines(peers), default=(), help="of these peers; default: all"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=MAX_CELL_S,
        help="of a workload's rounds, of which there are three at least (default: %(default)g)",
    )
