"""What the supervisor has settled and its children are told: configuration, model directories, where sockets lie.

Written as one JSON file into the run directory, which is made for one start, read by no other user, and removed at its
end.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from models.info import ModelDirectoryError, ModelInfo, read_info
from models.source import find_directory
from runtime.config import EngineConfig
from runtime.precision_choice import ChosenPrecision
from server.api_keys import KeyConfig, load_keys
from server.config import ChatConfig, ConfigError, ModelConfig, ServerConfig
from server.config_file import dump_secrets
from server.errors import InvalidField
from server.processes.core_plan import Claim, Place, plan_cores
from server.tasks.registry import TASKS, check_name
from server.tasks.task import Task, Work
from server.text.chat_template import REMEDY, check_kwargs, load_chat_template

FILE_NAME = "deployment.json"


def count_cores() -> int:
    """The cores this process may use: its affinity, cut by a container's quota."""
    cores = len(os.sched_getaffinity(0))
    quota_file = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = quota_file.read_text().partition(" ") if quota_file.exists() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


@dataclass(frozen=True, slots=True)
class DeployedModel:
    """One model of the configuration with its local directory."""

    index: int
    config: ModelConfig
    directory: Path
    info: ModelInfo
    draft_directory: Path | None = None
    """Of the model that guesses ahead, if there is one."""
    threads: int = 1
    """Of each replica."""
    budget_bytes: int | None = None
    """Of each replica of a model with a cache: what it may take, as `server.processes.memory` has divided it."""
    chosen: ChosenPrecision | None = None
    """Of each replica of a model whose precision is left to measurement: see `server.processes.precision`."""

    @property
    def text_directory(self) -> Path:
        """Where the tokenizer is: some sentence-transformers directories keep it in a folder with the weights."""
        return self.directory / self.info.transformer

    @property
    def task(self) -> Task:
        return TASKS[self.info.task]

    @property
    def max_input_tokens(self) -> int:
        """The configured limit, or the model's own; within the budget of a step, but for prompts, which are cut."""
        limits = self.config.limits
        if self.task.work is Work.DECODE:
            return limits.max_input_tokens or self.info.max_input_tokens
        return limits.max_input_tokens or min(self.info.max_input_tokens, limits.max_batch_tokens)


@dataclass(frozen=True, slots=True)
class Deployment:
    config: ServerConfig
    models: tuple[DeployedModel, ...]
    run_dir: Path
    num_cores: int = field(default_factory=count_cores)
    """That the server may use, as its supervisor found them."""
    keys: tuple[KeyConfig, ...] = ()

    def socket_path(self, model: DeployedModel, replica: int) -> Path:
        return self.run_dir / f"engine-{model.index}-{replica}.sock"

    def place(self, model: DeployedModel, replica: int) -> Place | None:
        """Where an engine computes. None: wherever the kernel lets it, beside whomever it likes."""
        placed = [other for other in self.models if is_placed(other.config.engine)]
        seats = [(other.index, each) for other in placed for each in range(other.config.engine.replicas)]
        if (model.index, replica) not in seats or len(seats) == 1:
            return None
        engines = [self.models[index] for index, _ in seats]
        claims = [Claim(each.threads, each.config.engine.share / each.config.engine.replicas) for each in engines]
        return plan_cores(claims, self.num_cores)[seats.index((model.index, replica))]

    def lease_path(self, number: int) -> Path:
        return self.run_dir / f"lease-{number}"

    def admission_path(self, model: DeployedModel) -> Path:
        return self.run_dir / f"admission-{model.index}"

    def choice_path(self, model: DeployedModel) -> Path:
        """Where the process that measures precisions writes what it has chosen."""
        return self.run_dir / f"precision-{model.index}.json"

    @property
    def metrics_dir(self) -> Path:
        """Where prometheus_client keeps the counts of all processes."""
        return self.run_dir / "metrics"


