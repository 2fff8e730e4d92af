"""Holds the figures of `crates/lab` (crates/lab/examples/statistics.rs) to numpy and scipy.

    check_statistics.py EXAMPLE     EXAMPLE: the built example, which reads samples from stdin and prints its figures

Samples are drawn from fixed seeds: few and many, with ties, skewed, far from zero, in pairs; and series with a transient.
Each kind of figure is compared with a computation that shares nothing with ours; then each is changed by a little, to see
that the comparison notices. Exits 1 at the first figure that is off.
"""

import copy
import itertools
import json
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import scipy
import scipy.stats as st

FRACTIONS = [0.0, 0.01, 0.05, 0.25, 1 / 3, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]
SEEDS_MIN = 5
EXACT_SEEDS_MAX = 10
DRAWS = 20_000
SCIPY_RESAMPLES = 100_000
NOISE_SE = 5.0
"""Standard errors that a simulated share may be off."""

checked = Counter()


def close(kind, name, ours, theirs, relative=1e-12, absolute=0.0):
    """Equal to within rounding; None equals None."""
    checked[kind] += 1
    if ours is None or theirs is None:
        assert ours is None and theirs is None, f"{kind} of {name}: {ours}, expected {theirs}"
        return
    off = abs(ours - theirs)
    limit = max(relative * abs(theirs), absolute)
    assert off <= limit, f"{kind} of {name}: {ours!r}, expected {theirs!r} (off by {off:.3g}, allowed {limit:.3g})"


def draw_cases():
    rng = np.random.default_rng(20261130)
    cases = []

    def add(name, values, reference=None):
        case = {"name": name, "values": [float(v) for v in values], "fractions": FRACTIONS}
        if reference is not None:
            case["reference"] = [float(v) for v in reference]
        cases.append(case)

    for n in [1, 2, 5, 8, 10, 12]:
        base = rng.lognormal(5.0, 0.3, n)
        add(f"paired, n={n}", base * rng.normal(0.8, 0.05, n), base)
        add(f"skewed, n={n}", rng.lognormal(3.0, 1.5, n), rng.lognormal(3.2, 1.5, n))
        add(f"ties, n={n}", rng.integers(1, 4, n), rng.integers(2, 5, n))
        add(f"equal, n={n}", base, base)
        add(f"far from zero, n={n}", 1e9 + rng.normal(0.0, 1.0, n), 1e9 + rng.normal(0.5, 1.0, n))
    add("a zero in the reference", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 1.0, 1.0, 1.0])
    for n in [100, 1000]:
        add(f"latencies, n={n}", rng.lognormal(5.0, 1.0, n))
        add(f"rounded latencies, n={n}", np.round(rng.lognormal(2.0, 1.0, n)))
    for transient in [0, 60, 250]:
        ramp = 30.0 * np.clip(1.0 - np.arange(1203) / max(transient, 1), 0.0, None)
        add(f"a series, steady from {transient}", 100.0 + ramp + rng.normal(0.0, 2.0, 1203))
    add("a trend", np.arange(600.0) + rng.normal(0.0, 1.0, 600))
    add("a series that is too short", rng.normal(10.0, 1.0, 49))
    add("a constant series", np.full(120, 0.1))
    return cases


def tail(n):
    """Share of the bootstrap distribution beyond either bound; None for too few."""
    if n < SEEDS_MIN:
        return None
    return float(st.norm.cdf(-math.sqrt(n / (n - 1)) * st.t.ppf(0.975, n - 1)))


def resamples(n):
    """All multisets of n out of n, as counts by observation, with their probabilities."""
    chosen = itertools.combinations_with_replacement(range(n), n)
    chosen = np.fromiter(itertools.chain.from_iterable(chosen), dtype=np.int8).reshape(-1, n)
    counts = np.stack([(chosen == at).sum(axis=1, dtype=np.int8) for at in range(n)], axis=1)
    log_factorials = np.array([math.lgamma(k + 1) for k in range(n + 1)])
    weights = np.exp(log_factorials[n] - log_factorials[counts].sum(axis=1) - n * math.log(n))
    assert abs(weights.sum() - 1) < 1e-9
    return counts, weights


