#!/usr/bin/env python3
"""Turns benchmark results into SVG plots beside their data. Needs nothing but Python.

    benches/plot.py                       # all results of this package: criterion's, and instructions, latency, growth, sizes.json
    benches/plot.py target/criterion      # a folder of criterion's results: one plot for each group in it
    benches/plot.py results/*.json        # results of the peer benchmark's run.py, or an instructions.json

Criterion's groups become `<folder>/<group>.svg` with the numbers of the plot in `<group>.json`; a JSON file becomes an SVG
of the same name. Bars are medians, whiskers the 95 % interval (criterion) or the slowest and fastest repeat (run.py).
Cases that differ in one number only (a size, a number of peers) become lines over that number.
"""

import json
import math
import os
import pathlib
import re
import sys
from html import escape

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0"]
FONT = 'font-family="system-ui, sans-serif" font-size="12"'
CHARACTER_PX = 6.6
MICRO_UNIT = "nanoseconds per operation"


class Chart:
    """Series of points: {row: {case: (value, low, high)}}, with what they mean."""

    def __init__(self, title, unit, rows):
        self.title, self.unit = title, unit
        self.rows = {row: points for row, points in rows.items() if points}
        self.cases = list(dict.fromkeys(case for points in self.rows.values() for case in points))

    def svg(self):
        axis = numbers_in(self.cases)
        return lines(self, axis) if axis else bars(self)

    def data(self):
        return {"title": self.title, "unit": self.unit, "rows": {
            row: {case: dict(zip(("value", "low", "high"), point)) for case, point in points.items()}
            for row, points in self.rows.items()}}


# --- reading ------------------------------------------------------------------------------------------------------

def criterion(folder):
    """The charts of a folder of criterion's results, by name."""
    groups = {}
    for path in sorted(folder.glob("**/new/benchmark.json"), key=lambda path: path.stat().st_mtime):
        about = json.loads(path.read_text())
        estimates = path.with_name("estimates.json")
        if estimates.exists():
            groups.setdefault(about["group_id"], []).append((about, json.loads(estimates.read_text())))
    charts, micro = {}, {}
    for group, results in groups.items():
        rows = {}
        for about, estimates in results:
            operations = (about.get("throughput") or {}).get("Elements", 1)
            median = estimates["median"]
            interval = median["confidence_interval"]
            ns = [x / operations for x in (median["point_estimate"], interval["lower_bound"], interval["upper_bound"])]
            if not about.get("value_str"):
                micro[f"{group}: {about['function_id']}"] = {MICRO_UNIT: tuple(ns)}
            elif group == "round trip":
                rows.setdefault(about["function_id"], {})[about["value_str"]] = tuple(x / 1e3 for x in ns)
            else:
                rates = tuple(1e9 / x for x in (ns[0], ns[2], ns[1]))
                rows.setdefault(about["function_id"], {})[about["value_str"]] = rates
        if rows:
            unit = "microseconds" if group == "round trip" else "messages delivered per second"
            charts[group] = Chart(group, unit, rows)
    if micro:
        charts["micro"] = Chart("micro", MICRO_UNIT, micro)
    return charts


def peers(results):
    """The charts of a result of the peer benchmark, by suffix."""
    test, cases = results["meta"]["test"], results["cases"]
    rows = lambda point: {row: {case: point(of[row]) for case, of in cases.items() if row in of and point(of[row])}
                          for row in dict.fromkeys(row for of in cases.values() for row in of)}
    title = results["meta"].get("title", test) + (", pinned" if results["meta"].get("pinned") else "")
    if test == "idle":
        return {"": Chart(title, "bytes of memory per connection, holding side",
                          rows(lambda m: alone(m.get("hold", {}).get("bytes_per_conn"))))}
    if test == "ping":
        return {"": Chart(title, "microseconds, p50 and p99",
                          rows(lambda m: (m["p50_us"], m["p50_us"], m["p99_us"])))}
    return {"": Chart(title, "messages delivered per second",
                      rows(lambda m: (m["rate"], m.get("rate_min", m["rate"]), m.get("rate_max", m["rate"])))),
            "-cpu": Chart(title, "CPU seconds per million messages, both ends",
                          rows(lambda m: alone(m.get("cpu_per_m"))))}


