"""From a configuration to a deployment: every model's directory found and checked, before anything is started."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from models.further_heads import FurtherHead, list_own_heads, read_further_head
from models.info import ModelDirectoryError, ModelInfo, read_info
from models.source import find_directory
from server.api_keys import load_keys
from server.audio.features import FRAMES_PER_S
from server.config import ChatConfig, ConfigError, HttpConfig, ModelConfig, ServerConfig, SourceConfig
from server.config_file import load_config
from server.errors import InvalidField
from server.processes.deployment import DeployedModel, Deployment, count_cores, count_threads
from server.processes.served_file import find_served_file
from server.tasks.head import Work
from server.tasks.registry import HEADS, check_name
from server.text.chat_template import REMEDY, check_kwargs, load_chat_template

TELLING_KINDS = ("planned", "cuda_graphs", "reference")
"""Of engines: those that tell the weights of cross-attention. Recorded steps do not, but none with sources is."""


def resolve(config: ServerConfig, run_dir: Path) -> Deployment:
    """Find every model's directory (downloading it if it is on a hub) and check it against the configuration.

    Raises ConfigError, ModelDirectoryError.
    """
    keys = load_keys(config.server, [model.name for model in config.models], os.environ)
    models = []
    num_cores = count_cores()
    for index, model in enumerate(config.models):
        check_name(model.name, model.task)
        try:
            directory = locate(model.source, model.engine.onnxruntime.file)
            info = read_info(directory, task=model.task, pooling=model.pooling, normalize=model.normalize)
            onnx_file = find_served_file(model, directory, info)
        except ModelDirectoryError as error:
            raise ModelDirectoryError(f"model {model.name}: {error}") from None
        threads = count_threads(model.engine, num_cores)
        own = list_own_heads(directory, info)
        heads = (*own, *find_heads(model, info, [head.info.head for head in own]))
        deployed = DeployedModel(index, model, directory, info, heads, find_draft(model), threads, onnx_file=onnx_file)
        check_limits(deployed)
        deployed = replace(deployed, info=settle_weights(model, limit_input(info, model.limits.max_input_tokens)))
        check_chat(deployed)
        check_sound(deployed, config.server)
        deployed.head.check_config(model)
        models.append(deployed)
    return Deployment(config, tuple(models), run_dir, num_cores, keys)


def resolve_one(path: Path, name: str, overrides: Sequence[str]) -> DeployedModel:
    """The model of that name in a file, for commands that start no server. Raises ConfigError, ModelDirectoryError."""
    deployment = resolve(load_config(path, overrides), Path(tempfile.gettempdir()))
    models = {model.config.name: model for model in deployment.models}
    if name not in models:
        raise ConfigError(f"--model {name}: no such model; there are {', '.join(models)}")
    return models[name]


def limit_input(info: ModelInfo, max_input_tokens: int | None) -> ModelInfo:
    """What is served of the model: some compute short texts otherwise where there are no long ones."""
    return info if max_input_tokens is None else replace(info, max_input_tokens=max_input_tokens)


def settle_weights(model: ModelConfig, info: ModelInfo) -> ModelInfo:
    """Whether the model's engine tells what tokens look at in their source. Raises ConfigError."""
    rules, can_tell = info.seq2seq, model.engine.kind in TELLING_KINDS
    if model.coverage_penalty and (rules is None or rules.speech is not None):
        raise ConfigError(
            f"model {model.name}: coverage_penalty is for encoder-decoders of texts, and this model's task is "
            f"{info.task}. Leave it out"
        )
    if model.coverage_penalty and not can_tell:
        raise ConfigError(
            f"model {model.name}: coverage_penalty is for engine.kind {', '.join(TELLING_KINDS)}, and engine.kind is "
            f"{model.engine.kind}, which does not tell the weights of cross-attention. Leave it out, or set kind to "
            "planned"
        )
    if rules is not None and rules.speech is not None and not can_tell:
        rules = replace(rules, speech=replace(rules.speech, alignment_heads=()))
    return info if rules is None else replace(info, seq2seq=replace(rules, has_coverage=model.coverage_penalty))