def count_threads(engine: EngineConfig, num_cores: int) -> int:
    """Per replica; by default all cores, shared out."""
    return engine.threads or max(1, num_cores // engine.replicas)


def is_placed(engine: EngineConfig) -> bool:
    """Whether engines of this kind are given cores: those on other devices need few, and HTTP is not to be pinned."""
    return engine.pin_cores and engine.device == "cpu" and not engine.inline


def resolve(config: ServerConfig, run_dir: Path) -> Deployment:
    """Find every model's directory (downloading it if it is on a hub) and check it against the configuration.

    Raises ConfigError, ModelDirectoryError.
    """
    keys = load_keys(config.server, [model.name for model in config.models], os.environ)
    models = []
    num_cores = count_cores()
    for index, model in enumerate(config.models):
        source = model.source
        check_name(model.name, model.task)
        try:
            directory = find_directory(path=source.path, package=source.package, hub=source.hub).absolute()
            info = read_info(directory, task=model.task, pooling=model.pooling, normalize=model.normalize)
        except ModelDirectoryError as error:
            raise ModelDirectoryError(f"model {model.name}: {error}") from None
        threads = count_threads(model.engine, num_cores)
        deployed = DeployedModel(index, model, directory, info, find_draft(model), threads)
        check_limits(deployed)
        check_chat(deployed)
        deployed.task.check_config(model)
        models.append(deployed)
    return Deployment(config, tuple(models), run_dir, num_cores, keys)


def find_draft(model: ModelConfig) -> Path | None:
    """Raises ModelDirectoryError."""
    if model.speculative is None or model.speculative.draft is None:
        return None
    source = model.speculative.draft
    try:
        directory = find_directory(path=source.path, package=source.package, hub=source.hub).absolute()
        if TASKS[read_info(directory).task].work is not Work.DECODE:
            raise ModelDirectoryError(f"{directory} does not generate text; name a small model that does")
    except ModelDirectoryError as error:
        raise ModelDirectoryError(f"model {model.name}: speculative.draft: {error}") from None
    return directory


def check_limits(deployed: DeployedModel) -> None:
    """Raises ConfigError."""
    model, info = deployed.config, deployed.info
    wanted, max_batch_tokens = model.limits.max_input_tokens, model.limits.max_batch_tokens
    if wanted is not None and wanted > info.max_input_tokens:
        raise ConfigError(
            f"model {model.name}: limits.max_input_tokens ({wanted}) is over what the model takes "
            f"({info.max_input_tokens}). Lower it, or leave it out"
        )
    if deployed.task.work is Work.DECODE:
        check_generator(deployed)
        return
    if model.limits.truncation == "left" and not info.pools_prompt:
        raise ConfigError(
            f"model {model.name}: limits.truncation left would cut the prompt off, which this model's pooling leaves "
            "out. Set truncation to right or error"
        )
    if wanted is not None and wanted > max_batch_tokens:
        raise ConfigError(
            f"model {model.name}: limits.max_input_tokens ({wanted}) is over limits.max_batch_tokens "
            f"({max_batch_tokens}): such an input would never run. Raise max_batch_tokens to at least {wanted} or "
            "lower max_input_tokens"
        )
    if model.speculative is not None:
        raise ConfigError(
            f"model {model.name}: speculative is for models that generate, and this one's task is "
            f"{deployed.task.name}. Leave it out"
        )


def check_generator(deployed: DeployedModel) -> None:
    """Raises ConfigError."""
    if deployed.config.engine.precision == "auto_per_bucket":
        raise ConfigError(
            f"model {deployed.config.name}: engine.precision auto_per_bucket is for models that read a batch once, and "
            "this one generates. Set precision to auto, or to int8, which halves the time on CPUs"
        )


def check_chat(deployed: DeployedModel) -> None:
    """Raises ConfigError."""
    model, chat = deployed.config, deployed.config.chat
    if deployed.task.work is not Work.DECODE and chat != ChatConfig():
        raise ConfigError(
            f"model {model.name}: chat is for models that generate, and this one's task is {deployed.task.name}. "
            "Leave it out"
        )
    try:
        check_kwargs(chat.template_kwargs, "chat.template_kwargs")
    except InvalidField as error:
        raise ConfigError(f"model {model.name}: {error.message}") from None
    if chat.template is not None:
        template = load_chat_template(deployed.text_directory, chat.template)
        if not template.is_there:
            raise ConfigError(f"model {model.name}: chat.template: {template.problem.removesuffix(REMEDY)}")


def save(deployment: Deployment) -> None:
    document = {
        "config": dump_secrets(deployment.config),
        "num_cores": deployment.num_cores,
        "keys": [key.model_dump(mode="json") for key in deployment.keys],
        "models": [
            {
                "directory": str(model.directory),
                "info": asdict(model.info),
                "draft": model.draft_directory and str(model.draft_directory),
                "threads": model.threads,
                "budget_bytes": model.budget_bytes,
                "chosen": model.chosen,
            }
            for model in deployment.models
        ],
    }
    (deployment.run_dir / FILE_NAME).write_bytes(msgspec.json.encode(document))


def load(run_dir: Path) -> Deployment:
    document = msgspec.json.decode((run_dir / FILE_NAME).read_bytes())
    config = ServerConfig.model_validate(document["config"])
    models = tuple(
        DeployedModel(
            *(index, model, Path(found["directory"]), msgspec.convert(found["info"], ModelInfo, strict=False)),
            draft_directory=Path(found["draft"]) if found["draft"] else None,
            threads=found["threads"],
            budget_bytes=found["budget_bytes"],
            chosen=msgspec.convert(found["chosen"], ChosenPrecision | None),
        )
        for index, (model, found) in enumerate(zip(config.models, document["models"], strict=True))
    )
    keys = tuple(KeyConfig.model_validate(key) for key in document["keys"])
    return Deployment(config, models, run_dir, document["num_cores"], keys)
