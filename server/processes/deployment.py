"""What the supervisor has settled and its children are told: configuration, model directories, where sockets lie.

Written as one JSON file into the run directory, which is made for one start, read by no other user, and removed at its
end.
"""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec

from models.further_heads import FurtherHead
from models.info import ModelInfo
from runtime.config import EngineConfig
from runtime.precision_choice import ChosenPrecision
from server.api_keys import KeyConfig
from server.config import ModelConfig, ServerConfig
from server.config_file import dump_secrets
from server.processes.core_plan import Claim, Place, plan_cores
from server.tasks.head import Head, Work
from server.tasks.registry import HEADS

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
    heads: tuple[FurtherHead, ...] = ()
    """Beside the directory's own, whose `info` is."""
    draft_directory: Path | None = None
    """Of the model that guesses ahead, if there is one."""
    threads: int = 1
    """Of each replica."""
    budget_bytes: int | None = None
    """Of each replica of a model with a cache: what it may take, as `server.processes.memory` has divided it."""
    chosen: ChosenPrecision | None = None
    """Of each replica of a model whose precision was left to measurement."""
    compiled: Path | None = None
    """What it was compiled to, for all replicas: see `server.processes.compiling`."""
    onnx_file: str | None = None
    """In the directory: what is served as it is, in place of weights. See `server.processes.served_file`."""

    @property
    def is_compiled(self) -> bool:
        """Whether it is to be, before any engine of it starts."""
        return self.config.engine.is_compiled and self.onnx_file is None

    @property
    def is_openable(self) -> bool:
        """Whether it needs no compiling, or was compiled and that is still there: somebody may have emptied the
        cache."""
        if self.config.engine.kind == "null" or self.onnx_file is not None:
            return True
        return self.compiled is not None and self.compiled.exists()

    @property
    def text_directory(self) -> Path:
        """Where the tokenizer is: some sentence-transformers directories keep it in a folder with the weights."""
        return self.directory / self.info.transformer

    @property
    def named_heads(self) -> tuple[FurtherHead, ...]:
        """Those that were configured."""
        names = [head.name for head in self.config.heads]
        return tuple(head for head in self.heads if head.info.head in names)

    @property
    def hears(self) -> bool:
        """Sound, rather than reading texts."""
        return self.info.seq2seq is not None and self.info.seq2seq.speech is not None

    @property
    def head(self) -> Head:
        return HEADS[self.info.task]

    @property
    def max_input_tokens(self) -> int:
        """The configured limit, or the model's own; within the budget of a step, but for prompts, which are cut."""
        limits = self.config.limits
        if self.head.work is Work.DECODE:
            return limits.max_input_tokens or self.info.max_input_tokens
        return limits.max_input_tokens or min(self.info.max_input_tokens, limits.max_batch_tokens)

    @property
    def max_total_tokens(self) -> int:
        """Of one sequence of a step: inputs, or what decoders write, with what that goes on from."""
        target = self.info.seq2seq
        return self.max_input_tokens if target is None else target.max_target_tokens


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

    def compiled_path(self, model: DeployedModel) -> Path:
        """Where a model is compiled to if no cache can be written."""
        return self.run_dir / f"model-{model.index}.pt"

    def choice_path(self, model: DeployedModel) -> Path:
        """Where the process that compiles writes which precision it has chosen."""
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


def save(deployment: Deployment) -> None:
    document = {
        "config": dump_secrets(deployment.config),
        "num_cores": deployment.num_cores,
        "keys": [key.model_dump(mode="json") for key in deployment.keys],
        "models": [
            {
                "directory": str(model.directory),
                "info": asdict(model.info),
                "heads": [(str(head.directory), asdict(head.info)) for head in model.heads],
                "draft": model.draft_directory and str(model.draft_directory),
                "threads": model.threads,
                "budget_bytes": model.budget_bytes,
                "chosen": model.chosen,
                "compiled": model.compiled and str(model.compiled),
                "onnx_file": model.onnx_file,
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
            *(index, model, Path(found["directory"]), convert_info(found["info"])),
            heads=tuple(FurtherHead(Path(directory), convert_info(info)) for directory, info in found["heads"]),
            draft_directory=Path(found["draft"]) if found["draft"] else None,
            threads=found["threads"],
            budget_bytes=found["budget_bytes"],
            chosen=msgspec.convert(found["chosen"], ChosenPrecision | None),
            compiled=Path(found["compiled"]) if found["compiled"] else None,
            onnx_file=found["onnx_file"],
        )
        for index, (model, found) in enumerate(zip(config.models, document["models"], strict=True))
    )
    keys = tuple(KeyConfig.model_validate(key) for key in document["keys"])
    return Deployment(config, models, run_dir, document["num_cores"], keys)


def convert_info(found: object) -> ModelInfo:
    """As JSON has it."""
    return msgspec.convert(found, ModelInfo, strict=False)
