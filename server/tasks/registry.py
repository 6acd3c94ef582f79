"""The tasks there are. A new one is its file, a line here, and its routes in a file of `http/api`."""

from server.config import ConfigError
from server.tasks import classify, embed, generate
from server.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (embed.TASK, classify.TASK, generate.TASK)}


def check_name(model: str, name: str) -> None:
    """`auto` is what the checkpoint is made for. Raises ConfigError."""
    if name not in ("auto", *TASKS):
        raise ConfigError(f"model {model}: task {name!r} is not known; tasks are auto, {', '.join(TASKS)}")
