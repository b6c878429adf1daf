"""Writes and reads a disk through vectors of buffers whose addresses and lengths are multiples of its block size and of nothing
else: unaligned.py DISK"""

import mmap
import os
import random
import sys

BLOCK = 512
SPAN = 8 << 20


def vector(memory, rng, total):
    """Views into `memory` of `total` bytes altogether, none of which touch."""
    views, at, left = [], rng.randrange(1, 8) * BLOCK, total
    while left:
        size = min(left, rng.randrange(1, 24) * BLOCK)
        views.append(memoryview(memory)[at : at + size])
        at += size + rng.randrange(1, 9) * BLOCK
        left -= size
    return views


def main(path):
    rng = random.Random(1)
    disk = os.open(path, os.O_RDWR | os.O_DIRECT)
    out, back = mmap.mmap(-1, SPAN), mmap.mmap(-1, SPAN)
    for number in range(60):
        total = rng.randrange(1, 512) * BLOCK
        offset = rng.randrange(0, 1 << 14) * BLOCK
        written = vector(out, rng, total)
        for view in written:
            view[:] = rng.randbytes(len(view))
        if os.pwritev(disk, written, offset) != total:
            sys.exit(f"write {number} was short")
        read = vector(back, rng, total)
        if os.preadv(disk, read, offset) != total:
            sys.exit(f"read {number} was short")
        if b"".join(written) != b"".join(read):
            sys.exit(f"transfer {number}: {total} bytes at {offset} differ")


main(sys.argv[1])
