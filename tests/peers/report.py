"""The table of results, from the figures of every round."""

import statistics

NOTES = """\
- A ratio is that of our figure over the peer's within one round; the table gives the median of the rounds and, in
  parentheses, their range. The commands of a round run one after the other on the same cores, every other round in
  reverse order, so that a change of the machine's speed meets both sides.
- Most of the gain over PyTorch's f32 comes from Winograd's algorithm, which makes fewer multiplications, and not from a
  better use of the machine: the rows "direct" stand beside it and make the same multiplications as PyTorch.
- "Tuned" is channels-last with `OMP_PROC_BIND=close OMP_PLACES=cores` and glibc's malloc told to keep memory, in huge
  pages (`GLIBC_TUNABLES`, see `comparisons.py`). "As run" is the script without any of that.
- Views are network inputs: two for each image."""

# Not measured here: a test of `kernels` compares each of the three passes on every path.
WINOGRAD = ["Winograd, one layer: distance from exact (f64) convolution, relative", "-", "-", "by `cargo test -p engine`",
            "<= 1e-5", "tested"]


def number(value):
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(figures, unit):
    if not figures:
        return ""
    middle = number(statistics.median(figures)) + unit
    return middle if len(figures) == 1 else f"{middle} ({number(min(figures))}..{number(max(figures))})"


def side(side, rounds):
    """The median of one side, wherever it ran."""
    if side is None:
        return "-"
    ran = [r for r in rounds if "error" not in r.get(side.run, {"error": ""})]
    return f"{number(statistics.median(side.of(r) for r in ran))} {side.unit}" if ran else "-"


def absence(row, rounds):
    """Why the row has no figure. What a command said may hold paths of this machine, so it is not repeated."""
    runs = [side.run for side in (row.ours, row.peer) if side is not None]
    reasons = [results[run]["reason"] for results in rounds for run in runs if "reason" in results.get(run, {})]
    if reasons:
        return reasons[0]
    return "failed" if any("error" in results.get(run, {}) for results in rounds for run in runs) else "not run"


def line(row, rounds, reason):
    wanted = f"{'<=' if row.at_most else '>='} {row.wanted:g}{row.unit}"
    figures = row.figures(rounds)
    if not figures:
        return [row.what, side(row.ours, rounds), side(row.peer, rounds), reason or absence(row, rounds), wanted, "-"]
    met = "yes" if row.met(figures) else "**no**"
    return [row.what, side(row.ours, rounds), side(row.peer, rounds), spread(figures, row.unit), wanted, met]


def table(head, lines):
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in lines)]


def lines_of(group, stored, reason):
    rounds = [results for results in stored.get("rounds", []) if results]
    return [line(row, rounds, None if rounds else reason) for row in group.rows]


def measured(group, stored):
    rounds = [results for results in stored.get("rounds", []) if results]
    return [group.name, str(len(rounds)), stored["date"], stored["himpun"]]


def markdown(groups, stored, reasons, about):
    """`stored`: what was measured, by name of the group; `reasons`: why a group was not; `about`: machine, versions."""
    ratios = [row for group in groups for row in lines_of(group, stored.get(group.name, {}), reasons.get(group.name))]
    notes = [f"- `{group.name}`: {group.note}" for group in groups if group.note]
    ran = [measured(group, stored[group.name]) for group in groups if group.name in stored]
    return "\n".join([
        "# Himpun beside PyTorch on this CPU",
        "",
        "Written by `python3 tests/peers/run.py`; do not edit. What was wanted is the project's own bar.",
        "",
        *table(["", ""], [[f"**{name}**", value] for name, value in about.items()]),
        "",
        *table(["comparison", "Himpun", "peer", "figure: median (range)", "wanted", "met"], [*ratios, WINOGRAD]),
        "",
        "## Notes",
        "",
        NOTES,
        *notes,
        "",
        "## When",
        "",
        *table(["group", "rounds", "date", "himpun"], ran),
        "",
    ])
