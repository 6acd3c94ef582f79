"""Reads a workload file and makes the request bodies it describes, the same ones for the same seed.

Knows lengths and texts; when the requests are sent is left to the drivers.
"""

import difflib
import json
import math
import random
from abc import abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from loadtest.words import WORDS

FOLDER = Path(__file__).parent / "workloads"
NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP]

Unit = Literal["tokens", "words"]


class WorkloadError(Exception):
    """A workload file that cannot be used; the message is for the user."""


class Strict(BaseModel):
    """A frozen section of a workload file; a key it does not have is an error that names the nearest one it has."""

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def check_keys(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key not in cls.model_fields:
                near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0)
                raise ValueError(f"unknown key {key!r}, did you mean {near[0]!r}?")
        return data


class Lengths(Strict):
    """A distribution of lengths."""

    unit: Unit = "tokens"

    @abstractmethod
    def draw(self, count: int, rng: random.Random) -> list[int]:
        """Lengths in our unit."""

    def sample(self, num_texts: int, rng: random.Random) -> list[int]:
        """The words of texts of such lengths."""
        return [count_words(length, self.unit) for length in self.draw(num_texts, rng)]


class Constant(Lengths):
    """Every text has the same length."""

    kind: Literal["constant"]
    length: PositiveInt

    def draw(self, count: int, rng: random.Random) -> list[int]:
        return [self.length] * count


class Range(Lengths):
    """Lengths between two bounds, both included."""

    min: PositiveInt
    max: PositiveInt

    @model_validator(mode="after")
    def check_order(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class Uniform(Range):
    """Every length of the range is equally likely."""

    kind: Literal["uniform"]

    def draw(self, count: int, rng: random.Random) -> list[int]:
        return [rng.randint(self.min, self.max) for _ in range(count)]


class LogNormal(Range):
    """Many short texts and few long ones; what falls outside the range is moved to its nearer end."""

    kind: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(gt=0)

    def draw(self, count: int, rng: random.Random) -> list[int]:
        drawn = [round(rng.lognormvariate(math.log(self.median), self.sigma)) for _ in range(count)]
        return [min(max(length, self.min), self.max) for length in drawn]


class Part(Strict):
    """One component of a mix and its share of the texts."""

    share: float = Field(gt=0, le=1)
    lengths: Annotated[Constant | Uniform | LogNormal, Field(discriminator="kind")]


class Mix(Strict):
    """Texts of several distributions, shuffled. The counts are exact: a p99 must not hang on the draw of a 1 % tail."""

    kind: Literal["mix"]
    parts: list[Part] = Field(min_length=1)

    @model_validator(mode="after")
    def check_shares(self) -> Self:
        total = sum(part.share for part in self.parts)
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"the shares of the parts sum to {total:g}, not to 1")
        return self

    def sample(self, num_texts: int, rng: random.Random) -> list[int]:
        drawn: list[int] = []
        for part in self.parts[1:]:
            drawn += part.lengths.sample(round(part.share * num_texts), rng)
        drawn += self.parts[0].lengths.sample(max(0, num_texts - len(drawn)), rng)
        rng.shuffle(drawn)
        return drawn[:num_texts]


class Generation(Strict):
    """What is asked of a model that generates; the texts are its prompts."""

    route: Literal["/v1/chat/completions", "/v1/completions"]
    output_tokens: Annotated[Constant | Uniform | LogNormal, Field(discriminator="kind")]
    temperature: float = Field(ge=0)
    max_prompt_chars: PositiveInt  # of a corpus; longer prompts are left out

    @model_validator(mode="after")
    def check_unit(self) -> Self:
        if self.output_tokens.unit != "tokens":
            raise ValueError("output_tokens are tokens; leave `unit` out")
        return self


class Workload(Strict):
    """What a file in `workloads/` says: which texts, how many in a request, and what for: embeddings, or generation."""

    lengths: Annotated[Constant | Uniform | LogNormal | Mix, Field(discriminator="kind")] | None = None
    corpus: Path | None = None  # a file of texts; a relative path is relative to the workload file
    generation: Generation | None = None
    texts_per_request: PositiveInt = 1
    num_requests: PositiveInt = 1024  # different bodies, sent in turn: enough that a cache cannot hide the model
    seed: int = 0

    @model_validator(mode="after")
    def check_source(self) -> Self:
        if (self.lengths is None) == (self.corpus is None):
            raise ValueError("give either `lengths` (generated texts) or `corpus` (a file of texts), not both")
        return self

    @model_validator(mode="after")
    def check_prompts(self) -> Self:
        if self.generation is not None and self.texts_per_request != 1:
            raise ValueError("with `generation` a request has one text, its prompt; leave `texts_per_request` out")
        return self


