"""`raycap correlate`: the judgements' own rules by hand, the agreement by counting every pair."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest

from raycap.metrics.score import score_captions

CAPTIONS = {
    "a.jpg": ["A dog runs .", "A brown dog runs .", "The dog .", "A dog runs .", "An animal outside"],
    "b.jpg": ["Two cats sleep .", "Cats on a bed", "two cats", "sleeping cats", "A bed with cats"],
}
# image, judged caption, share of yes
CROWD = [
    ("a.jpg", "a.jpg#0", 1.0),
    ("a.jpg", "b.jpg#2", 0.0),
    ("a.jpg", "a.jpg#1", 0.75),
    ("a.jpg", "a.jpg#3", 0.5),  # the text of #0 once more: it takes no second reference away
    ("b.jpg", "b.jpg#0", 1.0),
    ("b.jpg", "a.jpg#4", 0.25),
    ("b.jpg", "b.jpg#0", 0.5),
]
# what is left of the five: a.jpg loses one of its two "A dog runs ." and "A brown dog runs .", b.jpg its first
LEFT = {"a.jpg": ["The dog .", "A dog runs .", "An animal outside"], "b.jpg": CAPTIONS["b.jpg"][1:]}
EXPERT = [
    ("a.jpg", "a.jpg#0", (4, 4, 4)),  # its own caption: left out
    ("a.jpg", "b.jpg#0", (1, 1, 2)),
    ("b.jpg", "a.jpg#0", (3, 2, 4)),
    ("b.jpg", "a.jpg#4", (1, 2, 1)),
]


def text(caption_id: str) -> str:
    name, number = caption_id.split("#")
    return CAPTIONS[name][int(number)]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    lines = [f"{name}#{n}\t{caption}\n" for name, captions in CAPTIONS.items() for n, caption in enumerate(captions)]
    (tmp_path / "Flickr8k.token.txt").write_text("".join(lines))
    crowd = [f"{image}\t{caption_id}\t{share}\t3\t0\n" for image, caption_id, share in CROWD]
    (tmp_path / "CrowdFlowerAnnotations.txt").write_text("".join(crowd))
    expert = ["\t".join([image, caption_id, *map(str, scores)]) + "\n" for image, caption_id, scores in EXPERT]
    (tmp_path / "ExpertAnnotations.txt").write_text("".join(expert))
    return tmp_path


def kendall(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """τ-b and τ-c from the definition."""
    pairs = list(combinations(zip(x, y, strict=True), 2))
    signs = [((a > c) - (a < c)) * ((b > d) - (b < d)) for (a, b), (c, d) in pairs]
    differ = [sum(a != c for (a, _), (c, _) in pairs), sum(b != d for (_, b), (_, d) in pairs)]
    m = min(len(set(x)), len(set(y)))
    return sum(signs) / math.sqrt(differ[0] * differ[1]), 2 * sum(signs) * m / (len(x) ** 2 * (m - 1))


def expected(captions: list[str], references: list[list[str]], times: list[list[float]]) -> dict[str, dict[str, float]]:
    """Every row is an image of its own to the metrics."""
    scores = score_captions(dict(enumerate(captions)), dict(enumerate(references)))  # type: ignore[arg-type]
    human = [value for values in times for value in values]
    found = {}
    for key in scores.metrics:
        column = [row[key] for row in scores.per_image.values()]
        if len(set(column)) == 1:  # nothing to order
            continue
        repeated = [value for value, values in zip(column, times, strict=True) for _ in values]
        tau_b, tau_c = kendall(repeated, human)
        found[key] = {"tau_b": pytest.approx(tau_b), "tau_c": pytest.approx(tau_c), "n": len(human)}
    return found


def test_crowdflower(raycap, published: Path) -> None:
    result = raycap("correlate", "--judgements", "flickr8k-crowdflower", "--root", published)
    content = json.loads(result.stdout)
    assert content["schema_version"] == 1
    assert content["metrics"] == expected(
        [text(caption_id) for _, caption_id, _ in CROWD],
        [LEFT[image] for image, _, _ in CROWD],
        [[share] for _, _, share in CROWD],
    )
    assert list(content["metrics"]) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert f"tau-b {100 * content['metrics']['cider_d']['tau_b']:6.2f}" in result.stderr


def test_expert(raycap, published: Path) -> None:
    result = raycap("correlate", "--judgements", "flickr8k-expert", "--root", published)
    rows, metrics = EXPERT[1:], json.loads(result.stdout)["metrics"]
    assert metrics["rouge_l"]["n"] == 9
    assert metrics == expected(
        [text(caption_id) for _, caption_id, _ in rows],
        [CAPTIONS[image] for image, _, _ in rows],
        [list(map(float, scores)) for _, _, scores in rows],
    )


def test_a_file_of_ones_own(raycap, tmp_path: Path) -> None:
    rows = [("a dog runs", 3), ("a cat", 1), ("the dog", 2.5), ("", 0)]
    references = ["a dog runs fast", "the brown dog"]
    lines = [json.dumps({"image_id": "x", "caption": c, "references": references, "score": s}) for c, s in rows]
    (tmp_path / "judged.jsonl").write_text("\n".join(lines) + "\n\n")
    out = tmp_path / "tau.json"
    result = raycap(
        "correlate", "--judgements", tmp_path / "judged.jsonl", "--metrics", "rouge,clipscore", "--out", out
    )
    assert (result.exit_code, result.stdout) == (0, "")
    content = json.loads(out.read_text())
    wanted = expected([c for c, _ in rows], [references] * 4, [[float(s)] for _, s in rows])
    assert content["metrics"] == {"rouge_l": wanted["rouge_l"]}
    assert "CLIP" in content["unavailable"]["clipscore"]


def test_equal_scores_have_no_order(raycap, tmp_path: Path) -> None:
    line = json.dumps({"image_id": "x", "caption": "a dog", "references": ["a cat"], "score": 1})
    (tmp_path / "judged.jsonl").write_text(f"{line}\n{line}\n")
    content = json.loads(raycap("correlate", "--judgements", tmp_path / "judged.jsonl", "--metrics", "rouge").stdout)
    assert content["metrics"] == {}
    assert "no order" in content["unavailable"]["rouge_l"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("CrowdFlowerAnnotations.txt", "a.jpg a.jpg#0 1 3\n", "CrowdFlowerAnnotations.txt:1"),
        ("CrowdFlowerAnnotations.txt", "a.jpg a.jpg#0 1 3 0\na.jpg a.jpg#9 1 3 0\n", "'a.jpg#9'"),
        ("CrowdFlowerAnnotations.txt", "a.jpg a.jpg#0 yes 3 0\n", "'yes'"),
        ("CrowdFlowerAnnotations.txt", "a.jpg a.jpg#0 nan 3 0\n", "'nan'"),
        ("CrowdFlowerAnnotations.txt", "a.jpg a.jpg#0 1 3 0\n", "fewer than two"),
        ("CrowdFlowerAnnotations.txt", "c.jpg a.jpg#0 1 3 0\na.jpg a.jpg#0 1 3 0\n", "no reference"),
        ("CrowdFlowerAnnotations.txt", None, "CrowdFlowerAnnotations.txt"),
        ("Flickr8k.token.txt", None, "Flickr8k.token.txt"),
        ("Flickr8k.token.txt", b"a.jpg#0\tna\xefve\n", "Flickr8k.token.txt"),
    ],
)
def test_faults_of_the_published_files(refused, published: Path, name: str, content, named: str) -> None:
    file = published / name
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert named in refused("correlate", "--judgements", "flickr8k-crowdflower", "--root", published)


def test_faults_of_a_file_of_ones_own(refused, tmp_path: Path) -> None:
    file = tmp_path / "judged.jsonl"
    good = '{"image_id": "x", "caption": "a", "references": ["b"], "score": 1}\n'
    for bad in ("{", "[]", '{"caption": "a"}', good.replace('["b"]', "[]"), good.replace("1}", '"1"}'),
                good.replace("1}", "true}"), good.replace("1}", "NaN}"), good.replace("1}", "1" + "0" * 400 + "}"),
                good.replace('"image_id": "x", ', ""), good.replace('"x"', "1.5"), good.replace('"x"', "true"),
                good.replace('"x"', '""'), good.replace("1}", '1, "score": 2}'), good.replace('["b"]', '["b", 3]'),
                good.replace('["b"]', '[" "]'), good.replace('["b"]', '["b", " "]'),
                good.replace('"a"', "null")):  # fmt: skip
        file.write_text(good + bad + "\n")
        assert f"{file}:2" in refused("correlate", "--judgements", file)
    file.write_text(good)
    assert "fewer than two" in refused("correlate", "--judgements", file)
    assert "gone.jsonl" in refused("correlate", "--judgements", tmp_path / "gone.jsonl")
    assert "--root" in refused("correlate", "--judgements", "flickr8k-expert")
    assert "choose from" in refused("correlate", "--judgements", file, "--metrics", "beauty")
    line = refused("correlate", "--judgements", tmp_path / "gone.jsonl", "--out", tmp_path)
    assert line.startswith(f"raycap: --out = '{tmp_path}': is a folder")
