"""Photos in, better captions out: every stage of a recipe, by default prepare … MLE, SCST, evaluate.

ray job submit --address http://127.0.0.1:8265 --runtime-env-json '{"working_dir": "."}' -- \
    python jobs/scst.py recipe=scenes storage=/absolute/folder [key=value ...]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a job runs in a copy of the checkout

from raycap.cluster.job import main

if __name__ == "__main__":
    main(default="scenes")
