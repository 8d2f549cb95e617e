"""The loops of `raycap.train` on Ray: plain classes that become actors at the edge, and the stages of a run."""

import os

# Ray Train's chatter between two lines of progress; read by Ray when it is first imported. (The state query fails
# once a second wherever Ray runs without its dashboard; the watcher is for preemptible machines.)
_CHATTER = (
    "Failed to query Ray Train Controller actor state|PreemptionWatcher|Reporting training result|"
    "Setting up process group|Attempting to start training worker group|Started training worker group|world_rank="
)
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _CHATTER)
