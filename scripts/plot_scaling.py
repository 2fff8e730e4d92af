#!/usr/bin/env python3
"""Draws the cost per request against the number of instances from the output of the simulator's benchmark.

    cargo bench -p kvroute-sim --bench simulate -- scaling | scripts/plot_scaling.py docs/figures/scaling.svg

Reads the medians of the `scaling` group (requests/s) and writes an SVG; needs Python 3 and nothing else.
"""

import math
import re
import sys

UNITS = {"": 1.0, "K": 1e3, "M": 1e6}
# Colour-blind safe (Okabe and Ito), in the order in which the series are labelled.
COLOURS = {"round-robin": "#0072B2", "jsq": "#D55E00", "p2c": "#009E73", "load-cache": "#CC79A7"}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 64, 110, 64, 52


def medians(lines):
    """{policy: [(instances, microseconds per request)]} from divan's table."""
    costs, series, instances = {}, None, None
    for line in lines:
        name = re.search(r"[├╰]─ ([a-z0-9-]+), (\d+) instances", line)
        if name:
            series, instances = name[1], int(name[2])
            continue
        rates = re.findall(r"([\d.]+) ?([KM]?)item/s", line)
        if series in COLOURS and len(rates) >= 3:
            rate = float(rates[2][0]) * UNITS[rates[2][1]]
            costs.setdefault(series, []).append((instances, 1e6 / rate))
            series = None
    return {policy: sorted(points) for policy, points in costs.items()}


def main():
    costs = medians(sys.stdin)
    if not costs:
        sys.exit("no `scaling` results on standard input; run the command in this script's header")
    every = [point for points in costs.values() for point in points]
    x_max = max(n for n, _ in every)
    y_max = math.ceil(max(us for _, us in every) / 5) * 5

    def x(n):
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(n / 2) / math.log2(x_max / 2)

    def y(us):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * us / y_max

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">Simulator: processor time per request at constant load per instance</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">instances (log scale)</text>',
        f'<text x="16" y="{TOP - 14}">µs per request</text>',
    ]
    for us in range(0, y_max + 1, 5):
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(us):.1f}" y2="{y(us):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y(us) + 4:.1f}" text-anchor="end">{us}</text>')
    for n in sorted({n for n, _ in every}):
        out.append(f'<text x="{x(n):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{n}</text>')
    label_y = []
    for policy, colour in COLOURS.items():
        points = costs.get(policy, [])
        if not points:
            continue
        path = " ".join(f"{x(n):.1f},{y(us):.1f}" for n, us in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(n):.1f}" cy="{y(us):.1f}" r="3" fill="{colour}"/>' for n, us in points]
        at = y(points[-1][1])
        while any(abs(at - other) < 15 for other in label_y):
            at += 15
        label_y.append(at)
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{at + 4:.1f}" fill="{colour}">{policy}</text>')
    out.append("</svg>")
    with open(sys.argv[1], "w", encoding="utf-8") as svg:
        svg.write("\n".join(out) + "\n")


main()
