"""The sections of a recipe: one pydantic model each, one field a value, its meaning and unit in the description."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Metric = Literal["bleu", "rouge", "cider", "meteor", "spice", "clipscore", "refcompare"]
"""As `raycap.metrics.score.METRICS` has them: a wrong name is refused before a run and not at its end."""


def _whole_above_1(gpus: float | None) -> float | None:
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        raise ValueError("a process gets a fraction of one GPU, or whole ones")
    return gpus


GPUs = Annotated[float | None, AfterValidator(_whole_above_1)]


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


THROUGH_CLIP = ("clip", "self_retrieval")
"""Built-in reward components that look at images through `clip.reward`."""
WITH_REFERENCES = ("cider", "bleu", "rouge")
"""Built-in reward components that train on labelled images only."""


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic reads true as 1: `scst.steps=true` would train one step."""
        wanted = str(cls.model_fields[info.field_name or ""].annotation)
        takes_it = any(kind in wanted for kind in ("bool", "Any"))
        if not takes_it and (isinstance(value, bool) or (isinstance(value, list) and True in map(_is_bool, value))):
            raise ValueError("true and false stand for no number or text here")
        return value


class ScenesRecipe(Section):
    num_train: Positive = Field(2400, description="images of the training split, `select` included")
    num_dev: Annotated[int, Field(ge=0)] = Field(200, description="images of the dev split")
    num_test: Annotated[int, Field(ge=0)] = Field(400, description="images of the test split")
    unlabelled_share: Share = Field(0.0, description="share of the training images that come without captions")
    style: str = Field("default", description="look and wording of the scenes")
    seed: int = Field(0, ge=0, description="of the drawing; the same seed draws the same scenes on every machine")


class DataRecipe(Section):
    format: Literal["auto", "scenes", "flickr8k", "csv", "coco", "karpathy", "folder"] = Field(
        "auto", description="layout of `root`; auto looks at what lies there"
    )
    root: str | None = Field(None, description="absolute path of the data set (also RAYCAP_DATA); not for scenes")
    splits: list[Literal["train", "dev", "test"]] = Field(
        ["train", "dev", "test"], description="splits to import; their photographs must be there. Without dev, its "
        "share of the images that have no split is train's"
    )  # fmt: skip
    skip: list[str] | Literal["all"] = Field(
        [], description="kinds of bad input that are skipped, counted and listed instead of refused"
    )
    max_pixels: Positive = Field(64_000_000, description="images with more pixels are refused before decoding")
    select_size: int | None = Field(None, ge=0, description="training images kept for model selection; min(500, 10%)")
    web_share: float = Field(
        0.0, ge=0, lt=1, description="share of the training images whose captions only CLIPs may see"
    )
    num_labeled: int | None = Field(None, ge=1, description="labelled images of the captioner; all when not set")
    labeled_fraction: float | None = Field(None, gt=0, le=1, description="the same as a share of the pool")
    seed: int = Field(0, ge=0, description="of the cuts (select, web, labelled subset, splits by hash)")
    scenes: ScenesRecipe = Field(default_factory=lambda: ScenesRecipe(), description="what is drawn, for format=scenes")


class FeaturesRecipe(Section):
    encoder: str = Field("clip.reward", description="`clip.reward`, or a timm model such as tf_efficientnet_lite0")
    weights: str = Field(
        "", description="of a timm model: `package:NAME` from an installed package, a file, or empty for timm's own"
    )
    kind: Literal["grid", "pooled"] = Field("grid", description="grid cells [G, D] or one vector [D] an image")
    image_size: int | None = Field(
        None, ge=32, le=2048, description="pixels a side that a timm model sees; the size it was trained at when null"
    )
    grid_size: int | None = Field(None, ge=1, description="pool the grid to this many cells a side; as it is when null")
    levels: Positive = Field(
        1, description="feature maps of a timm model that are joined: 2 adds that of half the stride (colour, place)"
    )
    views: int = Field(
        0, ge=0, le=64, description="further features of each training image to train on: of random windows of the "
        "picture, every second one mirrored"
    )  # fmt: skip
    view_area: float = Field(0.35, gt=0, le=1, description="smallest share of the picture's area in such a window")
    dtype: Literal["float16", "float32"] = Field("float16", description="on disk")
    shard_size: Positive = Field(256, description="images a file; the unit of resuming")
    batch_size: Positive = Field(32, description="images in one forward pass")


class ClipModelRecipe(Section):
    model: str = Field(..., description="an open_clip model name or one of raycap's configs (raycap/models/configs)")
    pretrained: str = Field("train", description="`train` (here), an open_clip tag, or a local weights file")
    prompt: str = Field("A photo depicts ", description="put before every caption")
    seed: int = Field(0, ge=0, description="of weights and order when trained here")


