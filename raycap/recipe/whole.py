"""The recipe as a whole, and the contradictions between its sections that no single field can see."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from raycap.recipe.sections import (
    THROUGH_CLIP,
    CaptionerRecipe,
    ClipRecipe,
    ClusterRecipe,
    DataRecipe,
    EvaluateRecipe,
    FeaturesRecipe,
    LoggingRecipe,
    MLEContinuedRecipe,
    MLERecipe,
    RewardRecipe,
    SCSTRecipe,
    Section,
    looks_through_clip,
    same_backbone,
)

Stage = Literal["prepare", "clip", "features", "mle", "scst", "mle_continued", "evaluate"]


class Recipe(Section):
    """A run: its stages in order and all their values."""

    name: str = Field(
        ..., pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$", description="of the run: its folder under `storage`"
    )
    stages: list[Stage] = Field(..., min_length=1, description="run in this order; what is finished is reused")
    storage: str | None = Field(None, description="absolute path that all nodes see (also RAYCAP_STORAGE)")
    seed: int = Field(0, ge=0, description="of weights, order and samples")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        [], description="several runs, one a seed, in seed-<n>/; `prepare`, `clip`, `features` shared"
    )
    rerun: Literal["refuse", "stale"] = Field(
        "refuse", description="what to do with finished stages that a change made stale"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    data: DataRecipe = Field(default_factory=lambda: DataRecipe(), description="where images and captions come from")
    features: FeaturesRecipe = Field(
        default_factory=lambda: FeaturesRecipe(), description="the frozen encoder's output"
    )
    clip: ClipRecipe = Field(default_factory=lambda: ClipRecipe(), description="the CLIPs that reward and judge")
    captioner: CaptionerRecipe = Field(default_factory=lambda: CaptionerRecipe(), description="the model")
    mle: MLERecipe = Field(default_factory=lambda: MLERecipe(), description="cross-entropy on the labelled images")
    mle_continued: MLEContinuedRecipe = Field(
        default_factory=lambda: MLEContinuedRecipe(), description="the control: cross-entropy for as long as SCST took"
    )
    scst: SCSTRecipe = Field(default_factory=lambda: SCSTRecipe(), description="self-critical sequence training")
    rewards: dict[str, RewardRecipe] = Field({"cider": RewardRecipe()}, description="components by name")
    evaluate: EvaluateRecipe = Field(default_factory=lambda: EvaluateRecipe(), description="metrics and report")
    logging: LoggingRecipe = Field(default_factory=lambda: LoggingRecipe(), description="where else the log goes")
    cluster: ClusterRecipe = Field(default_factory=lambda: ClusterRecipe(), description="actors and their resources")

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.data.num_labeled is not None and self.data.labeled_fraction is not None:
            raise ValueError("data.num_labeled and data.labeled_fraction are both set: keep one")
        if self.clip.reward is not None and self.clip.reward == self.clip.judge:
            raise ValueError("clip.judge is the same as clip.reward: the CLIP that rewards must not judge")
        if self.clip.reward and self.clip.judge and same_backbone(self.clip.reward, self.clip.judge):
            raise ValueError(
                f"clip.judge.model = {self.clip.judge.model!r}: the judge needs another backbone than clip.reward"
            )
        both = [clip for clip in (self.clip.reward, self.clip.judge) if clip and clip.pretrained == "train"]
        if len(both) == 2 and both[0].seed == both[1].seed:
            raise ValueError(f"clip.judge.seed = {both[1].seed}: a judge that is trained here needs another seed than "
                             "clip.reward")  # fmt: skip
        if self.features.encoder == "clip.reward" and self.clip.reward is None and "features" in self.stages:
            raise ValueError("features.encoder = 'clip.reward', but clip.reward is not set")
        if self.evaluate.samples == 1:
            raise ValueError("evaluate.samples = 1: diversity is that of 2 or more captions of an image")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds}: one of them comes twice")
        if "scst" in self.stages and not self.rewards:
            raise ValueError("rewards is empty, but the stage scst needs a component: name one, such as cider")
        for name in self.rewards:
            if "/" in name:  # log keys are reward/NAME/sampled
                raise ValueError(f"rewards: the name {name!r} holds a slash")
        leases = -(-self.scst.batch_size // self.scst.lease_size)
        if "scst" in self.stages and self.cluster.learner_workers > leases:
            raise ValueError(
                f"cluster.learner_workers = {self.cluster.learner_workers}, but a step has {leases} leases "
                "(scst.batch_size / scst.lease_size): each rank needs one; lower scst.lease_size"
            )
        if self.cluster.learner_sharding == "fsdp" and self.cluster.learner_workers == 1:
            raise ValueError(
                "cluster.learner_sharding = 'fsdp' shares the captioner out among ranks, but "
                "cluster.learner_workers = 1: raise it, or set learner_sharding to none (checkpoints fit either)"
            )
        if self.cluster.learner_workers > 1 and 0 < (self.cluster.learner_gpus or 0) < 1:
            raise ValueError(
                f"cluster.learner_gpus = {self.cluster.learner_gpus:g}, but cluster.learner_workers = "
                f"{self.cluster.learner_workers}: NCCL takes no two ranks on one GPU; give each a whole one "
                "(cluster.learner_gpus=1, or null), or 0 for the CPU"
            )
        for name in THROUGH_CLIP:
            if name in self.rewards and not self.rewards[name].source and self.clip.reward is None:
                raise ValueError(f"rewards.{name} needs clip.reward")
        if self.features.kind == "pooled" and self.captioner.mapping == "grid":
            raise ValueError("captioner.mapping = 'grid' needs features.kind = 'grid'; take mlp or transformer")
        if self.features.kind == "pooled" and self.captioner.grid_size:
            raise ValueError("captioner.grid_size needs features.kind = 'grid'")
        seen = {"mle": self.mle, "scst": self.scst}
        for name, window in seen.items():
            if self.features.kind == "pooled" and (window.crop or window.flip):
                raise ValueError(f"{name}.crop and {name}.flip need features.kind = 'grid'")
        trained = [window.views for name, window in seen.items() if name in self.stages]
        if "features" in self.stages and self.features.views and trained and not any(trained):
            raise ValueError(
                f"features.views = {self.features.views}, but no stage looks at them: set features.views=0"
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Recipe:
        """Values of SCST that would be ignored, or teach nothing, beside others."""
        scst = self.scst
        for name in ("ppo_epochs", "minibatches"):
            if getattr(scst, name) > 1 and scst.objective != "ppo":
                raise ValueError(
                    f"scst.{name} = {getattr(scst, name)}: only scst.objective = 'ppo' may go through captions again"
                )
        if scst.objective == "ppo" and scst.importance != "token":
            raise ValueError(
                f"scst.importance = {scst.importance!r}: the ratio of scst.objective = 'ppo' is its own weight"
            )
        if scst.minibatches > scst.batch_size:
            raise ValueError(f"scst.minibatches = {scst.minibatches}, but a step has {scst.batch_size} images")
        if scst.lr_schedule == "cosine" and scst.lr_floor == 1:
            raise ValueError("scst.lr_schedule = 'cosine' does not fall with scst.lr_floor = 1: lower it, to 0.05 say")
        if scst.baseline != "greedy" and scst.num_samples < 2:
            raise ValueError(
                f"scst.baseline = {scst.baseline!r} needs scst.num_samples of 2 or more, and it is {scst.num_samples}"
            )
        if scst.scaling == "group" and scst.baseline == "greedy":
            raise ValueError(
                "scst.scaling = 'group' needs scst.baseline = 'mean' or 'leave_one_out': against the greedy caption, "
                "samples that score alike would be divided by nothing"
            )
        return self

    @model_validator(mode="after")
    def _check_collocated(self) -> Recipe:
        """Who shares one GPU by turns cannot work while another one does, nor have more of it than others."""
        cluster = self.cluster
        if not cluster.collocated:
            return self
        if self.scst.max_policy_lag:
            raise ValueError(
                f"cluster.collocated needs scst.max_policy_lag = 0, and it is {self.scst.max_policy_lag}: ahead of the "
                "learner nobody has a turn"
            )
        if cluster.learner_workers > 1:
            raise ValueError(
                f"cluster.learner_workers = {cluster.learner_workers}, but cluster.collocated is for one GPU"
            )
        given = {"cluster.rollout_gpus": cluster.rollout_gpus, "cluster.learner_gpus": cluster.learner_gpus}
        given |= {f"rewards.{name}.num_gpus": reward.num_gpus for name, reward in self.rewards.items()}
        for key, gpus in given.items():
            if gpus:
                raise ValueError(f"{key} = {gpus:g}: cluster.collocated gives equal fractions; null or 0 (CPU)")
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> Recipe:
        order = [stage for stage in get_args(Stage) if stage in self.stages]
        if self.stages != order:
            raise ValueError(f"stages = {self.stages}: each once, in this order: {', '.join(order)}")
        split = self.evaluate.split
        needed = "train" if split == "select" else split
        if {"prepare", "evaluate"} <= set(self.stages) and needed not in self.data.splits:
            raise ValueError(f"evaluate.split = {split!r}, but data.splits = {self.data.splits} does not import it")
        if self.data.format == "scenes" and split in ("dev", "test") and not getattr(self.data.scenes, f"num_{split}"):
            raise ValueError(f"evaluate.split = {split!r}, but data.scenes.num_{split} = 0")
        return self

    @model_validator(mode="after")
    def _check_who_sees_captions(self) -> Recipe:
        """A CLIP that read captions must not reward images whose captions count as unread."""
        few = self.data.num_labeled is not None or (self.data.labeled_fraction or 1.0) < 1
        clip = self.clip.reward
        rewarded = any(looks_through_clip(name, reward) for name, reward in self.rewards.items())
        uses_it = self.features.encoder == "clip.reward" or rewarded
        if few and uses_it and clip is not None and clip.pretrained == "train" and not self.data.web_share:
            raise ValueError(
                "data.num_labeled or data.labeled_fraction leaves captions unread, but clip.reward is trained here on "
                "all of them: set data.web_share=0.5, and it sees those of `web` images only"
            )
        return self

    @property
    def run_seeds(self) -> list[int]:
        return self.seeds or [self.seed]
