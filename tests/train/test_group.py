"""Two real processes that learn together: gradients and numbers are added up over both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RANK = """
import json, sys
import torch, torch.distributed as dist
from torch import nn
from raycap.train.group import DistributedGroup

rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + meeting, rank=rank, world_size=2)
group = DistributedGroup()
module = nn.ParameterDict({
    "matrix": nn.Parameter(torch.zeros(2, 3)), "frozen": nn.Parameter(torch.zeros(2), requires_grad=False),
    "unused": nn.Parameter(torch.zeros(2)), "turned": nn.Parameter(torch.zeros(3, 2).t()),
})
((1 + rank) * (module["matrix"] * torch.arange(6.0).view(2, 3)).sum()).backward()
if rank:  # a rank whose leases used a parameter that the other's did not
    (module["turned"] * torch.arange(6.0).view(2, 3)).sum().backward()
group.sum_gradients(module.parameters())
found = {name: None if p.grad is None else p.grad.tolist() for name, p in module.items()}
found["numbers"] = group.sum_values([0.1 + rank, 2.0**-40, 1e300 * rank])
found["texts"] = group.gather_texts(f"of {rank}")
found["who"] = [group.rank, group.size]
open(out, "w").write(json.dumps(found))
dist.destroy_process_group()
"""


def test_gradients_and_numbers_are_added_up_over_both_ranks(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    outs = [tmp_path / f"rank-{rank}.json" for rank in range(2)]
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path / "meeting"), str(out)], env=environment,
                         stderr=subprocess.PIPE, text=True)
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        errors = [process.communicate(timeout=600)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], errors
    grid = [[0, 1, 2], [3, 4, 5]]
    for rank, out in enumerate(outs):
        found = json.loads(out.read_text())
        assert found["matrix"] == [[3 * value for value in row] for row in grid]
        assert found["turned"] == grid
        assert found["unused"] == [0, 0]
        assert found["frozen"] is None
        assert found["numbers"] == [pytest.approx(1.2), 2.0**-39, 1e300]
        assert found["who"] == [rank, 2]
