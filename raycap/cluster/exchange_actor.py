"""The Exchange as an actor: what it is made from, so that Ray can start it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raycap.cluster.exchange import Exchange
from raycap.cluster.passing import tried_again
from raycap.train.prompts import PromptSchedule


class ExchangeActor(Exchange):
    """An Exchange in a process of its own, which Ray can start again.

    Args:
        prompts: file with the image ids, a JSON list. As an argument they would be freed once the actor is there (what
            is larger than 100 KB is), and it could not be started again.
        batch_size, lease_size, seed: see `PromptSchedule`.
        options: the other arguments of `Exchange`.

    Raises:
        OSError, ValueError: the file cannot be read, several times over, or is no JSON.
    """

    def __init__(self, prompts: str, *, batch_size: int, lease_size: int, seed: int, **options: Any) -> None:
        # raised here, an error would be the last of this actor: Ray starts again who dies, and not who cannot start
        ids = json.loads(tried_again("the Exchange", Path(prompts).read_text))
        schedule = PromptSchedule(ids, batch_size=batch_size, lease_size=lease_size, seed=seed)
        super().__init__(schedule, **options)
