"""The sections of the ranking spec on what is made of the data: the model, how it is trained, judged and served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from transform.spec.data_sections import Name, Section


class Loss(Section):
    """What is minimised: a task's binary cross-entropy, and InfoNCE over the request beside it. For all models."""

    infonce: float = Field(0.0, ge=0, examples=[0.1])
    """The weight of InfoNCE."""
    temperature: float = Field(1.0, gt=0.01, examples=[0.5])
    """Where InfoNCE's temperatures start; they are learned, one a task."""


class Model(BaseModel):
    """The model. All other keys are its settings, which it checks itself."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    name: Name = Field("onerank", examples=["din"])
    """Which model, by the name it is registered with."""
    loss: Loss = Field(Loss(), examples=[{"infonce": 0.1}])
    """What is minimised."""

    @property
    def settings(self) -> dict[str, Any]:
        """All keys but the name and the loss."""
        return dict(self.model_extra or {})


class Optimizer(Section):
    """An optimizer and its schedule."""

    name: Literal["adamw", "lazy_adamw", "adam", "adagrad", "sgd"] = Field("adamw", examples=["lazy_adamw"])
    """Keras's optimizer of that name. `lazy_adamw` is `adamw` but for embedding tables, of which a step changes only
    the rows that its batch looks up: for large tables."""
    learning_rate: float = Field(0.002, gt=0, examples=[0.01])
    """The rate at the start."""
    weight_decay: float | None = Field(None, ge=0, examples=[0.0])
    """Decoupled weight decay. That of Keras by default: 0.004 for `adamw`, none for the others."""
    schedule: Literal["cosine", "constant"] = Field("cosine", examples=["constant"])
    """How the rate goes on: along a cosine over all epochs to a tenth of its start, or as it is."""


class EarlyStopping(Section):
    """When to stop before the last epoch, and which epoch's weights to keep: the best on the eval split."""

    task: Name = Field(examples=["click"])
    """The task that is watched."""
    metric: Literal["auc", "gauc", "normalized_entropy"] = Field("auc", examples=["gauc"])
    """The metric that says which epoch is better."""
    patience: PositiveInt = Field(1, examples=[2])
    """After how many epochs without a better one training ends."""


class Training(Section):
    """The training loop's settings, the same for all models."""

    epochs: PositiveInt = Field(2, examples=[8])
    """How often the train split is seen, at most."""
    batch_requests: PositiveInt = Field(256, examples=[32])
    """B, the requests in a batch."""
    shuffle_requests: PositiveInt = Field(50_000, examples=[200_000])
    """The requests in the buffer that batches are drawn from, anew each epoch."""
    optimizer: Optimizer = Field(Optimizer(), examples=[{"learning_rate": 0.01}])
    """The optimizer of all variables."""
    embedding_optimizer: Optimizer | None = Field(None, examples=[{"name": "adagrad", "learning_rate": 0.05}])
    """One of their own for the embedding tables. `optimizer` by default."""
    embedding_l2: float = Field(0.0, ge=0, examples=[1e-5])
    """A penalty: so many times half the squares of the embedding vectors that a request looks up."""
    early_stopping: EarlyStopping | None = Field(None, examples=[{"task": "click"}])
    """Ends training early. All epochs, and the last one's weights, by default."""
    gradients_every: int = Field(100, ge=0, examples=[0])
    """The steps between two comparisons of the tasks' gradients, for the report; 0 is never."""
    checkpoint_every: int = Field(1000, ge=0, examples=[200])
    """The steps after which training is saved, besides the end of each epoch, to go on from there after a crash; 0 is
    never."""
    precision: Literal["float32", "mixed_bfloat16"] = Field("float32", examples=["mixed_bfloat16"])
    """What the training step computes in. `mixed_bfloat16`: bfloat16, but for variables, norms, softmax, logits, losses
    and optimizers. What is measured and served is float32 in any case."""
    jit_compile: bool = Field(False, examples=[True])
    """Compiles the training step with XLA, for GPUs and TPUs; on processors it breaks even. Batches are padded to sizes
    of 8, 16, 32 ..., since each shape is compiled anew."""
    recompute: bool = Field(False, examples=[True])
    """Computes the activations of each Transformer block again in the backward pass instead of keeping them:
    less memory, more time. For models with such blocks."""
    deterministic: bool = Field(True, examples=[False])
    """Uses only operations of TensorFlow that give the same result each time, so that one seed gives the same weights
    to the last bit. On a GPU such operations are slower, and some have no such variant. Without it, two trainings
    differ in the last digits of each step. It holds for the whole process."""
    seed: int = Field(1, ge=0, examples=[7])
    """What initial values, dropout and the order of examples follow from. `--seed` overrides it."""


