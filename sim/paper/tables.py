"""Reading the tables: every cell with its status and its source, every error with its trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coe.settings import Fields, Report, read_yaml

TABLES = Path(__file__).parent / "tables.yaml"
STATUSES = ("printed", "inferred", "missing")  # from the surest
METRICS = ("latency_ms", "cost_usd_per_hour", "flops")
EXITS_OFF = 0.02  # printed shares are rounded, and need not sum to 1 exactly


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of a table; `value` is None where it is missing."""

    value: float | None = None
    status: str = "missing"
    source: str = ""

    @property
    def is_known(self) -> bool:
        return self.value is not None


def worst(cells: Sequence[Cell]) -> str:
    """The status of what is computed from these cells: that of the least sure one."""
    return max((cell.status for cell in cells), key=STATUSES.index, default="printed")


@dataclass(frozen=True, slots=True)
class TierCells:
    """A tier's cells; `costs` by METRICS. Members as of its ensemble."""

    exit: Cell
    costs: Mapping[str, Cell]
    members: Cell


@dataclass(frozen=True, slots=True)
class TaskCells:
    """A task's rows of Table 2, and its ratio in Figure 5.

    Args:
        delays_s: one per tier; empty where the paper does not say them.
    """

    name: str
    tiers: Sequence[TierCells]
    cascade: Mapping[str, Cell]
    best_single: Mapping[str, Cell]
    delays_s: Sequence[float]
    ratio: Cell


@dataclass(frozen=True, slots=True)
class WrongRow:
    """A row of Table 3. `wrong_by_rate`: what the row's own rate comes to, where that is known otherwise."""

    task: str
    models: int
    cells: Mapping[str, Cell]


@dataclass(frozen=True, slots=True)
class Tables:
    """All of them. `open_costs`: printed costs that are known to be of a task without one, not of which."""

    source: str
    about: str
    table1: Sequence[Any]
    tasks: Sequence[TaskCells]
    open_costs: Sequence[Cell]
    table3: Sequence[WrongRow]


def read_tables(path: Path) -> Tables:
    """The tables in a YAML file.

    Raises:
        ConfigError: every finding at once.
    """
    report = Report(str(path))
    fields = Fields(read_yaml(path), report)
    gpus = _cells(fields.section("gpus", {}))
    lists = Fields({f"delays_s[{place}]": each for place, each in enumerate(_rows(fields, "delays_s"))}, report)
    delays = {len(each): each for each in map(lists.numbers, lists.content)}
    tables = Tables(
        source=str(path),
        about=fields.text("about", ""),
        table1=_rows(fields, "table1"),
        tasks=[_task(name, entry, gpus, delays) for name, entry in fields.entries("table2")],
        open_costs=[_cell(entry, "value", entry.content) for entry in _list(fields, "open_costs")],
        table3=[_wrong(entry) for entry in _list(fields, "table3")],
    )
    fields.finish()
    report.check()
    return tables


def _rows(fields: Fields, key: str) -> list[Any]:
    """A list of anything; empty where it is not there."""
    given = fields.raw(key, [])
    if not isinstance(given, list):
        fields.wrong(key, f"expected a list, got {given!r} (write [..], or leave it out)")
        return []
    return given


def _list(fields: Fields, key: str) -> list[Fields]:
    return fields.sections(key) if fields.has(key) else []


def _task(name: str, fields: Fields, gpus: Mapping[str, Cell], delays: Mapping[int, Sequence[float]]) -> TaskCells:
    tiers = [_tier(entry, gpus) for entry in _list(fields, "tiers")]
    exits = [tier.exit.value for tier in tiers]
    shares = [share for share in exits if share is not None]
    if shares and len(shares) == len(exits) and abs(sum(shares) - 1) > EXITS_OFF:
        fields.wrong("tiers", f"expected exit shares that sum to 1, got {sum(shares):g} (write 0.93 and 0.07)")
    own = fields.numbers("delays_s", ()) if fields.has("delays_s") else delays.get(len(tiers), ())
    if own and len(own) != len(tiers):
        fields.wrong("delays_s", f"expected {len(tiers)} delays, one per tier, got {len(own)}")
    task = TaskCells(
        name=name,
        tiers=tiers,
        cascade=_metrics(fields.section("cascade", {})),
        best_single=_metrics(fields.section("best_single", {})),
        delays_s=own,
        ratio=_take(fields, "communication_ratio"),
    )
    fields.finish()
    return task


def _tier(fields: Fields, gpus: Mapping[str, Cell]) -> TierCells:
    exits = _take(fields, "exit")
    if exits.value is not None and exits.value > 1:
        fields.wrong("exit", f"expected a share from 0 to 1, got {exits.value:g} (write 0.93 for 93%)")
    costs = {metric: _take(fields, metric) for metric in METRICS}
    gpu = fields.text("gpu", "")
    if gpu and not costs["cost_usd_per_hour"].is_known:
        if gpu not in gpus:
            fields.wrong("gpu", f'expected one of {", ".join(gpus) or "the gpus above"}, got "{gpu}" (add its price)')
        costs["cost_usd_per_hour"] = gpus.get(gpu, Cell())
    members = _take(fields, "members")
    if members.value is not None and (members.value < 1 or members.value % 1):
        fields.wrong("members", f"expected a whole number from 1, got {members.value:g} (write 3)")
    fields.finish()
    return TierCells(exits, costs, members)


def _wrong(fields: Fields) -> WrongRow:
    names = ("agreed", "wrong", "wrong_by_rate", "rate", "large_wrong_too")
    row = WrongRow(fields.text("task"), fields.integer("models", 0), {name: _take(fields, name) for name in names})
    fields.finish()
    return row


def _metrics(fields: Fields) -> dict[str, Cell]:
    cells = {metric: _take(fields, metric) for metric in METRICS}
    fields.finish()
    return cells


def _cells(fields: Fields) -> dict[str, Cell]:
    return {str(key): _take(fields, str(key)) for key in fields.content}


def _take(fields: Fields, key: str) -> Cell:
    """The cell at `key`; missing where it is not there."""
    return _cell(fields, key, fields.raw(key, None))


def _cell(fields: Fields, key: str, given: Any) -> Cell:
    if given is None:
        return Cell()
    if not isinstance(given, dict):
        return Cell(_number(fields, key, given), "printed", "the file")
    unknown = sorted(set(given) - {"value", "status", "source"})
    if unknown:
        fields.wrong(key, f'expected value, status and source, got "{unknown[0]}" (leave it out)')
    value = _number(fields, key, given.get("value"))
    status = given.get("status", "missing" if value is None else "printed")
    if status not in STATUSES or (status == "missing") != (value is None):
        wanted = "missing" if value is None else "printed or inferred"
        fields.wrong(key, f'expected the status {wanted}, got "{status}" (mend it, or leave it out)')
        return Cell()
    return Cell(value, str(status), str(given.get("source", "")))


def _number(fields: Fields, key: str, given: Any) -> float | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 <= given < float("inf"):
        hint = " (write 1.0e+6, with a sign)" if isinstance(given, str) else ""
        fields.wrong(key, f"expected a number from 0, or null, got {given!r}{hint}")
        return None
    return float(given)
