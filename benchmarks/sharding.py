"""What a rank of the learner holds when all have the whole captioner and when they share it out (FSDP2).

Prints one JSON object.

    python benchmarks/sharding.py [--model smollm135m] [--ranks 2] [--images 4] [--samples 5] [--steps 3]

Each way has processes of its own (gloo, on the CPU, a thread each), which take some steps on the same captions. Keys:
`parameters` of the captioner, and by way (`none`, `fsdp`), one number a rank: `held_bytes` (parameters, gradients and
Adam's state after a step, counted), `resident_bytes` (of the process before the last step, beyond what it had before
the captioner was made), `peak_bytes` (the same at the worst moment of that step), and `step_s`, the median.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

WIDTH, LIMIT = 512, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm135m", choices=["llama15m", "smollm135m"])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--images", type=int, default=4, help="of each rank")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    ways = {way: _ranks(way, asked) for way in ("none", "fsdp")}
    report: dict[str, Any] = {"model": asked.model, "ranks": asked.ranks, "parameters": ways["none"][0]["parameters"]}
    for way, told in ways.items():
        keys = ("held_bytes", "resident_bytes", "peak_bytes", "step_s")
        report[way] = {key: [each[key] for each in told] for key in keys}
    print(json.dumps(report))


def _ranks(way: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(asked.ranks) as pool:
        return pool.starmap(_rank, [(rank, way, vars(asked), folder) for rank in range(asked.ranks)], chunksize=1)


def _rank(rank: int, way: str, asked: dict[str, Any], folder: str) -> dict[str, Any]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist
    import transformers.models.llama.modeling_llama  # libraries take room as well, and are not what is measured
    from language_models import BUILD

    from raycap.recipe import SCSTRecipe
    from raycap.train.group import DistributedGroup
    from raycap.train.learner import Learner
    from raycap.train.sharding import ShardingGroup

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=asked["ranks"])
    del transformers
    base = _resident("VmRSS")
    captioner = BUILD[asked["model"]]().eval()
    parameters = sum(p.numel() for p in captioner.parameters())
    recipe = SCSTRecipe(batch_size=asked["images"] * asked["ranks"], lease_size=asked["images"],
                        num_samples=asked["samples"], lr=1e-5, micro_batch=asked["samples"])  # fmt: skip
    group = ShardingGroup() if way == "fsdp" else DistributedGroup()
    words = captioner.tokenizer.vocab_size
    learner = Learner(captioner, _features(Path(folder) / f"rank-{rank}", asked["images"]), recipe, {"r": 1.0}, group)
    seconds, resident = [], 0
    for step in range(asked["steps"]):
        rollouts = _rollouts(rank, step, asked, words)
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept is not held
        resident = _resident("VmRSS") - base
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        started = time.perf_counter()
        learner.update([rollouts])
        seconds.append(time.perf_counter() - started)
    peak = _resident("VmHWM") - base
    states = [value for state in learner.optimizer.state.values() for value in state.values()]
    held = sum(map(_bytes, [*learner.descent.parameters, *(p.grad for p in learner.descent.parameters), *states]))
    return {"parameters": parameters, "held_bytes": held, "resident_bytes": resident, "peak_bytes": peak,
            "step_s": statistics.median(seconds)}  # fmt: skip


def _features(folder: Path, images: int) -> Any:
    import numpy as np

    from raycap.data.features import FeatureStore, write_meta, write_shard

    folder.mkdir()
    shown = np.random.default_rng(1).standard_normal((images, WIDTH)).astype(np.float32)
    write_shard(folder, 0, [f"image-{n}" for n in range(images)], shown)
    write_meta(folder, shape=(WIDTH,), shards=1, source="benchmark")
    return FeatureStore.open(folder)


def _rollouts(rank: int, step: int, asked: dict[str, Any], words: int) -> Any:
    import numpy as np

    from raycap.types import ComponentScores, Generation, Lease, Prompt, Rollouts, WeightsId

    images, samples = asked["images"], asked["samples"]
    rows, draws = images * samples, np.random.default_rng([rank, step])
    made = Generation(
        tokens=draws.integers(3, words, (rows, LIMIT)), lengths=draws.integers(4, LIMIT, rows),
        behavior_logprobs=np.full((rows, LIMIT), -np.log(words), np.float32), finished=np.ones(rows, bool),
        captions=("",) * rows, greedy_captions=("",) * images, greedy_finished=np.ones(images, bool),
        num_samples=samples,
    )  # fmt: skip
    scores = ComponentScores(draws.random((images, samples)).astype(np.float32), np.zeros(images, np.float32))
    lease = Lease(step, rank, tuple(Prompt(f"image-{n}", rank * images + n) for n in range(images)))
    return Rollouts(lease, WeightsId(0, step), made, {"r": scores})


def _bytes(tensor: Any) -> int:
    own = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return int(own.numel() * own.element_size())


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