def same_backbone(one: ClipModelRecipe, other: ClipModelRecipe) -> bool:
    """Whether two CLIPs are one network: a name's `-quickgelu` only says how its weights were trained."""
    names = {clip.model.lower().removesuffix("-quickgelu") for clip in (one, other)}
    return len(names) == 1


class ClipTrainRecipe(Section):
    epochs: Positive = Field(10, description="passes over the images")
    batch_size: Positive = Field(128, description="images a step")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.1, ge=0, description="of AdamW")
    warmup_share: Share = Field(0.1, description="share of the steps in which the learning rate rises")
    shift: int = Field(2, ge=0, description="images are shifted by up to this many pixels")


class ClipRecipe(Section):
    reward: ClipModelRecipe | None = Field(None, description="rewards, and gives features where the recipe says so")
    judge: ClipModelRecipe | None = Field(None, description="measures CLIPScore; never rewards")
    train: ClipTrainRecipe = Field(default_factory=lambda: ClipTrainRecipe(), description="of those trained here")


class VocabularyRecipe(Section):
    kind: Literal["word", "bpe"] = Field("word", description="one token a word, or byte-level BPE")
    min_count: Positive = Field(1, description="words that occur less often are unknown (word)")
    size: Positive = Field(4000, description="number of tokens (bpe)")


class LoRARecipe(Section):
    rank: Positive = Field(8, description="r: A is [r, inputs] and B [outputs, r], for each layer")
    alpha: float = Field(16.0, gt=0, description="α: what is added to a layer is α/r · B A x")
    dropout: float = Field(0.0, ge=0, lt=1, description="on the adapters' inputs while MLE trains")
    targets: list[str] | None = Field(
        None, min_length=1, description="names of the linear layers that get an adapter, such as q_proj, "
        "self_attn.q_proj; all linear layers of the LM's blocks when null"
    )  # fmt: skip


class CaptionerRecipe(Section):
    lm: str | None = Field(None, description="pretrained causal LM by name or path; from scratch when null")
    lm_config: dict[str, Any] = Field(
        {"model_type": "gpt2", "n_embd": 192, "n_layer": 3, "n_head": 4},
        description="Hugging Face config of the LM from scratch",
    )
    lm_tuning: Literal["full", "lora", "frozen"] = Field(
        "full", description="what of the LM is trained: all of it, adapters beside its layers (`lora`), nothing"
    )
    lora: LoRARecipe = Field(default_factory=lambda: LoRARecipe(), description="the adapters, for lm_tuning=lora")
    vocabulary: VocabularyRecipe = Field(
        default_factory=lambda: VocabularyRecipe(), description="of an LM from scratch"
    )
    mapping: Literal["grid", "mlp", "transformer"] = Field("grid", description="from features to the visual prefix")
    prefix_length: Positive = Field(10, description="prefix embeddings of mlp and transformer")
    mapping_layers: Positive = Field(2, description="of the transformer mapping")
    mapping_heads: Positive = Field(4, description="of the transformer mapping")
    feature_dropout: Share = Field(0.0, description="dropout on the features while MLE trains (grid mapping)")
    word_dropout: Share = Field(0.0, description="share of the words read that go missing while MLE trains")
    grid_size: int | None = Field(
        None, ge=1, description="pools the grid to this many cells a side; as it is when null"
    )
    max_length: Positive = Field(20, description="limit of a caption in tokens, EOS included")


class GridWindow(Section):
    crop: int = Field(0, ge=0, description="sees random windows of the grid, up to this many cells smaller")
    flip: bool = Field(False, description="sees every second grid mirrored, at random")
    views: bool = Field(True, description="sees the stored views too, where `features.views` made some")


class Learning(GridWindow):
    micro_batch: Positive = Field(
        64, description="captions whose gradient is computed at a time; more need more memory"
    )