def alone(value):
    return (value, value, value) if value else None


def numbers_in(cases):
    """{case: number} if the cases are three or more that differ in one number only."""
    split = [re.split(r"(\d+(?:\.\d+)?)", case) for case in cases]
    if len(cases) < 3 or len({len(parts) for parts in split}) != 1:
        return None
    varying = [at for at in range(len(split[0])) if len({parts[at] for parts in split}) > 1]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return None
    return {case: float(parts[varying[0]]) for case, parts in zip(cases, split)}


# --- drawing ------------------------------------------------------------------------------------------------------

class Scale:
    """Values to pixels, logarithmic if they are far apart."""

    def __init__(self, values, start, end, log=None, from_zero=True):
        low, high = min(values), max(values)
        self.log = (low > 0 and high / low > 30) if log is None else log
        if self.log:
            low, high = low / 1.3, high * 1.15
        else:
            low, high = (0 if from_zero else low), high * 1.08 or 1
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value):
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self):
        if not self.log:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
            step = next(step * m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 7)
            return [step * n for n in range(math.ceil(self.low / step), int(self.high / step) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        fine = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
        return [m * 10.0 ** d for d in decades for m in fine if self.low <= m * 10.0 ** d <= self.high]


def short(value):
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def text(x, y, words, anchor="start", extra=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {FONT} {extra}>{escape(str(words))}</text>'


def line(x1, y1, x2, y2, colour="#bbb", width=1.0):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def page(width, height, title, unit, parts):
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}">', f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
            text(16, 24, title, extra='font-weight="bold"'), text(16, 42, unit, extra='fill="#555"')]
    return "\n".join([*head, *parts, "</svg>\n"])


def bars(chart):
    """Horizontal bars: cases one below the other, in each a bar for every row."""
    is_plain = chart.cases == [chart.unit]
    labels = [*chart.rows, *([] if is_plain else chart.cases)]
    left = 24 + CHARACTER_PX * max(len(label) for label in labels)
    width, bar, top = left + 560, 18, 64
    values = [x for points in chart.rows.values() for point in points.values() for x in point if x > 0]
    scale = Scale(values, left, left + 460)
    parts, y = [], top
    for case in chart.cases:
        if not is_plain:
            parts.append(text(16, y + 13, case, extra='font-weight="bold"'))
            y += 20
        for number, (row, points) in enumerate(chart.rows.items()):
            if case not in points:
                continue
            value, low, high = points[case]
            colour = COLOURS[0 if is_plain else number % len(COLOURS)]
            # On a logarithmic scale only the end of a bar means anything: a dot, led to by a pale bar.
            opacity = 0.25 if scale.log else 1
            parts += [text(left - 8, y + 13, row, "end"),
                      f'<rect x="{left:.1f}" y="{y + 2}" width="{max(1, scale(value) - left):.1f}" height="{bar - 4}" '
                      f'fill="{colour}" fill-opacity="{opacity}"/>']
            if scale.log:
                parts.append(f'<circle cx="{scale(value):.1f}" cy="{y + bar / 2}" r="5" fill="{colour}"/>')
            parts += [
                      line(scale(low), y + bar / 2, scale(high), y + bar / 2, "#222", 1.4),
                      text(max(scale(value), scale(high)) + 6, y + 13, short(value))]
            y += bar
        y += 10
    grid = [line(scale(tick), top - 4, scale(tick), y, "#e5e5e5") for tick in scale.ticks()]
    names = [text(scale(tick), y + 14, short(tick), "middle", 'fill="#555"') for tick in scale.ticks()]
    unit = chart.unit + (" (logarithmic)" if scale.log else "")
    return page(width, y + 26, chart.title, unit, [*grid, *parts, *names])


def lines(chart, axis):
    """Lines over the one number in which the cases differ."""
    left, top, plot_width, plot_height = 70, 64, 560, 340
    xs = sorted(axis.values())
    across = Scale(xs, left, left + plot_width, log=xs[0] > 0 and xs[-1] / xs[0] >= 8, from_zero=False)
    values = [x for points in chart.rows.values() for point in points.values() for x in point if x > 0]
    up = Scale(values, top + plot_height, top)
    parts = [line(left, up(tick), left + plot_width, up(tick), "#e5e5e5") for tick in up.ticks()]
    parts += [text(left - 8, up(tick) + 4, short(tick), "end", 'fill="#555"') for tick in up.ticks()]
    for x in xs:
        parts += [line(across(x), top, across(x), top + plot_height, "#f0f0f0"),
                  text(across(x), top + plot_height + 16, f"{x:.10g}", "middle", 'fill="#555"')]
    for number, (row, points) in enumerate(chart.rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        dash = 'stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
        placed = sorted((axis[case], point) for case, point in points.items())
        path = " ".join(f"{across(x):.1f},{up(point[0]):.1f}" for x, point in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {dash}/>')
        for x, (value, low, high) in placed:
            parts += [line(across(x), up(low), across(x), up(high), colour, 1.2),
                      f'<circle cx="{across(x):.1f}" cy="{up(value):.1f}" r="3" fill="{colour}"/>']
        y = top + 10 + number * 18
        parts += [line(left + plot_width + 20, y, left + plot_width + 42, y, colour, 3),
                  text(left + plot_width + 48, y + 4, row)]
    names = sorted(axis, key=axis.get)
    parts.append(text(left, top + plot_height + 34, f"from {names[0]} to {names[-1]}", extra='fill="#555"'))
    legend = CHARACTER_PX * max(len(row) for row in chart.rows)
    height = max(top + plot_height + 46, top + 20 + 18 * len(chart.rows))
    unit = chart.unit + (" (logarithmic)" if up.log else "")
    return page(left + plot_width + 64 + legend, height, chart.title, unit, parts)


# --- one command --------------------------------------------------------------------------------------------------

def plot(path):
    """Writes the plots of one folder or file; their paths."""
    written = []
    if path.is_dir():
        for name, chart in criterion(path).items():
            plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)
            written.append(path / f"{plain}.svg")
            written[-1].write_text(chart.svg())
            (path / f"{plain}.json").write_text(json.dumps(chart.data(), indent=1) + "\n")
        return written
    results = json.loads(path.read_text())
    if "cases" in results:
        charts = peers(results)
    else:
        unit = "instructions per operation"
        charts = {"": Chart("micro", unit, {name: {unit: alone(count)} for name, count in results.items()})}
    for suffix, chart in charts.items():
        if chart.rows:
            written.append(path.with_name(path.stem + suffix + ".svg"))
            written[-1].write_text(chart.svg())
    return written


def main():
    package = pathlib.Path(__file__).resolve().parent.parent
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", package / "target"))
    paths = [pathlib.Path(argument) for argument in sys.argv[1:]]
    if any(argument in ("-h", "--help") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    known = [target / name for name in ("criterion", "instructions.json", "latency.json", "growth.json", "sizes.json")]
    paths = paths or [path for path in known if path.exists()]
    written = [plot for path in paths for plot in plot_or_say(path)]
    if not written:
        sys.exit("nothing to plot: run cargo bench first, or name a folder or file")
    print("\n".join(map(str, written)))


def plot_or_say(path):
    try:
        return plot(path)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        print(f"{path}: no results that this knows ({problem!r})", file=sys.stderr)
        return []


if __name__ == "__main__":
    main()
