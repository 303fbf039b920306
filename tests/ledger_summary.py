#!/usr/bin/env python3
"""The ledger of `make torture` as docs/RELIABILITY.md shows it: how often each kind of fault struck, and how long
service was away after it was over.

    tests/ledger_summary.py target/ledger.jsonl
"""

import collections
import json
import re
import statistics
import sys

ENGINES = ["fjall", "sled"]


def natural(kind):
    """`5 s` before `15 s`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", kind)]


def main():
    with open(sys.argv[1], encoding="utf-8") as ledger:
        runs = [json.loads(line) for line in ledger]
    back = collections.defaultdict(lambda: {engine: [] for engine in ENGINES})
    for run in runs:
        for kind, times in run["back_ms"].items():
            back[kind][run["engine"]] += times
    verdicts = collections.Counter(run["verdict"] for run in runs)
    commits = sorted({run["commit"] for run in runs})
    print(
        f"{len(runs)} runs of commit {', '.join(commits)}:"
        f" {sum(run['operations'] or 0 for run in runs)} operations checked,"
        f" {sum(run['unknown'] or 0 for run in runs)} of them of unknown outcome;"
        f" links slow all through {sum(run['links_are_poor'] for run in runs)} of the runs;"
        f" verdicts: {', '.join(f'{count} {verdict}' for verdict, count in verdicts.items())}.\n"
    )
    print(f"| fault | {' | '.join(ENGINES)} | service back after: median | worst |")
    print("|---|---|---|---|---|")
    for kind, of in sorted(back.items(), key=lambda item: natural(item[0])):
        times = [time for engine in ENGINES for time in of[engine]]
        counts = " | ".join(str(len(of[engine])) for engine in ENGINES)
        print(f"| {kind} | {counts} | {statistics.median(times) / 1000:.1f} s | {max(times) / 1000:.1f} s |")


main()
