from __future__ import annotations

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from raycap.errors import DataError, WorkFailed
from raycap.evaluate.results import ResultRow, mean_std, read_results, replace_split, write_results


def row(
    label: str = "scst", seed: int = 0, cider: float = 0.9, decoding: str = "greedy", split: str = "test"
) -> ResultRow:
    return ResultRow("scst", label, split, decoding, seed, {"cider_d": cider, "bleu_4": 0.3}, 12.5)


def test_rows_survive_the_file(tmp_path: Path) -> None:
    full = replace(
        row(), steps=200, num_images=400, signature="s", judge="vit", unavailable={"meteor": "no Java"}, seconds=None
    )
    rows = [row("mle_best", cider=0.1 + 0.2), full]
    write_results(tmp_path / "deep" / "results.json", rows)
    assert read_results(tmp_path / "deep" / "results.json") == rows


def test_the_file_is_what_the_architecture_promises(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_results(file, [row()])
    data = json.loads(file.read_text())
    assert data == {
        "schema_version": 1,
        "rows": [
            {"stage": "scst", "label": "scst", "split": "test", "decoding": "greedy", "seed": 0,
             "metrics": {"cider_d": 0.9, "bleu_4": 0.3}, "seconds": 12.5},
        ],
    }  # fmt: skip


def test_a_split_reported_again_replaces_its_rows_and_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    replace_split(file, "test", [row("mle_best", cider=0.5), row(cider=0.6), row(decoding="beam")])
    replace_split(file, "dev", [row(split="dev", cider=0.4)])
    merged = replace_split(file, "test", [row("mle_best", cider=0.7), row(seed=1)])
    assert [(r.label, r.split, r.decoding, r.seed, r.metrics["cider_d"]) for r in merged] == [
        ("scst", "dev", "greedy", 0, 0.4),
        ("mle_best", "test", "greedy", 0, 0.7),
        ("scst", "test", "greedy", 1, 0.9),
    ]
    assert read_results(file) == merged


def _replace(file: Path, number: int) -> None:
    replace_split(file, f"split-{number}", [row(split=f"split-{number}", seed=number)])


def test_jobs_that_finish_together_all_keep_their_rows(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        pool.starmap(_replace, [(file, number) for number in range(16)])
    assert sorted(r.seed for r in read_results(file)) == list(range(16))


def test_no_file_means_no_rows(tmp_path: Path) -> None:
    assert read_results(tmp_path / "results.json") == []


GOOD = row().to_json()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema_version"),
        ('{"schema_version": 2, "rows": []}', "= 2"),
        ('{"schema_version": 1}', "list of rows"),
        (json.dumps({"schema_version": 1, "rows": [{**GOOD, "speed": 1}]}), "'speed'"),
        (json.dumps({"schema_version": 1, "rows": [{k: v for k, v in GOOD.items() if k != "seed"}]}), "lacks 'seed'"),
        (
            json.dumps({"schema_version": 1, "rows": [GOOD, {**GOOD, "metrics": {"cider_d": "0.9"}}]}),
            r"rows\[1\].metrics",
        ),
        (json.dumps({"schema_version": 1, "rows": [{**GOOD, "seed": "0"}]}), "whole number"),
        (json.dumps({"schema_version": 1, "rows": [{**GOOD, "label": 3}]}), "label = 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(content)
    with pytest.raises(DataError, match=says) as raised:
        read_results(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_that_is_no_number_never_becomes_a_row(value: float) -> None:
    with pytest.raises(WorkFailed, match="cider_d"):
        row(cider=value)


def test_measured_and_unavailable_at_once_is_a_contradiction() -> None:
    with pytest.raises(WorkFailed, match="both"):
        replace(row(), unavailable={"bleu_4": "no"})


def test_mean_and_sample_deviation_over_seeds() -> None:
    (summary,) = mean_std([row(seed=2, cider=0.3), row(seed=0, cider=0.1), row(seed=1, cider=0.2)])
    assert summary.seeds == (0, 1, 2)
    assert summary.values("cider_d") == (0.1, 0.2, 0.3)
    assert summary.mean["cider_d"] == pytest.approx(0.2)
    assert summary.std["cider_d"] == pytest.approx(0.1)  # n - 1 in the denominator
    assert summary.seconds == 12.5


def test_one_seed_has_no_deviation() -> None:
    (summary,) = mean_std([row()])
    assert summary.std == {}


def test_a_metric_that_one_seed_lacks_has_no_mean() -> None:
    lacking = ResultRow("scst", "scst", "test", "greedy", 1, {"cider_d": 0.8}, 1.0, unavailable={"spice": "no jars"})
    (summary,) = mean_std([row(), lacking])
    assert "bleu_4" not in summary.mean
    assert summary.values("bleu_4") == ()
    assert summary.unavailable == {"bleu_4": "not measured for seed 1", "spice": "no jars"}


def test_what_can_be_compared_stands_together() -> None:
    rows = [row(label, seed, decoding=d) for seed in (0, 1) for label in ("mle", "scst") for d in ("greedy", "beam")]
    order = [(s.decoding, s.label, len(s.rows)) for s in mean_std(rows)]
    assert order == [("greedy", "mle", 2), ("greedy", "scst", 2), ("beam", "mle", 2), ("beam", "scst", 2)]
