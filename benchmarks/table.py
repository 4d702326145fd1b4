"""One table of what all benchmarks found: what was measured, in which way, how much, and the ratio to the first way."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Found = Any  # what a script wrote as JSON


@dataclass(frozen=True)
class Line:
    """One row.

    Attributes:
        value: median, with its unit; quartiles in brackets.
        ratio: to the first way of the same work in the same run; None: it is that, or there is no other.
    """

    what: str
    arm: str
    value: str
    ratio: float | None = None


def lines(results: dict[str, Found]) -> list[Line]:
    """The table of the scripts that ran."""
    found: list[Line] = []
    for name, of in _READERS.items():
        if results.get(name) is not None:
            found += [Line(f"{name}: {line.what}", line.arm, line.value, line.ratio) for line in of(results[name])]
    return found


def text(table: list[Line]) -> str:
    """The table for a terminal."""
    head = f"{'what':52} {'way':36} {'median (quartiles)':>34} {'ratio':>7}"
    rows = [f"{t.what:52} {t.arm:36} {t.value:>34} {'' if t.ratio is None else f'{t.ratio:.2f}x':>7}" for t in table]
    return "\n".join([head, "-" * len(head), *rows])


def spread(values: list[float], unit: str, digits: int = 1) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{middle:,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f})"


def _compared(what: str, arms: dict[str, list[float]], unit: str) -> Iterator[Line]:
    """Ways with all their values; the first one is what the others are compared with."""
    first = statistics.median(next(iter(arms.values())))
    for place, (arm, values) in enumerate(arms.items()):
        yield Line(what, arm, spread(values, unit), statistics.median(values) / first if place else None)


def _launch(found: Found) -> Iterator[Line]:
    yield from _compared("true", found["milliseconds"], "ms")
    for phase, values in found["phases"].items():
        yield Line("mcpguard run, phase", phase, spread(values, "ms"))


def _decision(found: Found) -> Iterator[Line]:
    fewest = statistics.median(found["sizes"][0]["compile_ms"])
    for place, row in enumerate(found["sizes"]):
        what, took = f"{row['rules']} rules", row["compile_ms"]
        yield Line(what, "profile to tables", spread(took, "ms"), statistics.median(took) / fewest if place else None)
        yield Line(what, "tables in the kernel", f"{row['bytes'] / 1024:,.0f} KiB")
    for cell, landlock in zip(found["rows"][::2], found["rows"][1::2], strict=True):
        what = f"{cell['rules']} rules, depth {cell['depth']}"
        for one, ratio in ((landlock, None), (cell, cell["calm_ns"] / landlock["calm_ns"])):
            low, high = one["quartiles_ns"]
            yield Line(what, f"{one['arm']} (ratio of the calm)", f"{one['median_ns']} ns ({low} to {high})", ratio)


def _acts(found: Found) -> Iterator[Line]:
    for cell in found["rows"]:
        what = f"{cell['act']}, {cell['rules']} rules, depth {cell['depth']}"
        low, high = cell["quartiles_ns"]
        yield Line(what, cell["arm"], f"{cell['median_ns']:,} {found['unit']} ({low:,} to {high:,})", cell["ratio"])


def _work(found: Found) -> Iterator[Line]:
    for row in found["rows"]:
        yield Line(row["work"], row["arm"], spread([1000 * value for value in row["s"]], "ms", 0), row["ratio"])


def _events(found: Found) -> Iterator[Line]:
    arms = dict.fromkeys(("bare", *(r["arm"] for r in found["opens"])))
    rates = {arm: [r["acts"] / r["seconds"] for r in found["opens"] if r["arm"] == arm] for arm in arms}
    yield from _compared("opens a second", rates, "/s")
    for pace in dict.fromkeys(row["pace"] for row in found["changes"]):
        runs = [row for row in found["changes"] if row["pace"] == pace]
        lost = sum(row["lost"] for row in runs) / sum(row["acts"] for row in runs)
        made = spread([row["acts"] / row["seconds"] for row in runs], "/s", 0)
        yield Line(f"changes paced at {pace:,} a second", f"{lost:.2%} lost", made)
    denied = sum(bool(row["denied"]) for row in found["flood"])
    lost = sum(row["lost"] for row in found["flood"])
    rate = spread([row["acts"] / row["seconds"] for row in found["flood"]], "/s", 0)
    yield Line("flood, one denial", f"on record in {denied} of {len(found['flood'])}; {lost} records lost", rate)
    cases = {case: found[case] for case in ("opens", "flood")}
    for row in found["changes"]:
        cases.setdefault(f"changes paced at {row['pace']:,} a second", []).append(row)
    for case, rows in cases.items():
        runs = [row["memory"] for row in rows if "memory" in row]
        for role in dict.fromkeys(role for run in runs for role in run):
            peaks = [run[role]["peak"] for run in runs if role in run]
            yield Line(f"{case}, resident at most", role, spread(peaks, "MiB", 0))


def _scale(found: Found) -> Iterator[Line]:
    for row in found["rows"]:
        what = f"{row['sessions']} sessions living"
        yield from _compared(f"{what}, true", {"bare": row["bare_ms"], "one more session": row["launch_ms"]}, "ms")
        yield Line(what, "processors for one more launch", spread(row["cpu_ms"], "ms", 0))
        yield Line(what, "kernel maps of each", f"{row['maps_each']:.1f} MiB")
        for role, held in row["processes"].items():
            value = f"rss {held['rss']:.0f}, pss {held['pss']:.0f}, own {held['own']:.0f} MiB"
            yield Line(what, role, value)


def _memory(found: Found) -> Iterator[Line]:
    for state, sessions in found.items():
        for role in sessions[0]["processes"]:
            for kind in ("rss", "pss", "own"):
                values = [one["processes"][role][kind] for one in sessions if role in one["processes"]]
                yield Line(state, f"{role}, {kind}", spread(values, "MiB"))
        yield Line(state, "kernel, maps of the session", spread([one["maps"] for one in sessions], "MiB"))
        for kind in sessions[0]["engine"]:
            yield Line(state, f"kernel, {kind} of all", spread([one["engine"][kind] for one in sessions], "MiB"))


def _names(found: Found) -> Iterator[Line]:
    for kind, arms in found.items():
        yield from _compared(kind, {arm: [value / 1000 for value in values] for arm, values in arms.items()}, "us")


def _mcp(found: Found) -> Iterator[Line]:
    for what, ways in found.items():
        name, unit = what.rsplit(", ", 1)
        yield from _compared(name, ways, unit)


def _store(found: Found) -> Iterator[Line]:
    for row in found["rows"]:
        low, _middle, high = row["quartiles_ms"]
        yield Line(row["what"], "10,000 events", f"{row['small_ms']:.1f} ms")
        large = f"{row['large_ms']:.1f} ms ({low:.1f} to {high:.1f})"
        yield Line(row["what"], f"{found['events']:,} events", large, row["large_ms"] / row["small_ms"])
    kept = found["retention"]
    yield Line("end of a run that leaves too much", "forgets for a moment", spread(kept["ends_ms"], "ms"))
    size = f"{kept['before_mib']:.0f} to {kept['after_mib']:.0f} MiB"
    yield Line("half of the record forgotten", f"{found['events']:,} events", f"{kept['forgotten_s']:.1f} s")
    yield Line("the rest written anew", size, f"{kept['written_s']:.1f} s")


def _watch(found: Found) -> Iterator[Line]:
    for what, value in found.items():
        yield Line(what, "", value)


_READERS: dict[str, Callable[[Found], Iterator[Line]]] = {
    "launch": _launch,
    "decision": _decision,
    "acts": _acts,
    "work": _work,
    "events": _events,
    "scale": _scale,
    "memory": _memory,
    "names": _names,
    "mcp": _mcp,
    "store": _store,
    "watch": _watch,
    "acts-tier-1": _acts,
    "acts-tier-2": _acts,
}
