"""`python -m sprig.backend.puppeteer parity WEIGHTS.pth TENSORS.npz [--dump OUT.npz]`: is our network theirs?

Prints the largest error of every array, and as its last line the same as JSON. Exit status 2, with one sentence, for
files that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from ..errors import SprigError
from . import parity


def main(arguments=None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m sprig.backend.puppeteer", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("parity", help="compare our network's outputs with the original's")
    command.add_argument("weights", metavar="WEIGHTS.pth")
    command.add_argument("tensors", metavar="TENSORS.npz")
    command.add_argument("--dump", metavar="OUT.npz", help="write what our network computed")
    options = parser.parse_args(arguments)
    try:
        computed, given = parity.outputs(options.weights, options.tensors)
        if options.dump:
            try:
                with open(options.dump, "wb") as file:
                    np.savez(file, **computed)
            except OSError as error:
                raise SprigError(
                    f"{options.dump} cannot be written ({error.strerror}); choose another place."
                ) from error
    except SprigError as error:
        print(error, file=sys.stderr)
        return 2
    found = parity.errors(computed, given)
    for name, error in found.items():
        print(f"{name:15} {error:.2e}")
    print(json.dumps({"max_abs_error": max(found.values(), default=None), "per_array": found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
