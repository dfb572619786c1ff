"""Results on stdout: as a table for people, or as one document of JSON, YAML or CSV."""

import csv
import io
import json
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import yaml
from rich.cells import cell_len


class Output(StrEnum):
    """How a result is written."""

    TABLE = "table"
    """For people."""
    JSON = "json"
    """One document, as the API gives it."""
    YAML = "yaml"
    """The same as YAML."""
    CSV = "csv"
    """One row for each item."""


Column = tuple[str, Callable[[Mapping[str, Any]], Any]]
"""A column's name and how its value is found in an item."""


def clean(text: str) -> str:
    """Without control characters, so that a server's name can't drive the terminal."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "?" for c in text)


def field(*path: str, name: str | None = None) -> Column:
    """A column for a value that may lie deeper: `field("reason", "code")`."""

    def find(item: Mapping[str, Any]) -> Any:
        value: Any = item
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return (name or "_".join(path), find)


def write_document(document: Any, form: Output) -> None:
    """One JSON or YAML document on stdout."""
    if form is Output.YAML:
        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, default_flow_style=False)
    else:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def write_csv(items: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, header: bool = True) -> None:
    """A header and one row for each item on stdout; what is no plain value stands there as JSON."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if header:
        writer.writerow([name for name, _ in columns])
    writer.writerows([_plain(find(item)) for _, find in columns] for item in items)
    sys.stdout.write(buffer.getvalue())
    sys.stdout.flush()


def write_table(items: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    """Aligned columns on stdout, as wide as they need to be, so that nothing is cut off in a pipeline's log."""
    rows = [[name.upper().replace("_", " ") for name, _ in columns]]
    rows += [[clean(short(find(item))).replace("\n", " ") or "-" for _, find in columns] for item in items]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        line = "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True))
        print(line.rstrip())
    sys.stdout.flush()


def write_list(page: Mapping[str, Any], form: Output, columns: Sequence[Column], *, empty: str) -> None:
    """A page `{items, next}` in the chosen form; `empty` is what a person reads when there is nothing."""
    items: Sequence[Mapping[str, Any]] = page["items"]
    if form is Output.CSV:
        write_csv(items, columns)
    elif form is not Output.TABLE:
        write_document(page, form)
    elif items:
        write_table(items, columns)
    else:
        print(empty)


def write_one(document: Mapping[str, Any], form: Output, columns: Sequence[Column]) -> None:
    """One item in the chosen form; as a table it is a list of names and values."""
    if form is Output.CSV:
        write_csv([document], columns)
    elif form is not Output.TABLE:
        write_document(document, form)
    else:
        shown = [(name.replace("_", " "), clean(short(find(document)))) for name, find in columns]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            if value:
                print(f"{name.ljust(width)}  {value}")
        sys.stdout.flush()


def span(seconds: float) -> str:
    """A length of time for people: `45s`, `3m20s`, `2h05m`, `3d4h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600}h"


def local_time(value: Any) -> str:
    """A time of the API in the reader's zone, to the second."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return str(value)
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if isinstance(value, datetime) else ""


def time_field(key: str) -> Column:
    """A column with a time: in the reader's zone for tables, which CSV shares."""
    return (key, lambda item: local_time(item.get(key)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else value


def short(value: Any) -> str:
    """A value on one line for people; what is empty in an object is left out."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k}={short(v)}" for k, v in value.items() if v not in (None, "", [], {}))
    if isinstance(value, list | tuple):
        return ", ".join(short(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