def locate(source: SourceConfig, onnx_file: str | None = None) -> Path:
    """`onnx_file`: what is to be there in place of weights. Raises ModelDirectoryError."""
    found = find_directory(path=source.path, package=source.package, hub=source.hub, onnx_file=onnx_file)
    return found.absolute()


def find_heads(model: ModelConfig, info: ModelInfo, own: Sequence[str]) -> Iterator[FurtherHead]:
    """`own`: names of those that the directory has itself. Raises ConfigError, ModelDirectoryError."""
    for head in model.heads:
        check_name(f"{model.name}, head {head.name}", head.task)
        if head.name in own:
            raise ConfigError(f"model {model.name}: heads: the name {head.name!r} is taken. Choose another")
        try:
            yield read_further_head(locate(head.source), head.name, head.task, info)
        except ModelDirectoryError as error:
            raise ModelDirectoryError(f"model {model.name}: heads: {head.name}: {error}") from None


def find_draft(model: ModelConfig) -> Path | None:
    """Raises ModelDirectoryError."""
    if model.speculative is None or model.speculative.draft is None:
        return None
    try:
        directory = locate(model.speculative.draft)
        if HEADS[read_info(directory).task].work is not Work.DECODE:
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
    if deployed.head.work.decodes:
        check_generator(deployed)
    if deployed.hears:
        check_window(deployed)
    if deployed.head.work is Work.DECODE:
        return
    if model.limits.truncation == "left" and not info.pools_prompt:
        raise ConfigError(
            f"model {model.name}: limits.truncation left would cut the prompt off, which this model's pooling leaves "
            "out. Set truncation to right or error"
        )
    if model.limits.truncation == "left" and info.question_format:
        raise ConfigError(
            f"model {model.name}: limits.truncation left would cut off the question that this model is asked about a "
            "document. Set truncation to right or error"
        )
    if wanted is not None and wanted > max_batch_tokens:
        raise ConfigError(
            f"model {model.name}: limits.max_input_tokens ({wanted}) is over limits.max_batch_tokens "
            f"({max_batch_tokens}): such an input would never run. Raise max_batch_tokens to at least {wanted} or "
            "lower max_input_tokens"
        )
    if model.speculative is not None:
        raise ConfigError(
            f"model {model.name}: speculative is for language models, and this one's task is "
            f"{deployed.head.name}. Leave it out"
        )


def check_window(deployed: DeployedModel) -> None:
    """Of sound, which is encoded whole. Raises ConfigError."""
    model, num_rows = deployed.config, deployed.info.max_input_tokens
    if model.limits.max_input_tokens is not None:
        raise ConfigError(
            f"model {model.name}: limits.max_input_tokens is for texts, and this model hears windows of {num_rows} "
            "rows, each whole. Leave it out; limits.max_audio_s limits how long a sound may be"
        )
    if model.limits.max_batch_tokens < num_rows:
        raise ConfigError(
            f"model {model.name}: limits.max_batch_tokens ({model.limits.max_batch_tokens}) is below the {num_rows} "
            f"rows of a window, which is encoded whole. Raise it to at least {num_rows}"
        )


def check_sound(deployed: DeployedModel, http: HttpConfig) -> None:
    """Raises ConfigError where the longest one would never have room, however long a client waits."""
    target, limits = deployed.info.seq2seq, deployed.config.limits
    if target is None or target.speech is None:
        return
    needed_mb = limits.max_audio_s * FRAMES_PER_S * target.speech.num_mel_bins * 4 / 1e6
    if needed_mb > http.max_bodies_mb:
        raise ConfigError(
            f"model {deployed.config.name}: {limits.max_audio_s:g} s of sound (limits.max_audio_s) are {needed_mb:.0f} "
            f"MB once they are heard, over server.max_bodies_mb ({http.max_bodies_mb:g}). Lower max_audio_s or raise "
            "max_bodies_mb"
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
    if deployed.head.work is not Work.DECODE and chat != ChatConfig():
        raise ConfigError(
            f"model {model.name}: chat is for models that generate, and this one's task is {deployed.head.name}. "
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
