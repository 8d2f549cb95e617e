"""How long a whole step of SCST takes, ours against the obvious script, and what scoring needs of memory.

Prints one JSON object.

    python benchmarks/step.py [--model llama15m] [--images 32] [--samples 5] [--rounds 3]

The obvious script: `generate` for greedy captions, `generate` for samples, pycocoevalcap's CIDEr-D of both, a forward
of prefix and caption in every row, log-softmax over all its logits, backward, Adam. Ours: the same in the parts that
training uses, in one process too. Keys: `step_ratio`, `timeline_s` (generate, reward, learn), `obvious_timeline_s`,
`scoring_peak_bytes` (by K: most memory beyond what was held before, while captions of B images are scored and their
gradients computed) and `scoring_peak_ratio` (K = 16 over K = 1). Lengths of captions are prescribed, see
`language_models.py`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_models import BUILD, LIMIT, Prescribed, hugging_face, plain, prescribed, weights_of
from torch import Tensor

from raycap.data.features import FeatureStore, write_meta, write_shard
from raycap.decoding.sample import generate
from raycap.metrics.cider import EOS, cider_d, prepare_training
from raycap.metrics.ptb import tokenize
from raycap.recipe import SCSTRecipe
from raycap.train.learner import Learner
from raycap.types import ComponentScores, Generation, Lease, Prompt, Rollouts, WeightsId

WIDTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama15m", choices=["llama15m", "smollm135m"])
    parser.add_argument("--images", type=int, default=32, help="B")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--scoring", type=int, help="measure the memory of scoring so many captions an image, alone")
    asked = parser.parse_args()
    captioner = BUILD[asked.model]().to(asked.device).eval()
    with tempfile.TemporaryDirectory() as folder:
        task = Task(captioner, asked.images, asked.scoring or asked.samples, Path(folder), asked.device)
        if asked.scoring:
            print(task.scoring_peak())
            return
        report = {"model": asked.model, "weights": weights_of(asked.model), "images": asked.images,
                  "samples": asked.samples, "device": asked.device,
                  "threads": torch.get_num_threads(), **compare(task, asked.rounds)}  # fmt: skip
    # a process each: memory that was freed and kept would hide what the next one needs
    command = [
        sys.executable,
        __file__,
        "--model",
        asked.model,
        "--images",
        str(asked.images),
        "--device",
        asked.device,
    ]
    peaks = {k: int(subprocess.run([*command, "--scoring", k], check=True, capture_output=True, text=True).stdout)
             for k in ("1", "16")}  # fmt: skip
    report |= {"scoring_peak_bytes": peaks, "scoring_peak_ratio": peaks["16"] / peaks["1"]}
    print(json.dumps(report))


def compare(task: Task, rounds: int) -> dict[str, Any]:
    """Steps of both sides in turn; medians after one each that warms up."""
    ours, theirs = [], []
    for number in range(rounds + 1):
        ours.append(task.step(number))
        theirs.append(task.obvious_step())
    timelines = [{part: statistics.median(each[part] for each in side[1:]) for part in side[0]}
                 for side in (ours, theirs)]  # fmt: skip
    whole = [statistics.median(sum(each.values()) for each in side[1:]) for side in (ours, theirs)]
    return {"step_ratio": whole[1] / whole[0], "step_s": whole[0], "timeline_s": timelines[0],
            "obvious_step_s": whole[1], "obvious_timeline_s": timelines[1]}  # fmt: skip


class Task:
    """B images, their references, the lengths of their captions, and a policy with its optimizer on each side."""

    def __init__(self, captioner: Any, images: int, samples: int, folder: Path, device: str) -> None:
        self.captioner, self.samples, self.device = captioner, samples, device
        draws = np.random.default_rng(1)
        self.ids = [f"image-{n}" for n in range(images)]
        self.shown = draws.standard_normal((images, WIDTH)).astype(np.float32)
        write_shard(folder, 0, self.ids, self.shown)
        write_meta(folder, shape=(WIDTH,), shards=1, source="benchmark")
        words = draws.integers(3, captioner.tokenizer.vocab_size, (images, 5, 11))
        self.references = {i: [captioner.tokenizer.decode(list(row)) for row in rows]
                           for i, rows in zip(self.ids, words, strict=True)}  # fmt: skip
        tokenized = {i: [tokenize(text) for text in texts] for i, texts in self.references.items()}
        _, self.prepared = prepare_training(tokenized, EOS)
        self.lengths = prescribed(images, samples + 1).to(device)
        self.recipe = SCSTRecipe(batch_size=images, lease_size=images, num_samples=samples, lr=1e-5)
        self.learner = Learner(captioner, FeatureStore.open(folder), self.recipe, {"cider": 1.0})
        self.lease = Lease(0, 0, tuple(Prompt(i, n) for n, i in enumerate(self.ids)))
        self.features = torch.from_numpy(self.shown).to(device)
        self.plain = plain(captioner)
        self.adam = torch.optim.Adam(self.plain.parameters(), lr=1e-5, fused=True)

    def step(self, number: int) -> dict[str, float]:
        """Ours; seconds by part."""
        marks = [self._now()]
        made = self._generate(number)
        marks.append(self._now())
        scores = self._reward(made)
        marks.append(self._now())
        lease = replace(self.lease, step=number)
        self.learner.update([Rollouts(lease, WeightsId(0, number), made, {"cider": scores})])
        marks.append(self._now())
        return _parts(marks)

    def _generate(self, number: int) -> Generation:
        ends = Prescribed(self.captioner, self.lengths)
        return generate(ends, self.features, num_samples=self.samples, greedy=True, max_length=LIMIT, step=number)

    def _reward(self, made: Generation) -> ComponentScores:
        captions = [tokenize(text) for text in (*made.captions, *made.greedy_captions)]
        images = [image for image in self.ids for _ in range(self.samples)] + self.ids
        finished = [*made.finished.tolist(), *made.greedy_finished.tolist()]
        values = cider_d(captions, images, self.prepared, finished=finished).astype(np.float32)
        sampled = values[: len(made.captions)].reshape(len(self.ids), self.samples)
        return ComponentScores(sampled, values[len(made.captions) :])

    def obvious_step(self) -> dict[str, float]:
        """Theirs; seconds by part."""
        marks = [self._now()]
        made: list[Tensor] = hugging_face(self.plain, self.features, self.lengths, self.samples)()
        marks.append(self._now())
        sampled, greedy = (self._obvious_rewards(tokens) for tokens in made[::-1])
        advantages = torch.from_numpy(sampled.reshape(-1, self.samples) - greedy[:, None]).float().to(self.device)
        marks.append(self._now())
        self._obvious_update(made[1], advantages.reshape(-1))
        marks.append(self._now())
        return _parts(marks)

    def _obvious_rewards(self, tokens: Tensor) -> np.ndarray:
        from pycocoevalcap.cider.cider import Cider

        each = len(tokens) // len(self.ids)
        captions = [self.captioner.tokenizer.decode(_until_eos(row)) for row in tokens.tolist()]
        gts = {n: self.references[self.ids[n // each]] for n in range(len(tokens))}
        _, scores = Cider().compute_score(gts, {n: [caption] for n, caption in enumerate(captions)})
        return np.asarray(scores)

    def _obvious_update(self, tokens: Tensor, advantages: Tensor) -> None:
        lm = self.plain.lm
        prefix = self.plain.encode(self.features).repeat_interleave(self.samples, dim=0)
        embedded = torch.cat([prefix, lm.get_input_embeddings()(tokens)], dim=1)
        logits = lm(inputs_embeds=embedded, use_cache=False).logits[:, prefix.shape[1] - 1 : -1]
        picked = torch.log_softmax(logits, dim=-1).gather(2, tokens[:, :, None])[:, :, 0]
        before = (tokens == 2).int().cumsum(dim=1) - (tokens == 2).int()
        loss = -(advantages[:, None] * picked * (before == 0)).sum() / len(tokens)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.plain.parameters(), 1.0)
        self.adam.step()

    def scoring_peak(self) -> int:
        """Bytes beyond what is held when scoring begins; gradients and optimizer are there by then."""
        rewards = np.random.default_rng(2).random((len(self.ids), self.samples)).astype(np.float32)
        scores = {"cider": ComponentScores(rewards, np.zeros(len(self.ids), np.float32))}
        made = self._generate(0)
        one = {"cider": ComponentScores(rewards[:1], np.zeros(1, np.float32))}
        first = replace(self.lease, prompts=self.lease.prompts[:1])
        self.learner.update([Rollouts(first, WeightsId(0, 0), self._of_the_first_image(made), one)])
        return _peak_of(lambda: self.learner.update([Rollouts(self.lease, WeightsId(0, 1), made, scores)]), self.device)

    def _of_the_first_image(self, made: Generation) -> Generation:
        rows = slice(0, self.samples)
        return replace(made, tokens=made.tokens[rows], lengths=made.lengths[rows], finished=made.finished[rows],
                       behavior_logprobs=made.behavior_logprobs[rows], captions=made.captions[rows],
                       greedy_captions=made.greedy_captions[:1], greedy_finished=made.greedy_finished[:1])  # fmt: skip

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def _peak_of(work: Callable[[], object], device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - held
    ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept is not held
    held = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    work()
    return _resident("VmHWM") - held


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _parts(marks: list[float]) -> dict[str, float]:
    return dict(zip(("generate", "reward", "learn"), np.diff(marks).tolist(), strict=True))


def _until_eos(ids: list[int]) -> list[int]:
    return ids[: ids.index(2)] if 2 in ids else ids


if __name__ == "__main__":
    main()
