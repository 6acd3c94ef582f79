"""What an HTTP process serves: its models, each with everything a request needs on the way, and its metrics."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import time

from models.further_heads import TOKENS, name_output
from models.info import ModelInfo
from server.api_keys import KeyConfig
from server.audio.hearing import Hearing
from server.config import ModelConfig, ServerConfig
from server.errors import Forbidden, InvalidField, UnknownModel, WrongTask
from server.http.admission import Admission
from server.http.keys import Key
from server.metrics import Metrics
from server.tasks.head import Head
from server.tasks.registry import HEADS, list_tasks
from server.tasks.task import Task
from server.text.judgement import Judge
from server.text.languages import Languages
from server.text.late_interaction import SIDES, Side, SideRules, find_rules
from server.text.tokenizer import Tokenizer
from server.wire.client import EngineClient


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One entry of `models:`, ready for requests."""

    name: str
    config: ModelConfig
    head: Head
    info: ModelInfo
    tokenizer: Tokenizer
    admission: Admission
    engine: EngineClient
    created_s: int = field(default_factory=lambda: int(time()))
    """Unix time, for `/v1/models`."""
    languages: Languages | None = None
    """Of encoder-decoders of texts."""
    hearing: Hearing | None = None
    """Of those of sound."""
    judge: Judge | None = None
    """Of rankers that are asked about pairs; None: they read them as they are."""
    prompt_lengths: dict[tuple[str, bool], int] = field(default_factory=dict)
    """Tokens of the directory's own prompts, with special ones or without, once somebody has counted them."""
    others: tuple["ServedModel", ...] = ()
    """The same with a further head of it instead."""
    outputs: Mapping[str, str] = field(init=False)
    """What the head computes, and the names that this has in the graph."""
    skipped_ids: tuple[int, ...] = field(init=False)
    """Of `info.skipped_tokens`."""
    rules: Mapping[Side, SideRules] = field(init=False)
    """How texts of both sides are read; empty where the model knows no sides."""

    def __post_init__(self) -> None:
        """What follows from the rest is not computed for each request."""
        info = self.info
        outputs = {spec.name: name_output(info.head, spec.name) for spec in self.head.describe_graph(info)}
        object.__setattr__(self, "outputs", outputs)
        object.__setattr__(self, "skipped_ids", self.tokenizer.find_ids(info.skipped_tokens))
        sides = () if info.late_interaction is None else SIDES
        object.__setattr__(self, "rules", {side: find_rules(info, self.tokenizer, side) for side in sides})

    @property
    def heads(self) -> tuple["ServedModel", ...]:
        return (self, *self.others)

    @property
    def full_name(self) -> str:
        """As clients write it: MODEL, or MODEL/HEAD."""
        return f"{self.name}/{self.info.head}" if self.info.head else self.name

    @property
    def is_listed(self) -> bool:
        """A model, or a head that was configured for it."""
        return self.info.head != TOKENS

    def find_head(self, *tasks: Task) -> "ServedModel | None":
        """The first of its heads that can do one of them."""
        return next((each for each in self.heads if any(task.can_use(each.info) for task in tasks)), None)

    def pick_head(self, *tasks: Task) -> "ServedModel":
        """Raises WrongTask, naming the route that would work."""
        found = self.find_head(*tasks)
        if found is None:
            routes = [route for each in list_tasks(self.info) for route in each.routes]
            raise WrongTask(
                f"model {self.full_name!r} cannot be used here: its task is {self.head.name}, served by "
                f"{' and '.join(routes)}",
                param="model",
            )
        return found


def add_heads(model: ServedModel, infos: Iterable[ModelInfo]) -> ServedModel:
    """With further heads, which share everything but what they are made for."""
    others = tuple(replace(model, head=HEADS[info.task], info=info, judge=None) for info in infos)
    return replace(model, others=others)


@dataclass(slots=True)
class ServerState:
    """Mutable: `is_draining`, set once by whoever stops the server; new calls are refused from then on. And when models
    were last ready."""

    config: ServerConfig
    models: dict[str, ServedModel]
    metrics: Metrics
    keys: tuple[KeyConfig, ...] = ()
    """None: everybody may ask."""
    is_draining: bool = False
    is_narrowed: bool = False
    """`models` are not all that there are."""
    ready_s: dict[str, float] = field(default_factory=dict)
    """`time.monotonic()` of when models were last seen to have a ready replica; those that never had are not here."""

    def note_ready(self, now_s: float) -> None:
        """To be called several times a second."""
        for model in self.models.values():
            if any(status.is_ready for status in model.engine.statuses()):
                self.ready_s[model.name] = now_s

    def list_lost(self, now_s: float) -> list[str]:
        """Models that could be served, and cannot for longer than it takes to start an engine again."""
        self.note_ready(now_s)
        return [name for name, last_s in self.ready_s.items() if now_s - last_s > self.config.server.unhealthy_after_s]

    def narrow(self, key: Key) -> "ServerState":
        """As this key's holder may see it: with the models that are there for them."""
        if key.rights.models is None:
            return self
        models = {name: model for name, model in self.models.items() if key.may_use(name)}
        return replace(self, models=models, is_narrowed=True)

    def find_model(self, name: str) -> ServedModel:
        """Raises UnknownModel; Forbidden where it may exist for others, which is not told."""
        model = self.models.get(name) or self.find_head(name)
        if model is None and self.is_narrowed:
            raise Forbidden(
                f"model {name[:100]!r} is not for this key; it may use {', '.join(self.list_names())}", param="model"
            )
        if model is None:
            raise UnknownModel(
                f"model {name[:100]!r} does not exist; the models here are {', '.join(self.list_names())}",
                param="model",
            )
        return model

    def list_names(self) -> list[str]:
        """Of models and of the heads that were configured for them."""
        return [head.full_name for model in self.models.values() for head in model.heads if head.is_listed]

    def find_head(self, name: str) -> ServedModel | None:
        """MODEL/HEAD."""
        model_name, _, head = name.rpartition("/")
        model = self.models.get(model_name)
        return model and next((each for each in model.others if each.info.head == head), None)

    def pick_model(self, name: str | None, *tasks: Task) -> ServedModel:
        """The named model, or where the request names none the only one for the first task that any can do; without
        tasks for whatever it does.

        Raises UnknownModel, InvalidField, WrongTask.
        """
        if name is None:
            return self.pick_only(*tasks)
        model = self.find_model(name)
        return model.pick_head(*tasks) if tasks else model

    def pick_only(self, *tasks: Task) -> ServedModel:
        found: list[ServedModel | None] = [] if tasks else list(self.models.values())
        for task in tasks:
            found = found if any(found) else [model.find_head(task) for model in self.models.values()]
        fitting = [model for model in found if model is not None]
        if len(fitting) == 1:
            return fitting[0]
        if not fitting:
            raise UnknownModel(f"no model here has the task {' or '.join(task.name for task in tasks)}", param="model")
        raise InvalidField(
            f"several models could answer; name one of them in 'model': {', '.join(m.full_name for m in fitting)}",
            param="model",
        )
