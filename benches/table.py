#!/usr/bin/env python3
"""Fills the table of wanted and reached figures, two processes over loopback, beside raw TCP and other libraries.

    cargo build --release --example peer
    benches/table.py --peers DIR [--only pair,fan] [--repeats 5] [--seconds 1]

DIR has the peer benchmark: run.py and its built programs (raw TCP, bare io_uring, libzmq, redis). Repeats of all rows of a case
are interleaved; a figure is the ratio of medians of one case. Prints a table (Markdown) as it fills, with the rates; writes
target/table.json. `--only growth` writes growth.json and sizes.json there instead: how rates grow with subscribers and sizes, for
plot.py. Exit code 1 if anything was lost.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).resolve().parent.parent / "target"))
OURS = {
    "inline": "--x inline --x publish",
    "inline roundrobin": "--x inline",
    "inline batch": "--x inline --x publish --x batch",
    "inline batch in place": "--x inline --x publish --x batch --x in_place",
    "inline owned": "--x inline --x publish --x owned",
    "inline poll": "--x inline --x publish --x poll",
    "inline alone": "--x inline --x publish --x alone",
    "inline spin": "--x inline --x spin",
    "inline acknowledged": "--x inline --x acknowledged",
    "sharded": "--x publish",
    "sharded roundrobin": "",
    "sharded poll": "--x publish --x poll",
    "sharded 2 shards": "--x publish --x shards=2",
    "sharded alone": "--x publish --x alone",
    "sharded acknowledged": "--x acknowledged",
}
BOTH = ["inline", "sharded"]
# (group, pattern, size, subscribers, rows, [(row, other row, wanted, how)]); how: rate or cpu; cpu wants at most, rate at least.
CASES = [
    ("pair", "push", 64, 1, ["raw", "io_uring raw", "libzmq", "inline", "inline roundrobin", "inline poll", "sharded", "sharded roundrobin", "sharded poll",
                             "inline acknowledged", "sharded acknowledged"],
     [("inline", "raw", .75, "rate"), ("inline", "libzmq", 7, "rate"), ("inline roundrobin", "inline", .67, "rate"),
      ("sharded", "raw", .40, "rate"), ("sharded", "libzmq", 4, "rate"), ("sharded roundrobin", "sharded", .67, "rate"),
      ("inline acknowledged", "inline roundrobin", .25, "rate"), ("sharded acknowledged", "sharded roundrobin", .25, "rate"),
      ("inline", "raw", 2, "cpu"), ("inline poll", "inline", .7, "rate"), ("sharded poll", "sharded", .7, "rate")]),
    ("pair", "push", 16, 1, ["raw", "inline", "inline batch", "inline batch in place"],
     [("inline", "raw", .3, "rate"), ("inline batch", "raw", .5, "rate"), ("inline batch in place", "raw", .5, "rate")]),
    ("pair", "push", 256, 1, ["raw", "inline", "inline poll"], [("inline", "raw", .75, "rate"), ("inline poll", "inline", .7, "rate")]),
    ("pair", "push", 1024, 1, ["raw", "inline", "inline poll"], [("inline", "raw", .9, "rate"), ("inline poll", "inline", .7, "rate")]),
    ("pair", "push", 16384, 1, ["raw", "io_uring raw", "inline", "inline owned", "inline poll"],
     [(row, other, wanted, "rate") for row in ("inline", "inline owned") for other, wanted in (("raw", .9), ("io_uring raw", 1))]
     + [("inline poll", "inline", .7, "rate")]),
    ("pair", "push", 1 << 20, 1, ["raw", "inline", "inline owned", "inline poll"],
     [("inline", "raw", .9, "rate"), ("inline poll", "inline", .7, "rate")]),
    *[("fan", "pub", 64, n, ["raw", "libzmq", "redis-server", *BOTH, "inline poll", "sharded poll"],
       [(row, other, wanted, "rate") for row in BOTH for other, wanted in (("raw", 3), ("libzmq", 10), ("redis-server", 5))]
       + [("inline poll", "inline", .7, "rate"), ("sharded poll", "sharded", .7, "rate")]) for n in (64, 512)],
    *[("fan", "pub", 1024, n, ["raw", *BOTH], [(row, "raw", 1, "rate") for row in BOTH]) for n in (64, 512)],
    ("work", "push", 64, 8, ["inline roundrobin", "sharded roundrobin"], []),
    ("work", "push", 64, 64, ["inline roundrobin", "sharded roundrobin"], []),
    ("alone", "pub", 64, 8, ["raw 1 msg/write", "inline alone", "sharded alone"],
     [("inline alone", "raw 1 msg/write", 1, "rate"), ("sharded alone", "raw 1 msg/write", 1, "rate")]),
]
# How rates grow: {file: (pattern, [(size, subscribers)], rows)}.
GROWTH = {
    "growth": ("pub", [(64, n) for n in (1, 8, 64, 512, 4096)], ["inline", "sharded", "sharded 2 shards"]),
    "sizes": ("push", [(16 << 2 * n, 1) for n in range(9)], ["raw", "inline", "inline poll", "sharded"]),
}
# (row, other row, wanted at most) of the round trip's median.
PING_ROWS = ["raw", "raw spin", "libzmq", "inline roundrobin", "inline spin", "sharded roundrobin"]
PING = [("inline roundrobin", "raw", 1.15), ("inline spin", "raw spin", 1.4), ("sharded roundrobin", "libzmq", 1)]


def load_run(folder):
    spec = importlib.util.spec_from_file_location("run", folder / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    for name, switches in OURS.items():
        run.ROWS[name] = (str(TARGET / "release/examples/peer"), switches.split(), "")
    return run


def measured(run, opt, pattern, size, subs, rows):
    counts = {row: run.calibrate(row, pattern, size, subs, opt) for row in rows}
    if pattern == "push" and subs > 1:
        counts = {row: count - count % subs for row, count in counts.items()}
    runs = {row: [] for row in rows}
    for _ in range(opt.repeats):
        for row in rows:
            result = run.one_run(row, pattern, size, subs, counts[row], opt) if counts[row] else None
            if result:
                runs[row].append(result)
    return {row: run.median(results) for row, results in runs.items() if results}


def skew_ms(run, row, pattern, size, subs, count):
    """From the first connection that has everything to the last, of one run more."""
    args = ["--port", run.next_port(), "--size", size, "--count", count, "--subs", subs, "--pattern", pattern, *run.ROWS[row][1]]
    ends = [run.popen(run.command(run.ROWS[row][0], role, args, cpu)) for role, cpu in (("sub", 1), ("pub", 0))]
    outs = run.finish(ends, 60)
    return json.loads(outs[0].splitlines()[-1]).get("skew_ms", 0) if outs else 0


def line(case, row, other, wanted, reached, fits):
    print(f"| {case}: {row} of {other} | {wanted} | {reached:.2f} | {'yes' if fits else 'no'} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=pathlib.Path, required=True, help="folder of the peer benchmark")
    parser.add_argument("--only", default="pair,fan,work,alone,ping", help="groups, with commas between")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1, help="of each run, about")
    opt = parser.parse_args()
    opt.pin, opt.gib = True, 3
    run = load_run(opt.peers)
    groups = opt.only.split(",")
    out = TARGET / "table.json"
    done = json.loads(out.read_text()) if out.exists() else {}
    lost = 0
    print("| case | wanted | reached | fits |\n|---|---|---|---|")
    for group, pattern, size, subs, rows, wants in CASES:
        if group not in groups:
            continue
        case = f"{group} {size} B x{subs}"
        result = measured(run, opt, pattern, size, subs, rows)
        for row, m in result.items():
            more = f"lost {m['lost']:.0f}" if m["lost"] else "lost 0"
            print(f"{case}, {row}: {m['rate']:,.0f}/s ({m['rate_min']:,.0f} to {m['rate_max']:,.0f}), CPU s per million "
                  f"{m['tx_cpu_per_m']:.3f} + {m['rx_cpu_per_m']:.3f}, {more}", file=sys.stderr)
            lost += m["lost"] if row in OURS else 0
        done[case] = result
        for row, other, wanted, how in wants:
            if row in result and other in result:
                key = "rate" if how == "rate" else "cpu_per_m"
                reached = result[row][key] / result[other][key]
                fits = reached >= wanted if how == "rate" else reached <= wanted
                line(case + (", CPU" if how == "cpu" else ""), row, other, f"{'>=' if how == 'rate' else '<='} {wanted}", reached, fits)
        pair = done.get("pair 64 B x1", {})
        if group == "work":
            for row in rows:
                if row in result and row in pair:
                    reached = result[row]["rate"] / pair[row]["rate"]
                    line(case, row, "the pair", ">= 0.3", reached, reached >= .3)
        out.write_text(json.dumps(done, indent=1))
    for name, (pattern, points, rows) in GROWTH.items() if "growth" in groups else ():
        cases = {}
        for size, subs in points:
            cases[f"{size} B x{subs}"] = result = measured(run, opt, pattern, size, subs, rows)
            for row, m in result.items():
                m["skew_ms"] = skew_ms(run, row, pattern, size, subs, int(m["delivered"] / subs)) if row in OURS and subs > 1 else 0
                print(f"{size} B x{subs}, {row}: {m['rate']:,.0f}/s, skew {m['skew_ms']:.1f} ms, lost {m['lost']:.0f}", file=sys.stderr)
                lost += m["lost"] if row in OURS else 0
        (TARGET / f"{name}.json").write_text(json.dumps({"meta": {"test": name, "pinned": True}, "cases": cases}, indent=1))
    if "ping" in groups:
        opt.rounds = 5000
        runs = {row: [] for row in PING_ROWS}
        for _ in range(opt.repeats):
            for row in PING_ROWS:
                result = run.one_ping(row, 64, opt.rounds, opt)
                if result:
                    runs[row].append(result)
        done["ping 64 B"] = result = {row: run.median(results) for row, results in runs.items() if results}
        for row, m in result.items():
            print(f"ping, {row}: p50 {m['p50_us']:.1f}, p99 {m['p99_us']:.1f}, p99.9 {m['p999_us']:.1f} us", file=sys.stderr)
        for row, other, wanted in PING:
            if row in result and other in result:
                reached = result[row]["p50_us"] / result[other]["p50_us"]
                line("round trip 64 B, p50", row, other, f"<= {wanted}", reached, reached <= wanted)
        out.write_text(json.dumps(done, indent=1))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