def count_words(length: int, unit: Unit) -> int:
    """The words of a text of this length: the special tokens are the tokenizer's to add."""
    return length if unit == "words" else max(1, length - NUM_SPECIAL_TOKENS)


def find_workload(name: str) -> Path:
    """The file of a workload given by its path or by its name in `workloads/`."""
    path = FOLDER / f"{name}.yaml"
    if path.is_file():
        return path
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
    raise WorkloadError(f"no workload {name!r}: give the path of a YAML file or one of {known}")


def load_workload(path: Path, corpus: Path | None = None) -> Workload:
    """Reads and checks a workload file; the path of its corpus comes back absolute. `corpus`: instead of its texts."""
    try:
        workload = Workload.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise WorkloadError(f"{path}: not YAML: {error}") from error
    except ValidationError as error:
        raise WorkloadError("\n".join(f"{path}: {line}" for line in describe_errors(error))) from error
    if corpus is not None:
        return workload.model_copy(update={"corpus": corpus.resolve(), "lengths": None})
    if workload.corpus is None:
        return workload
    return workload.model_copy(update={"corpus": (path.parent / workload.corpus).resolve()})


def describe_errors(error: ValidationError) -> list[str]:
    """One line per mistake: where it is, and what it is."""
    found = [(".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")) for item in error.errors()]
    return [f"{where}: {message}" if where else message for where, message in found]


def build_texts(workload: Workload) -> list[list[str]]:
    """The texts of each request."""
    rng = random.Random(workload.seed)
    num_texts = workload.num_requests * workload.texts_per_request
    if workload.corpus is not None:
        longest = workload.generation.max_prompt_chars if workload.generation else None
        texts = pick_texts(read_corpus(workload.corpus, longest), num_texts, rng)
    elif workload.lengths is not None:
        texts = [" ".join(rng.choices(WORDS, k=num_words)) for num_words in workload.lengths.sample(num_texts, rng)]
    else:
        raise AssertionError("a workload without a source passed its own check. This is a bug.")
    step = workload.texts_per_request
    return [texts[first : first + step] for first in range(0, num_texts, step)]


def read_corpus(path: Path, max_chars: int | None = None) -> list[str]:
    """The field `text` of every line of a .jsonl file, the lines themselves of any other; without those too long."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        texts = [json.loads(line)["text"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorkloadError(f"{path}: not a file of texts, or not of JSON with a field `text`: {error!r}") from error
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise WorkloadError(f"{path}: it must hold at least one text, and none that is empty")
    kept = [text for text in texts if max_chars is None or len(text) <= max_chars]
    if not kept:
        raise WorkloadError(f"{path}: every text is longer than max_prompt_chars, {max_chars}")
    return kept


def pick_texts(texts: list[str], num_texts: int, rng: random.Random) -> list[str]:
    """A shuffled run through the corpus, begun again where it is too short."""
    shuffled = rng.sample(texts, len(texts))
    return [shuffled[index % len(shuffled)] for index in range(num_texts)]


def build_bodies(workload: Workload, model: str) -> list[bytes]:
    """JSON bodies for the workload's route: /v1/embeddings if it does not generate."""
    if workload.generation is not None:
        return build_generation_bodies(workload, workload.generation, model)
    # One text goes as a string, as most clients send it.
    bodies = [
        {"model": model, "input": texts[0] if len(texts) == 1 else texts, "encoding_format": "base64"}
        for texts in build_texts(workload)
    ]
    return [json.dumps(body).encode() for body in bodies]


def build_generation_bodies(workload: Workload, generation: Generation, model: str) -> list[bytes]:
    """Streams whose lengths are those drawn. The ids say how many tokens a chunk brings: it may be none or several."""
    lengths = generation.output_tokens.draw(workload.num_requests, random.Random(f"output {workload.seed}"))
    options = {
        "temperature": generation.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }
    bodies = []
    for (prompt,), length in zip(build_texts(workload), lengths, strict=True):
        is_chat = generation.route == "/v1/chat/completions"
        asked = {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
        bodies.append({"model": model, **asked, "max_tokens": length, **options})
    return [json.dumps(body).encode() for body in bodies]


def mean_output_tokens(workload: Workload) -> float:
    """Of an answer; 0 where none is generated."""
    if workload.generation is None:
        return 0.0
    lengths = workload.generation.output_tokens.draw(1000, random.Random(0))
    return sum(lengths) / len(lengths)