class Distribution:
    """A statistic over all resamples: its values in ascending order, and the weight of each."""

    def __init__(self, values, weights):
        values, weights = values[order := np.argsort(values, kind="stable")], weights[order]
        # Values that differ by rounding alone are one.
        is_new = np.diff(values, prepend=-np.inf) > 1e-9 * (values[-1] - values[0])
        starts = np.flatnonzero(is_new)
        self.values = values[starts]
        self.weights = np.add.reduceat(weights, starts)

    def outer(self, share):
        """The greatest value that has, with all below it, at most this share; the least if none has."""
        within = np.flatnonzero(np.cumsum(self.weights) <= share)
        return self.values[within[-1]] if len(within) else self.values[0]

    def inner(self, share):
        """The least value that has, with all below it, more than this share."""
        return self.values[np.searchsorted(np.cumsum(self.weights), share, side="right")]

    def mirrored(self):
        mirror = copy.copy(self)
        mirror.values, mirror.weights = -self.values[::-1], self.weights[::-1]
        return mirror


def statistics_of(values, reference):
    """Name, statistic of resampled columns (along the last axis), data."""
    yield "mean", lambda x, axis: np.mean(x, axis=axis), (values,)
    if reference is None:
        return
    yield "difference", lambda x, y, axis: np.mean(x - y, axis=axis), (values, reference)
    if np.all(reference > 0):
        yield "relative", lambda x, y, axis: np.mean(x, axis=axis) / np.mean(y, axis=axis) - 1, (values, reference)


multisets = {}
exact = {}
"""Distribution by case and statistic: the same for every pass over the figures."""
simulated = {}


def exact_distribution(name, kind, data):
    if (name, kind) not in exact:
        n = len(data[0])
        if n not in multisets:
            multisets[n] = resamples(n)
        counts, weights = multisets[n]
        means = [counts @ column / n for column in data]
        statistic = {"mean": lambda m: m[0], "difference": lambda m: counts @ (data[0] - data[1]) / n,
                     "relative": lambda m: m[0] / m[1] - 1}[kind](means)
        exact[name, kind] = Distribution(statistic, weights)
    return exact[name, kind]


def scipy_interval(name, kind, statistic, data, share):
    if (name, kind) not in simulated:
        result = st.bootstrap(
            data, statistic, paired=True, vectorized=True, method="percentile", confidence_level=1 - 2 * share,
            n_resamples=SCIPY_RESAMPLES, batch=10_000, rng=np.random.default_rng(7))
        simulated[name, kind] = result.confidence_interval
    return simulated[name, kind]


def check_interval(name, kind, estimate, statistic, data):
    n = len(data[0])
    value = float(statistic(*data, axis=-1))
    scale = 1 + abs(value) if kind == "relative" else max(float(np.abs(column).max()) for column in data)
    rounding = 1e-14 * scale
    close(f"{kind}: value", name, estimate["value"], value, absolute=rounding)
    assert estimate["seeds"] == n
    share = tail(n)
    if share is None:
        checked[f"{kind}: no interval"] += 1
        assert estimate["interval"] is None, f"{name}: {n} seeds have no interval"
        return
    if n > 12:
        return
    distribution = exact_distribution(name, kind, data)
    low, high = estimate["interval"]
    for ours, side, one in [(low, "lower", distribution), (-high, "upper", distribution.mirrored())]:
        if n <= EXACT_SEEDS_MAX:
            close(f"{kind}: {side} bound, by enumeration", name, ours, one.outer(share), absolute=rounding)

    def within_noise(what, low, high, draws):
        noise = NOISE_SE * math.sqrt(share / draws)
        for bound, side, one in [(low, "lower", distribution), (-high, "upper", distribution.mirrored())]:
            checked[f"{kind}: {side} bound, {what}"] += 1
            least, greatest = one.outer(share - noise), one.inner(share + noise)
            assert least - rounding <= bound <= greatest + rounding, (
                f"{kind} of {name}, {side} bound {what}: {bound} is not in {least}..{greatest}")

    theirs = scipy_interval(name, kind, statistic, data, share)
    within_noise("scipy's", theirs.low, theirs.high, SCIPY_RESAMPLES)
    within_noise("ours", low, high, DRAWS if n > EXACT_SEEDS_MAX else SCIPY_RESAMPLES)


