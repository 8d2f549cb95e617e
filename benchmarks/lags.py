"""What stale captions cost: learning curves of `scenes` at several lags, from the same captioners.

    python benchmarks/lags.py --storage /folder [--lags 0 1 4] [--seeds 0 1 2 3 4] [key=value ...]

Trains MLE once a seed, then SCST from it once a seed and lag (runs `lag-0`, `lag-1` ...), and evaluates on the test
split. What is finished is taken as it is: the same command goes on, and one with more seeds or lags trains those alone.
Prints one JSON object, and draws `lags.svg` into
the storage:

    by_lag.<n>.cider_d          greedy CIDEr-D on test by seed, and its mean
    by_lag.<n>.seconds          of SCST by seed
    by_lag.<n>.policy_lag       mean versions that captions were behind
    by_lag.<n>.ess              mean effective sample size, as a share
    by_lag.<n>.over_lag0        mean over seeds of (lag n − lag 0) / mean of lag 0, paired, and its 95% interval (t)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from raycap.whole_file import write_whole

SHARED = ("prepare", "clip", "features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True)
    parser.add_argument("--lags", type=int, nargs="+", default=[0, 1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("values", nargs="*", help="recipe values")
    asked = parser.parse_args()
    for lag in asked.lags:
        train(asked.storage.resolve(), lag, asked.lags[0], asked.seeds, asked.values)
    found = {lag: figures(asked.storage / f"lag-{lag}", asked.seeds) for lag in asked.lags}
    base = found[asked.lags[0]]["cider_d"]
    for each in found.values():
        each["over_lag0"] = compared(each["cider_d"], base)
    draw(asked.storage, asked.lags, asked.seeds)
    print(json.dumps({"seeds": asked.seeds, "by_lag": found}))


def train(storage: Path, lag: int, first: int, seeds: list[int], values: list[str]) -> None:
    """SCST at a lag; what comes before it is that of the first lag's run."""
    run = storage / f"lag-{lag}"
    before = done(run)
    if before.get("values") == values and set(seeds) <= set(before["seeds"]):
        return
    seeds = sorted({*seeds, *before.get("seeds", [])})  # all in one table
    stages = "[prepare,clip,features,mle,scst]"
    if lag != first:
        stages = "[scst]"
        for made in (*SHARED, *(f"seed-{seed}/mle" for seed in seeds)):
            take_over(storage / f"lag-{first}" / made, run / made)
    common = ["recipe=scenes", f"name=lag-{lag}", f"storage={storage}", f"seeds={seeds}",
              f"scst.max_policy_lag={lag}", *values]  # fmt: skip
    call([*common, f"stages={stages}"])
    call([*common, "stages=[evaluate]", "rerun=stale"])  # the table alone is made again where there are more seeds
    write_whole(run / DONE, json.dumps({"seeds": seeds, "values": values}))


DONE = "lags.json"
"""In a run, once all of it is there: for which seeds, with which values."""


def done(run: Path) -> dict[str, Any]:
    file = run / DONE
    return json.loads(file.read_text()) if file.exists() else {}


def take_over(source: Path, target: Path) -> None:
    """A copy of a stage that has finished, there whole or not at all."""
    if (target / "finished.json").exists() or not (source / "finished.json").exists():
        return
    begun = target.with_name(f".{target.name}.tmp")
    for left in (begun, target):
        shutil.rmtree(left, ignore_errors=True)
    shutil.copytree(source, begun)
    begun.rename(target)


def call(arguments: list[str]) -> None:
    command = [sys.executable, "-c", "from raycap.cli import main; main()", "run", *arguments]
    subprocess.run(command, check=True, stdout=sys.stderr, env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"})


def figures(run: Path, seeds: list[int]) -> dict[str, Any]:
    rows = json.loads((run / "results.json").read_text())["rows"]
    scst = {r["seed"]: r for r in rows if r["label"] == "scst" and r["decoding"] == "greedy"}
    logs = {seed: log_of(run, seed) for seed in seeds}
    cider = [scst[seed]["metrics"]["cider_d"] for seed in seeds]
    return {
        "cider_d": cider,
        "mean_cider_d": fmean(cider),
        "seconds": [scst[seed]["seconds"] for seed in seeds],
        "policy_lag": fmean(r["policy_lag"] for log in logs.values() for r in log if "policy_lag" in r),
        "ess": fmean(r["ess"] for log in logs.values() for r in log if "ess" in r),
    }


def compared(values: list[float], base: list[float]) -> dict[str, float]:
    """Mean paired difference over the base's mean, with a t interval over seeds."""
    gaps = (np.asarray(values) - np.asarray(base)) / fmean(base)
    if len(gaps) < 2 or not gaps.any():
        return {"mean": float(gaps.mean())}
    low, high = stats.t.interval(0.95, len(gaps) - 1, loc=gaps.mean(), scale=stats.sem(gaps))
    return {"mean": float(gaps.mean()), "low": float(low), "high": float(high)}


def log_of(run: Path, seed: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"seed-{seed}" / "scst" / "log.jsonl").read_text().splitlines()]


def draw(storage: Path, lags: list[int], seeds: list[int]) -> None:
    """CIDEr-D on `select` by step and by second, mean over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, places = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for lag in lags:
        looks = [[r for r in log_of(storage / f"lag-{lag}", seed) if "select_cider" in r] for seed in seeds]
        ciders = np.asarray([[r["select_cider"] for r in each] for each in looks]).mean(axis=0)
        for place, key in zip(places, ("step", "seconds"), strict=True):
            across = np.asarray([[r[key] for r in each] for each in looks]).mean(axis=0)
            place.plot(across, ciders, marker="o", label=f"lag {lag}")
            place.set_xlabel({"step": "learner steps", "seconds": "seconds of SCST"}[key])
    places[0].set_ylabel("CIDEr-D on select")
    places[0].legend()
    figure.tight_layout()
    figure.savefig(storage / "lags.svg")


if __name__ == "__main__":
    main()
