"""Reading result and reference files: text in, plain mappings out, anything doubtful refused by name.

Candidates: COCO results (`[{"image_id", "caption"}, ...]`), the same objects one a line (JSONL), or a plain mapping
`{"id": "caption"}`. References: COCO captions annotations (`images` and `annotations`), `{"id": ["caption", ...]}`, or
JSONL with `{"image_id", "references": [...]}` or `{"image_id", "caption"}` a line. Ids are strings: 42 is "42". Whether
both sides fit together is `score`'s business.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from raycap.errors import DataError

_CANDIDATE_FORMS = 'expected COCO results [{"image_id", "caption"}], JSONL of such objects, or {"image_id": "caption"}'
_REFERENCE_FORMS = 'expected COCO annotations, {"image_id": ["caption", ...]}, or JSONL {"image_id", "references"}'


def read_candidates(path: str | Path) -> dict[str, str]:
    """Image id → generated caption, in file order.

    Raises:
        DataError: the file cannot be read, is none of the known forms, or names an image twice.
    """
    return parse_candidates(_read(path), str(path))


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Image id → reference captions, in file order.

    Raises:
        DataError: the file cannot be read, is none of the known forms, names an image twice, or an annotation's
            image_id has no entry under `images`.
    """
    return parse_references(_read(path), str(path))


def parse_candidates(text: str, name: str = "candidates") -> dict[str, str]:
    """`read_candidates` on text; `name` is what errors call it."""
    data = _load(text, name)
    if isinstance(data, dict):
        for image, caption in data.items():
            if not isinstance(caption, str):
                raise DataError(f"the caption of {image!r} is no string", key=name, remedy=_CANDIDATE_FORMS)
        return dict(data)
    pairs = [(image_id_of(record, name), text_of(record, "caption", name, _CANDIDATE_FORMS)) for record in data]
    _refuse_duplicates((image for image, _ in pairs), "image_id", name)
    return dict(pairs)


def parse_references(text: str, name: str = "references") -> dict[str, list[str]]:
    """`read_references` on text; `name` is what errors call it."""
    data = _load(text, name)
    if isinstance(data, dict):
        if "annotations" in data and isinstance(data["annotations"], list):
            return _coco_references(data, name)
        return {image: captions_of(captions, image, name) for image, captions in data.items()}
    if data and all(isinstance(record, dict) and "references" in record for record in data):
        listed = [(image_id_of(record, name), record["references"]) for record in data]
        _refuse_duplicates((image for image, _ in listed), "image_id", name)
        return {image: captions_of(captions, image, name) for image, captions in listed}
    return _grouped(data, name)


def _coco_references(data: dict[str, Any], name: str) -> dict[str, list[str]]:
    images = data.get("images")
    if not isinstance(images, list):
        raise DataError("`annotations` without a list `images`", key=name, remedy=_REFERENCE_FORMS)
    listed = [image_id_of(record, name, "id") for record in images]
    _refuse_duplicates(listed, "images.id", name)
    references = _grouped(data["annotations"], name)
    known = set(listed)
    refuse(
        [image for image in references if image not in known],
        "image_id(s) of annotations have no entry under `images`",
        name,
        "add the images or drop their annotations",
    )
    return references


def _grouped(records: Sequence[Any], name: str) -> dict[str, list[str]]:
    references: dict[str, list[str]] = {}
    for record in records:
        caption = text_of(record, "caption", name, _REFERENCE_FORMS)
        references.setdefault(image_id_of(record, name), []).append(caption)
    return references


def refuse(examples: Sequence[str], what: str, key: str, remedy: str) -> None:
    """Raise DataError when there is anything in `examples`: their count and the first few are named."""
    if examples:
        raise DataError(f"{len(examples)} {what}", key=key, value=list(examples[:5]), remedy=remedy)


def _refuse_duplicates(names: Iterable[str], field: str, key: str) -> None:
    seen: set[str] = set()
    twice = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    refuse(list(dict.fromkeys(twice)), f"{field} value(s) occur more than once", key, "keep one entry for each image")


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as UTF-8 text: {error}", key=str(path)) from error


def _load(text: str, name: str) -> Any:
    """A JSON list or object; JSONL becomes a list. A single record counts as JSONL with one line."""
    if not text.strip():
        raise DataError("the file is empty", key=name)
    try:
        data = parse_json(text, name)
    except (ValueError, RecursionError) as whole_error:
        # a line ends at a line feed: U+2028 and its like may stand in a JSON string as they are
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        first = lines[0][1].strip()
        if len(lines) < 2 or not first.startswith("{") or not first.endswith("}"):
            raise DataError(f"no valid JSON: {whole_error}", key=name) from whole_error
        data = [_line(line, number, name) for number, line in lines]
    if isinstance(data, dict):
        return [data] if "image_id" in data else data
    if not isinstance(data, list):
        raise DataError(f"a JSON {type(data).__name__}, no list or object", key=name)
    return data


def _line(line: str, number: int, name: str) -> Any:
    try:
        return parse_json(line, f"{name}:{number}")
    except (ValueError, RecursionError) as error:
        raise DataError(f"line {number} is no valid JSON: {error}", key=name, value=line[:80]) from error


def parse_json(text: str, name: str) -> Any:
    """What a JSON text holds; no object of it may have a key twice.

    Raises:
        DataError: a key twice, under `name`.
        ValueError, RecursionError: no JSON.
    """

    def unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A JSON object; Python would keep the last of two equal keys without a word."""
        found = dict(pairs)
        if len(found) != len(pairs):
            _refuse_duplicates((key for key, _ in pairs), "key(s) of a JSON object", name)
        return found

    return json.loads(text, object_pairs_hook=unambiguous)


def image_id_of(record: Any, name: str, field: str = "image_id") -> str:
    """The id of an entry as a string; a DataError under `name` where there is none."""
    value = record.get(field) if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise DataError(f"an entry has no usable `{field}` (a string or an integer)", key=name, value=_short(record))
    return str(value)


def text_of(record: Any, field: str, name: str, forms: str) -> str:
    """A field of an entry that must be a string; a DataError under `name`, with the known forms, where it is none."""
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise DataError(f"an entry has no string `{field}`", key=name, value=_short(record), remedy=forms)
    return value


def captions_of(value: Any, image: str, name: str, forms: str = _REFERENCE_FORMS) -> list[str]:
    """An image's references, which must be a list of strings; a DataError under `name` where they are none."""
    if not isinstance(value, list) or not all(isinstance(caption, str) for caption in value):
        raise DataError(f"the references of {image!r} are no list of strings", key=name, remedy=forms)
    return value


def _short(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False)[:120]