def mser_5(series):
    """White 1997, written out."""
    batches = np.array([series[at:at + 5].mean() for at in range(0, len(series) - 4, 5)])
    k = len(batches)
    if k < 10:
        return None
    score = [((batches[d:] - batches[d:].mean()) ** 2).sum() / (k - d) ** 2 for d in range(k // 2 + 1)]
    # Rounding is no preference.
    cut = next(d for d, s in enumerate(score) if s <= min(score) + 1e-20)
    return None if cut == k // 2 else 5 * cut


def check(cases, output):
    for seeds, ours in output["interval_tails"].items():
        close("tail: t and normal quantiles", f"{seeds} seeds", ours, tail(int(seeds)), relative=1e-9)
    assert len(output["interval_tails"]) == 40
    assert len(cases) == len(output["cases"])
    for case, ours in zip(cases, output["cases"]):
        name = case["name"]
        assert name == ours["name"]
        values = np.array(case["values"])
        reference = np.array(case["reference"]) if "reference" in case else None

        theirs = np.quantile(values, FRACTIONS)
        assert len(ours["quantiles"]) == len(FRACTIONS)
        for fraction, one, other in zip(FRACTIONS, ours["quantiles"], theirs):
            close("quantile", f"{name} at {fraction}", one, float(other))
        for key, fraction in [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)]:
            close(f"summary: {key}", name, ours["summary"][key], float(np.quantile(values, fraction)))
        close("summary: mean", name, ours["summary"]["mean"], float(values.mean()))
        close("summary: max", name, ours["summary"]["max"], float(values.max()))

        deviation = float(values.std(ddof=1)) if len(values) > 1 else None
        # Far from zero the mean, and with it each deviation, is rounded.
        close("standard deviation", name, ours["standard_deviation"], deviation,
              absolute=4e-15 * float(np.abs(values).max()))
        checked["steady from"] += 1
        assert ours["steady_from"] == mser_5(values), f"{name}: {ours['steady_from']}, expected {mser_5(values)}"

        estimates = {"mean": ours["mean"]}
        if reference is not None:
            comparison = ours["comparison"]
            estimates |= {"difference": comparison["difference"], "relative": comparison["relative"]}
            if not np.all(reference > 0):
                checked["relative: none"] += 1
                assert estimates.pop("relative") is None, name
            spread = float(reference.std(ddof=1)) if len(reference) > 1 else None
            is_within = spread is not None and abs(float(np.mean(values - reference))) < spread
            checked["within seed spread"] += 1
            assert comparison["is_within_seed_spread"] == is_within, name
        for kind, statistic, data in statistics_of(values, reference):
            check_interval(name, kind, estimates.pop(kind), statistic, data)
        assert not estimates


def places(node, path=()):
    """Paths to all numbers and truth values of the output."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))
    elif isinstance(node, list):
        for at, value in enumerate(node):
            yield from places(value, (*path, at))
    elif isinstance(node, (bool, int, float)):
        yield path


def check_that_it_notices(cases, output):
    """Changes one figure of each kind of place, in the case of eight skewed seeds and in a series."""
    names = [case["name"] for case in cases]
    kinds = {}
    for path in places(output):
        if path[0] == "interval_tails":
            kinds.setdefault(path[0], path)
        elif names[path[1]] == "skewed, n=8" or (path[2] == "steady_from" and "250" in names[path[1]]):
            kinds.setdefault(path[2:], path)
    for path in kinds.values():
        changed = copy.deepcopy(output)
        node = changed
        for key in path[:-1]:
            node = node[key]
        old = node[path[-1]]
        node[path[-1]] = (not old) if isinstance(old, bool) else old + 5 if isinstance(old, int) else old * (1 + 1e-6)
        try:
            check(cases, changed)
        except AssertionError:
            continue
        raise SystemExit(f"a change of {'.'.join(map(str, path))} was not noticed")
    return len(kinds)


def main():
    cases = draw_cases()
    run = subprocess.run([sys.argv[1]], input=json.dumps({"cases": cases}), capture_output=True, text=True, check=True)
    output = json.loads(run.stdout)
    try:
        check(cases, output)
    except AssertionError as error:
        raise SystemExit(f"statistics: {error}") from error
    counts = dict(checked)
    noticed = check_that_it_notices(cases, output)
    print(f"{len(cases)} samples, numpy {np.__version__}, scipy {scipy.__version__}")
    for kind, count in counts.items():
        print(f"  {count:5} x {kind}")
    print(f"  {noticed:5} kinds of figures changed by a millionth (whole ones by 5): each was noticed")


if __name__ == "__main__":
    main()