class MLERecipe(Learning):
    epochs: Positive = Field(20, description="at most")
    epoch_steps: Positive = Field(
        1, description="an epoch, after which `select` is looked at, has so many steps or more: few images are gone "
        "through several times in one"
    )  # fmt: skip
    patience: int = Field(3, ge=1, description="epochs without a better CIDEr-D on `select` before it stops")
    batch_size: Positive = Field(40, description="images a step")
    captions_per_image: Positive = Field(5, description="captions of each image in a batch; they share its prefix")
    lr: float = Field(1e-3, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    warmup_steps: int = Field(50, ge=0, description="steps in which the learning rate rises from 0")
    lr_floor: Share = Field(0.05, description="share of the peak that the cosine ends at, after `epochs`")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights that are validated and kept")


class MLEContinuedRecipe(Section):
    lr: float = Field(1e-4, gt=0, description="peak learning rate; the rest is as in `mle`")
    steps: int | None = Field(None, ge=1, description="learner steps; as many seconds as SCST took when null")


class ScheduleRecipe(Section):
    kind: Literal["linear", "step", "plateau"] = Field(..., description="how the weight moves")
    to: float | None = Field(None, description="linear, plateau: the weight it moves to")
    start: int = Field(0, ge=0, description="linear: the step at which it begins to move")
    end: int | None = Field(None, ge=1, description="linear: the step at which it has arrived; the last one when null")
    at: dict[Annotated[int, Field(ge=0)], float] = Field({}, description="step: the weight from each step on")
    metric: Literal["select_cider", "select_bad_endings", "select_repetition"] = Field(
        "select_cider", description="plateau: the figure of a look at `select`; the last two are better when lower"
    )
    patience: Positive = Field(3, description="plateau: looks at `select` without a better figure before it moves")
    min_gain: float = Field(0.0, ge=0, description="plateau: what counts as better")

    @model_validator(mode="after")
    def _check(self) -> ScheduleRecipe:
        if self.kind == "step" and not self.at:
            raise ValueError("kind: step needs `at`, such as {100: 0.5}")
        if self.kind != "step" and self.to is None:
            raise ValueError(f"kind: {self.kind} needs `to`, the weight it moves to")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end = {self.end} must come after start = {self.start}")
        return self


class RewardRecipe(Section):
    weight: float = Field(1.0, description="w_c in A = Σ w_c (r_c − baseline_c)")
    schedule: ScheduleRecipe | None = Field(None, description="moves the weight from there; it stays when null")
    source: str = Field("", description="package.module:ClassName of your own component; empty for a built-in one")
    options: dict[str, Any] = Field({}, description="keyword arguments of the component")
    workers: Positive = Field(1, description="actors in its pool")
    num_cpus: float = Field(0.0, ge=0, description="of each actor")
    num_gpus: GPUs = Field(None, ge=0, description="of each actor; a share for CLIP where there are GPUs when null")


def looks_through_clip(name: str, reward: RewardRecipe) -> bool:
    """Whether a reward component looks at images through `clip.reward`; a critic or one of one's own may."""
    return name in (*THROUGH_CLIP, "critic") or bool(reward.source)


class SCSTRecipe(Learning):
    steps: Positive = Field(200, description="learner steps")
    batch_size: Positive = Field(40, description="images a step")
    lease_size: Positive = Field(20, description="images a lease: the unit of generation, reward and loss")
    num_samples: Positive = Field(5, description="K, sampled captions an image")
    temperature: float = Field(1.0, gt=0, description="of the samples; the learner scores at the same one")
    baseline: Literal["greedy", "leave_one_out", "mean"] = Field("greedy", description="what a reward is compared with")
    scaling: Literal["none", "group"] = Field("none", description="of the advantages, after the weighted sum")
    normalize: Literal["batch", "sequence", "token"] = Field("batch", description="what the loss is divided by")
    objective: Literal["reinforce", "ppo"] = Field(
        "reinforce", description="−A·log π, or PPO's −min(ρA, clip(ρ)A) with ρ = π over the policy that sampled"
    )
    ppo_clip: float = Field(0.2, gt=0, lt=1, description="ppo: ε, the ratio counts between 1 − ε and 1 + ε")
    ppo_epochs: Positive = Field(1, description="ppo: times that a step's captions are gone through")
    minibatches: Positive = Field(1, description="ppo: optimizer steps each time, each on its share of the images")
    kl_weight: float = Field(0.0, ge=0, description="β of β·KL(policy ‖ the MLE policy), added to the loss")
    entropy_weight: float = Field(0.0, ge=0, description="of the words' entropy, which is subtracted from the loss")
    mle_weight: float = Field(
        0.0, ge=0, description="of the cross-entropy on labelled images (mean a token), added to the loss"
    )
    mle_batch_size: Positive = Field(20, description="labelled images of it a step, one caption each")
    lr: float = Field(5e-5, gt=0, description="peak learning rate of Adam")
    lr_schedule: Literal["linear", "cosine"] = Field("linear", description="how it falls to `lr_floor`")
    lr_floor: Share = Field(1.0, description="share of the peak that it has fallen to by the last step; 1: it stays")
    warmup_steps: int = Field(0, ge=0, description="steps in which the learning rate rises from 0")
    grad_clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.0, ge=0, lt=1, description="decay a step of the averaged weights that are validated and kept")
    max_policy_lag: int = Field(
        0, ge=0, le=64, description="versions that captions may be behind; 0: synchronous, equal to one process"
    )
    importance: Literal["none", "token", "sequence"] = Field("token", description="weights of stale samples, lag > 0")
    importance_cap: float = Field(2.0, ge=1, description="they are truncated here; 1: no sample counts more than once")
    select_every: Positive = Field(50, description="steps between two looks at `select`, each with a checkpoint")
    watch_looks: Positive = Field(
        3, description="looks at `select` over which the watch for exploited rewards compares"
    )
    keep_checkpoints: Positive = Field(2, description="newest ones kept for resuming, besides the best")
    collapse_share: Share = Field(0.5, description="the run stops when `select` falls below this share of its start")


