"""The sections of the ranking spec on what is made of the data: the model, how it is trained, judged and served."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    field_validator,
    model_validator,
)

from transform.import_path import IMPORT_PATH, is_import_path
from transform.section import NAME_PATTERN, Name, Section
from transform.spec.metric_table import METRIC_PATTERN, direction_expected, find_metric

COMPONENT_PATTERN = rf"{NAME_PATTERN}|^{IMPORT_PATH}$"
ComponentName = Annotated[str, StringConstraints(pattern=COMPONENT_PATTERN)]
MetricName = Annotated[str, StringConstraints(pattern=METRIC_PATTERN)]


class Component(Section):
    """Something that is chosen by name. All other keys are its settings, which its constructor checks.

    The name alone, as `head: mmoe`, stands for the default settings.
    """

    model_config = ConfigDict(extra="allow")

    name: ComponentName
    """The name it is registered with, or the import path of a class of your own, `package.module:Name`."""

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        """A text is the name of what takes its default settings."""
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """All keys that are settings."""
        return dict(self.model_extra or {})


class Head(Component):
    """What makes logits of a candidate's vector. For models that take a head; each has a default of its own."""

    name: ComponentName = Field(examples=["mmoe"])
    """Which head: the name it is registered with, or an import path, `package.module:Name`."""


class Loss(Component):
    """What is minimised. For all models."""

    name: ComponentName = Field("pointwise", examples=["mypackage.losses:MyLoss"])
    """Which loss: the name it is registered with, or an import path, `package.module:Name`."""


class Model(Component):
    """The model. All other keys are its settings, which it checks itself."""

    name: ComponentName = Field("onerank", examples=["din"])
    """Which model: the name it is registered with, or an import path, `package.module:Name`."""
    head: Head | None = Field(None, examples=[{"name": "mmoe", "experts": 4}])
    """The head, if the model takes one. The model's default by default."""
    loss: Loss = Field(Loss(), examples=[{"infonce": 0.1}])
    """What is minimised."""


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
    metric: MetricName = Field("auc", examples=["gauc"])
    """The metric that says which epoch is better; it needs a direction."""
    patience: PositiveInt = Field(1, examples=[2])
    """After how many epochs without a better one training ends."""

    @field_validator("metric")
    @classmethod
    def _has_direction(cls, metric: str) -> str:
        if not is_import_path(metric) and not find_metric(metric).has_direction:
            raise ValueError(direction_expected())
        return metric


class Training(Section):
    """The training loop's settings, the same for all models."""

    epochs: PositiveInt = Field(2, examples=[8])
    """How often the train split is seen, at most."""
    batch_requests: PositiveInt = Field(256, examples=[32])
    """B, the requests in a batch."""
    shuffle_requests: PositiveInt = Field(50_000, examples=[200_000])
    """The requests in the buffer from which batches are drawn, in a new order each epoch."""
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
    of 8, 16, 32 ..., since each new shape is compiled."""
    gradient_checkpointing: bool = Field(False, examples=[True])
    """Computes the activations of each Transformer block again in the backward pass instead of keeping them:
    less memory, more time. For models with such blocks."""
    deterministic: bool = Field(True, examples=[False])
    """Uses only operations of TensorFlow that give the same result each time, so that one seed gives the same weights
    to the last bit. On a GPU such operations are slower, and some have no such variant. Without it, two trainings
    differ in the last digits of each step. It holds for the whole process."""
    seed: int = Field(1, ge=0, examples=[7])
    """What initial values, dropout and the order of examples follow from. `--seed` overrides it."""


class Gate(Section):
    """What a task must reach on the test split for the model to be pushed."""

    metric: MetricName = Field("auc", examples=["gauc"])
    """The metric that is judged; it needs a direction, which `calibration` does not have."""
    tolerance: float = Field(0.002, ge=0, examples=[0.01])
    """By how much the metric may get worse against the blessed model."""
    minimum: float | None = Field(None, examples=[0.6])
    """The least value of a metric of which higher is better. The metric's own by default, see [metrics](#metrics)."""
    maximum: float | None = Field(None, examples=[0.95])
    """The greatest value of a metric of which lower is better. The metric's own by default."""
    min_positives: PositiveInt = Field(50, examples=[200])
    """With fewer positives in the test split the task is reported, not gated."""

    @model_validator(mode="after")
    def _bound_fits_metric(self) -> Gate:
        problem = None if is_import_path(self.metric) else self.find_problem()
        if problem:
            raise ValueError(problem)
        return self

    def find_problem(self) -> str | None:
        """What is wrong with the gate, or None. Imports a metric of the user's own; raises a SpecError if it can't."""
        metric = find_metric(self.metric)
        if not metric.has_direction:
            return direction_expected()
        wrong = "maximum" if metric.higher_is_better else "minimum"
        if getattr(self, wrong) is not None:
            return f"`{wrong}` has no meaning for `{self.metric}`. Use the other bound"
        return None

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better model."""
        return find_metric(self.metric).higher_is_better

    @property
    def bound(self) -> float:
        """The value threshold; a metric without one gets that of a model that knows nothing."""
        metric = find_metric(self.metric)
        given = self.minimum if metric.higher_is_better else self.maximum
        return metric.bound if given is None else given


class Evaluation(Section):
    """What is measured on the test split, on which slices, and which gates a model must pass."""

    slices: tuple[tuple[Name, ...], ...] = Field(((),), examples=[[[], ["video_id"], ["duration_ms"]]])
    """Lists of single-valued features: a slice for each combination of their values, for numbers by ranges with bounds
    of 1, 2 and 5 times powers of ten. `[]` is overall, which is measured in any case."""
    metrics: tuple[MetricName, ...] = Field(
        ("auc", "gauc", "ndcg@5", "normalized_entropy", "calibration"), examples=[["auc", "gauc", "ndcg@10"]]
    )
    """What is measured for each task. Counts and the log loss are measured besides. A metric of your own is named by
    its import path, as `my_package.metrics:recall`, see [metrics](#metrics)."""
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

    @property
    def named_metrics(self) -> tuple[str, ...]:
        """All metrics that the section names, in its order: those that are measured, then those of gates."""
        return tuple(dict.fromkeys([*self.metrics, *(gate.metric for gate in self.gates.values())]))

    def gate(self, task: str) -> Gate:
        """The gate of a task: its own, or the default one."""
        return self.gates.get(task) or self.gates.get("default") or Gate()


class Serving(Section):
    """What an exported model takes and gives, and the requests that warm up a server which loads it."""

    max_candidates: PositiveInt = Field(4096, examples=[1000])
    """The most candidates of a request in one call; a request of more is rejected. A client scores a longer list in
    parts. At least `request.max_candidates`."""
    cache_dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", examples=["float16"])
    """What numbers a user state holds on its way to a client and back; scores are computed in float32 in any case. The
    short ones travel over gRPC alone: TF Serving's REST API does not read them."""
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