METRIC_PATTERN = r"^(auc|gauc|normalized_entropy|calibration|ndcg@[1-9]\d*)$"
Metric = Annotated[str, StringConstraints(pattern=METRIC_PATTERN)]


class Gate(Section):
    """What a task must reach on the test split for the model to be pushed."""

    metric: Metric = Field("auc", examples=["gauc"])
    """The metric that is judged; not `calibration`, which has no direction."""
    tolerance: float = Field(0.002, ge=0, examples=[0.01])
    """By how much the metric may get worse against the blessed model."""
    minimum: float | None = Field(None, examples=[0.6])
    """The least value of a metric that should rise. 0.5 by default, for `ndcg@k` 0."""
    maximum: float | None = Field(None, examples=[0.95])
    """The greatest value of `normalized_entropy`, which should fall. 1 by default."""
    min_positives: PositiveInt = Field(50, examples=[200])
    """With fewer positives in the test split the task is reported, not gated."""

    @model_validator(mode="after")
    def _bound_fits_metric(self) -> Gate:
        if self.metric == "calibration":
            raise ValueError("a metric with a direction is expected: auc, gauc, ndcg@k or normalized_entropy")
        wrong = "minimum" if self.metric == "normalized_entropy" else "maximum"
        if getattr(self, wrong) is not None:
            raise ValueError(f"`{wrong}` has no meaning for `{self.metric}`. Use the other bound")
        return self

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better model."""
        return self.metric != "normalized_entropy"

    @property
    def bound(self) -> float:
        """The value threshold; a metric without one gets that of a model that knows nothing."""
        if self.higher_is_better:
            return self.minimum if self.minimum is not None else (0.0 if self.metric.startswith("ndcg") else 0.5)
        return self.maximum if self.maximum is not None else 1.0


class Evaluation(Section):
    """What is measured on the test split, on which slices, and which gates a model must pass."""

    slices: tuple[tuple[Name, ...], ...] = Field(((),), examples=[[[], ["video_id"], ["duration_ms"]]])
    """Lists of single-valued features: a slice for each combination of their values, for numbers by ranges with bounds
    of 1, 2 and 5 times powers of ten. `[]` is overall, which is measured in any case."""
    metrics: tuple[Metric, ...] = Field(
        ("auc", "gauc", "ndcg@5", "normalized_entropy", "calibration"), examples=[["auc", "gauc", "ndcg@10"]]
    )
    """What is measured for each task. Counts and the log loss are measured besides."""
    gates: dict[Name, Gate] = Field(
        default_factory=lambda: {"default": Gate()},
        examples=[{"default": {"minimum": 0.5}, "like": {"metric": "normalized_entropy", "maximum": 1.0}}],
    )
    """By task, what it must reach; `default` is for all tasks without a gate of their own."""

    served_requests: NonNegativeInt = Field(200, examples=[50])
    """With how many requests of the eval split the exported model is served, and held to the trainer's scores, before
    it may be pushed. 0: it is pushed without."""
    max_latency_ratio: PositiveFloat | None = Field(None, examples=[1.5])
    """How many times as long as the blessed model's the median latency of `rank` may be, when both are served and asked
    the same in turns. Reported in any case; what else the machine does meanwhile tells in it. `null`: any."""

    def gate(self, task: str) -> Gate:
        """The gate of a task: its own, or the default one."""
        return self.gates.get(task) or self.gates.get("default") or Gate()


class Serving(Section):
    """What an exported model takes and gives, and the requests that warm up a server which loads it."""

    max_candidates: PositiveInt = Field(4096, examples=[1000])
    """The most candidates of a request in one call; a request of more is refused. A client scores a longer list in
    parts. At least `request.max_candidates`."""
    cache_dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", examples=["float16"])
    """What numbers a user's encoded context holds on its way to a client and back; scores are computed in float32 in
    any case. The short ones travel over gRPC alone: TF Serving's REST API does not read them."""
    warmup_candidates: tuple[PositiveInt, ...] = Field((1, 64, 512), min_length=1, max_length=100, examples=[[10, 200]])
    """The numbers of candidates of the requests that a server runs before it takes any; at most `max_candidates`, which
    the default stops at."""

    @model_validator(mode="after")
    def _warm_up_is_allowed(self) -> Serving:
        if "warmup_candidates" in self.model_fields_set and max(self.warmup_candidates) > self.max_candidates:
            raise ValueError(f"`warmup_candidates` of at most `max_candidates`, {self.max_candidates}, are expected")
        return self

    @property
    def warmup_sizes(self) -> tuple[int, ...]:
        """The sizes of warm-up requests, each once, from small to large."""
        return tuple(sorted({min(size, self.max_candidates) for size in self.warmup_candidates}))