class EvaluateRecipe(Section):
    split: Literal["train", "select", "dev", "test"] = Field("test", description="what the table reports on")
    metrics: list[Metric] = Field(
        ["bleu", "rouge", "cider", "clipscore"],
        description="also refcompare, meteor, spice (Java; `raycap evaluate` computes them)",
    )
    decodings: list[Literal["greedy", "beam"]] = Field(["greedy", "beam"], description="of every row's captions")
    beam_size: Positive = Field(3, description="of the beam search")
    samples: int = Field(
        0, ge=0, description="captions an image that are sampled to tell how diverse they are (2 or more; 0: none)"
    )
    batch_size: Positive = Field(100, description="images decoded at once")
    report_images: int = Field(24, ge=0, description="pictures in the report")


class LoggingRecipe(Section):
    tensorboard: bool = Field(True, description="event files too, in STAGE/tensorboard")
    mlflow: str | None = Field(None, description="tracking URI of MLflow (pip install mlflow)")
    wandb: str | None = Field(None, description="project of Weights & Biases (pip install wandb)")


class ClusterRecipe(Section):
    rollout_workers: Positive = Field(2, description="actors that generate")
    rollout_cpus: float = Field(0.5, ge=0, description="of each rollout worker")
    rollout_gpus: GPUs = Field(
        None, ge=0, description="of each rollout worker (fractions share a GPU); an equal share when null; 0: CPU"
    )
    rollout_threads: Positive = Field(
        1, description="torch threads of a rollout worker, and of generation in one process"
    )
    learner_workers: Positive = Field(1, description="ranks of the learner")
    learner_sharding: Literal["none", "fsdp"] = Field(
        "none", description="fsdp: each rank keeps a share of parameters, gradients and optimizer (2 ranks or more; "
        "one is refused); none: all of them"
    )  # fmt: skip
    learner_cpus: float = Field(0.5, gt=0, description="of each rank")
    learner_gpus: GPUs = Field(
        None, ge=0, description="of each rank; when null an equal share, of several ranks a whole one; 0: CPU"
    )
    learner_threads: Positive = Field(2, description="torch threads of a rank, and of learning in one process")
    collocated: bool = Field(
        False, description="one GPU shared by turns: everybody gets an equal fraction of it, and gives memory back "
        "while others have their turn; needs scst.max_policy_lag=0"
    )  # fmt: skip
    placement: Literal["PACK", "SPREAD"] = Field(
        "PACK", description="of rollout and reward actors: on few nodes, or evenly over all of them"
    )
    autoscaling: bool = Field(
        False, description="nodes may still come: what does not fit is waited for, instead of refused at the start"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of products; bfloat16 is used where a measurement at the start says that it is faster"
    )
    learner_recompute: bool = Field(
        False, description="the LM's blocks compute their activations again instead of keeping them: less memory, "
        "more time"
    )  # fmt: skip
    lease_timeout_s: float = Field(
        600.0, gt=0, description="a lease that is generated for longer, or of which nothing is heard for so long, is "
        "given to another worker; one that waits for rewards is heard of every 5 seconds"
    )  # fmt: skip
    leases_ahead: Positive = Field(
        2, description="leases of a rollout worker whose rewards may be out while it generates another"
    )
    stall_timeout_s: float = Field(
        1800.0, gt=0, description="a run in which nothing moves for so long fails, and says who waits for whom"
    )
    reward_timeout_s: float = Field(
        300.0,
        gt=0,
        description="a component that takes longer for a batch is stuck: its actor is started again, the "
        "second time the run fails",
    )
    max_failures: int = Field(2, ge=0, description="restarts of the learner's worker group")
    quarantine_after: Positive = Field(3, description="a lease that killed this many workers is set aside")
