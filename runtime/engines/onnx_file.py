"""An ONNX file as it is: batches are padded on their way in, and what comes out loses its padding again."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from runtime.backends.onnx.file import OnnxFile
from runtime.batch import Arrays, ArraySpec, Batch, FloatArray, IntArray, Output
from runtime.config import UnusableConfig
from runtime.engine import EngineError, EngineInfo, MemoryStats, Progress
from runtime.engines.transfer import find_shape, make_batch, run_warmup, take_arrays, to_output
from runtime.memory.lifetimes import BatchShape


class Places(NamedTuple):
    """Where the tokens of a packed batch are among `num_seqs` rows of `seqlen` tokens.

    `of_tokens`: int64 `[num_tokens]`.
    """

    num_seqs: int
    seqlen: int
    of_tokens: IntArray

    def pad(self, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """`[num_tokens]` to `[num_seqs, seqlen]`, with zeros behind each sequence."""
        padded = np.zeros(self.num_seqs * self.seqlen, dtype)
        padded[self.of_tokens] = values
        return padded.reshape(self.num_seqs, self.seqlen)


class FileHead:
    """What is made of a file's outputs.

    `sources`: their names; several are the columns of one. `rows`: what the module is given a row of: of tokens those
    that are no padding, for `num_logits` only those that are guessed. `module`: gives one array, as `spec` has it, of
    these rows, `hidden_states`, and of whatever else of the batch its forward names.
    """

    def __init__(
        self,
        sources: Sequence[str],
        rows: Literal["num_seqs", "num_tokens", "num_logits"],
        module: nn.Module,
        spec: ArraySpec,
    ) -> None:
        self.sources = tuple(sources)
        self.rows = rows
        self.module = module
        self.spec = spec
        self.names = [name for name in inspect.signature(module.forward).parameters if name != "hidden_states"]

    @property
    def read(self) -> set[str]:
        """Of a batch."""
        return {*self.names, "logit_rows"} if self.rows == "num_logits" else set(self.names)

    def finish(self, found: Arrays, places: Places, arrays: Arrays) -> Tensor:
        """`found`: the file's outputs; `arrays`: of the batch. Raises ValueError, see `take_rows`."""
        rows = torch.from_numpy(self.take_rows([found[name] for name in self.sources], places, arrays))
        inputs = {name: torch.from_numpy(arrays[name]) for name in self.names}
        value: Tensor
        (value,) = self.module(hidden_states=rows, **inputs).values()
        return value

    def take_rows(self, outputs: Sequence[npt.NDArray[Any]], places: Places, arrays: Arrays) -> FloatArray:
        """fp32 `[num_rows, width]`. Raises ValueError where the file gives another number of rows than it was fed."""
        padded = outputs[0] if len(outputs) == 1 else np.stack(outputs, axis=-1)
        expected = (places.num_seqs,) if self.rows == "num_seqs" else (places.num_seqs, places.seqlen)
        if padded.shape[:-1] != expected:
            raise ValueError(f"{', '.join(self.sources)} is {list(padded.shape)}, and not of {list(expected)} rows")
        if self.rows == "num_seqs":
            return padded.astype(np.float32, copy=False)
        wanted = places.of_tokens if self.rows == "num_tokens" else places.of_tokens[arrays["logit_rows"]]
        return padded.reshape(-1, padded.shape[-1])[wanted].astype(np.float32, copy=False)


class OnnxFileEngine:
    """One caller at a time. `has_unseen_tokens`: those behind the first `num_keys` of a sequence are not attended
    to."""

    def __init__(
        self,
        file: OnnxFile,
        heads: Sequence[FileHead],
        largest: BatchShape,
        info: EngineInfo,
        *,
        has_unseen_tokens: bool = False,
    ) -> None:
        self.file = file
        self.heads = heads
        self.largest = largest
        self.info = info
        self.has_unseen_tokens = has_unseen_tokens
        self.read = {*file.inputs, "num_keys", *(name for head in heads for name in head.read)} - {"attention_mask"}

    def warmup(self, progress: Progress) -> None:
        run_warmup(self.run, self.largest, progress)

    def prove(self) -> None:
        """Run two sequences of different lengths: a file may load that was traced for one. Raises UnusableConfig."""
        lengths = [min(length, self.largest.max_seqlen) for length in (2, 3)]
        try:
            self.run(make_batch(lengths[: self.largest.num_seqs]))
        except EngineError as error:
            raise UnusableConfig(
                f"engine.onnxruntime.file: {self.file.path} cannot compute two sequences of {lengths} tokens: {error}. "
                "Export it with the dimensions of batch and sequence dynamic"
            ) from None

    def run(self, batch: Batch) -> Output:
        """Asks the file for no more of its outputs than are wanted."""
        find_shape(batch, self.largest)
        arrays = take_arrays(batch, self.read)
        heads = [head for head in self.heads if batch.outputs is None or head.spec.name in batch.outputs]
        sources = list(dict.fromkeys(name for head in heads for name in head.sources))
        places = find_places(batch)
        try:
            found = self.file.session.compute(self.pad(arrays, places), sources)
            with torch.inference_mode():
                outputs = {head.spec.name: head.finish(found, places, arrays) for head in heads}
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"a step of {batch.num_seqs} sequences failed: {error}") from error
        return to_output(outputs)

    def pad(self, arrays: Arrays, places: Places) -> Arrays:
        """The file's inputs, by its own names."""
        seqs, positions = np.divmod(places.of_tokens, places.seqlen)
        is_seen = positions < arrays["num_keys"][seqs] if self.has_unseen_tokens else np.ones_like(seqs, np.bool_)
        values = arrays | {"attention_mask": is_seen}
        return {each.name: places.pad(values[ours], each.dtype) for ours, each in self.file.inputs.items()}

    def memory(self) -> MemoryStats:
        return MemoryStats(weight_bytes=self.info.weight_bytes)

    def trim(self) -> None:
        """Its memory is ONNX Runtime's."""

    def close(self) -> None:
        """It ends with the session."""


def find_places(batch: Batch) -> Places:
    seqlens, starts = batch.seqlens, batch.cu_seqlens[:-1]
    seqlen = int(seqlens.max())
    shifts = np.arange(batch.num_seqs, dtype=np.int64) * seqlen - starts
    return Places(batch.num_seqs, seqlen, np.arange(batch.num_tokens) + np.repeat(shifts, seqlens))
