#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Write philox.txt: known answers of Philox4x32-10, for the test of base/philox.

Written from the paper (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC'11, section 3.3
and table 2), not from our C code, and refused unless it reproduces the three answers its authors published. Python's
integers have no width, so that every reduction modulo 2^32 is written out. Standard library only.

usage: python3 make_philox.py [OUT]        (default: philox.txt beside this script)
"""
import os
import sys

MASK = 0xFFFFFFFF
MUL = (0xD2511F53, 0xCD9E8D57)  # the two round multipliers
WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: what each round adds to the key

PUBLISHED = [  # counter, key, output
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def philox(counter, key, rounds=10):
    x, k = list(counter), list(key)
    for r in range(rounds):
        if r:  # the key is bumped between rounds, not before the first
            k = [(k[i] + WEYL[i]) & MASK for i in range(2)]
        left, right = MUL[0] * x[0], MUL[1] * x[2]
        x = [(right >> 32) ^ x[1] ^ k[0], right & MASK, (left >> 32) ^ x[3] ^ k[1], left & MASK]
    return tuple(x)


def cases():
    """The published ones, then counters and keys with single bits set at both ends of each word, then a walk."""
    for counter, key, _ in PUBLISHED:
        yield counter, key
    for word in range(4):
        for bit in (0, 31):
            yield tuple(1 << bit if i == word else 0 for i in range(4)), (0, 0)
    for word in range(2):
        for bit in (0, 31):
            yield (0, 0, 0, 0), tuple(1 << bit if i == word else 0 for i in range(2))
    x = (1, 2, 3, 4)
    for _ in range(17):  # outputs fed back as counter and key: every bit gets used
        key = (x[1] ^ x[2], x[0] ^ x[3])
        yield x, key
        x = philox(x, key)


def main():
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "philox.txt")
    for counter, key, expected in PUBLISHED:
        if philox(counter, key) != expected:
            sys.exit("make_philox: a published answer is not reproduced")
    with open(out, "w", encoding="ascii") as f:
        f.write("# Philox4x32-10. A line: counter[0..3] key[0..1] output[0..3], 32-bit words in hexadecimal.\n")
        for counter, key in cases():
            f.write(" ".join("%08x" % w for w in (*counter, *key, *philox(counter, key))) + "\n")


if __name__ == "__main__":
    main()
