"""Tables that hold captions: CSV and TSV with a header, JSON lines, one JSON document. Rows come with their place."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from raycap.data.input_report import InputReport
from raycap.data.text import read_bytes, read_lines
from raycap.errors import DataError
from raycap.metrics.files import parse_json


def read_csv(
    path: Path, report: InputReport, *, asked: Callable[[dict[str, str]], bool] = lambda row: True
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("file:line", {column: value}) for each row; column names are stripped and lower case.

    The separator is a tab in `.tsv`, else a comma, unless the header has only semicolons or tabs. Fields may be quoted
    and then hold separators and line breaks. A row with another number of fields than the header, or with a quote that
    is never closed, is `line_malformed`.

    Args:
        asked: whether a damaged row is of an asked split, as far as its fields, in their order, still tell; if not, it
            is only noted. Lines that a stray quote joins are nobody's in particular and always a fault.

    Raises:
        DataError: the header names a column twice, or cannot be read.
    """
    columns: list[str] = []
    separator = ","

    def whose(line: str) -> bool:
        fields = (field.strip().strip('"') for field in line.split(separator))
        return not columns or asked(dict(zip(columns, fields, strict=False)))

    numbered: list[tuple[int, str]] = []
    for number, line in read_lines(path, report, asked=whose):
        if not numbered:
            columns, separator = _header(line, path)
        numbered.append((number, line))
    if not numbered:
        return
    rows = csv.reader(
        (line + "\n" for _, line in numbered[1:]), delimiter=separator, strict=True, skipinitialspace=True
    )
    while True:
        first = rows.line_num + 1
        where = f"{path.name}:{numbered[first][0]}" if first < len(numbered) else path.name
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            last = f" to {numbered[rows.line_num][0]}" if rows.line_num > first else ""
            detail = f"{error} (lines {numbered[first][0]}{last} are lost to a stray quote)"
            report.add("line_malformed", where, detail, asked=bool(last) or whose(numbered[first][1]))
            continue
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(columns):
            counts = f"{len(fields)} fields, the header has {len(columns)}"
            detail = f"{counts}; a caption with {separator!r} needs quotes around it"
            named = dict(zip(columns, (field.strip() for field in fields), strict=False))
            report.add("line_malformed", where, detail, asked=rows.line_num > first or asked(named))
            continue
        yield where, dict(zip(columns, (field.strip() for field in fields), strict=True))


def csv_columns(path: Path) -> list[str]:
    """The column names of a CSV file; [] when it is empty.

    Raises:
        DataError: the header is not UTF-8, or the whole file is not; or it names a column twice, or cannot be read.
    """
    report = InputReport()
    first = next(read_lines(path, report), None)
    if report.refused:
        raise DataError(str(report.refused[0]), key="data.root", value=str(path), remedy="save the table as UTF-8")
    return _header(first[1], path)[0] if first else []


def _header(line: str, path: Path) -> tuple[list[str], str]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    if separator not in line:
        separator = next((other for other in (",", "\t", ";") if other in line), separator)
    try:
        columns = next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error as error:
        what = f"the header of {path.name} cannot be read: {error}"
        raise DataError(what, key="data.root", value=str(path), remedy="give it the header image,caption") from error
    names = [column.strip().lower() for column in columns]
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        what = f"{path.name} has two columns {twice!r} (its header: {', '.join(names)})"
        raise DataError(what, key="data.root", value=str(path), remedy="keep one; a further caption is a further row")
    return names, separator


def note_unread_columns(path: Path, columns: Iterable[str], read: Collection[str | None], report: InputReport) -> None:
    """Notes the columns (or keys) of a table that nothing is made of: a misspelt one is among them."""
    unread = [column for column in columns if column and column not in read]
    if unread:
        detail = f"not read: {', '.join(unread)}"
        report.note("unknown_column", path.name, detail, count=len(unread))


def read_json_lines(
    path: Path, report: InputReport, *, asked: Callable[[dict[str, Any]], bool] = lambda entry: True
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file:line", object) for each line; its keys are stripped and lower case, as the columns of a CSV file.

    A line that is no JSON object, or has a key twice, is `line_malformed`, whichever splits are asked for.

    Args:
        asked: whether the object of a line that is not UTF-8 is of an asked split; if not, it is only noted.
    """

    def whose(line: str) -> bool:
        try:
            return asked(_json_entry(line, path.name))
        except (DataError, ValueError, RecursionError):
            return True

    for number, line in read_lines(path, report, asked=whose):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            entry = _json_entry(line, where)
        except DataError as error:
            report.add("line_malformed", where, error.what)
        except (ValueError, RecursionError) as error:
            report.add("line_malformed", where, f"no JSON: {error}")
        else:
            yield where, entry


def _json_entry(line: str, where: str) -> dict[str, Any]:
    """The object of a line; raises DataError where it is none or has a key twice, ValueError or RecursionError where
    it is no JSON."""
    entry = _unambiguous_json(line, where)
    if not isinstance(entry, dict):
        raise DataError(f"expected a JSON object, found {type(entry).__name__}", key=where)
    keys = [key.strip().lower() for key in entry]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        what = f"two keys are {twice[0]!r} but for case and blanks (its keys: {', '.join(entry)}); keep one"
        raise DataError(what, key=where)
    return dict(zip(keys, entry.values(), strict=True))


def _unambiguous_json(text: str, name: str) -> Any:
    """As `parse_json`, with the keys that are there twice in the sentence."""
    try:
        return parse_json(text, name)
    except DataError as error:
        twice = ", ".join(map(repr, error.value or ()))
        raise DataError(f"an object has a key twice: {twice}; keep one", key=name) from error


def read_json(path: Path) -> dict[str, Any]:
    """One JSON document that is an object; raises DataError with the place of the fault: nothing of it can be used.

    A key twice in one of its objects is a fault, because only one of the values would be read.
    """
    content = read_bytes(path)
    try:
        document = _unambiguous_json(content.decode("utf-8-sig"), path.name)
    except (DataError, ValueError, RecursionError) as error:
        what = f"{path.name}: {error.what}" if isinstance(error, DataError) else f"{path.name} is no JSON: {error}"
        raise DataError(what, key="data.root", value=str(path), remedy="repair it") from error
    if not isinstance(document, dict):
        raise DataError(f"{path.name} holds no JSON object", key="data.root", value=str(path), remedy="repair it")
    return document
