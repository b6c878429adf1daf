#!/usr/bin/env python3
"""Drives a running daemon as the clients do that are written for SPDK.

Each check prints `ok NAME`, `not ok NAME: why` or `skip NAME: why`. The exit status is 1 if any failed.
"""

import argparse
import importlib
import os
import re
import sys
import traceback

# Those of a module that cannot be imported, for want of a package, are skipped.
MODULES = ["spdk_client", "sequences", "state"]


class Skip(Exception):
    """What a check that cannot run here raises."""


def run(name, check):
    """One check to its end; whether it failed."""
    try:
        check()
    except Exception as error:  # pylint: disable=broad-except
        if type(error).__name__ == "Skip":
            print(f"skip {name}: {error}", flush=True)
            return False
        why = " ".join(str(error).split()) or "see above"
        traceback.print_exc()
        print(f"not ok {name}: {type(error).__name__}: {why}", flush=True)
        return True
    print(f"ok {name}", flush=True)
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the tidegate binary")
    parser.add_argument("--only", default="", help="a regular expression of the names of checks")
    arguments = parser.parse_args()
    binary, failed = os.path.abspath(arguments.binary), 0
    for module in MODULES:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError as error:
            print(f"skip {module}: there is no Python package {error.name}", flush=True)
            continue
        for name, check in found.checks(binary):
            if re.search(arguments.only, name):
                failed += run(name, check)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
