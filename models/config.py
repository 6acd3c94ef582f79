"""HF's config.json to one frozen description of an encoder. The only reader of HF's keys for architectures."""

from dataclasses import dataclass, field
from pathlib import Path

from models.activations import read_activation, read_gate
from models.adapters_config import AdaptersConfig, read_adapters
from models.convbert_config import ConvBertConfig, read_convbert
from models.deberta_config import DebertaConfig, read_deberta
from models.defaults import JINA_BERT, ROTARY_ENCODERS, Keys
from models.experts_config import ExpertsConfig, read_nomic_experts
from models.head_config import HeadConfig, read_head_config
from models.keys import ModelDirectoryError, check_supported, read_architecture, read_keys, require_number
from models.labels import read_labels
from models.rotary_layers_config import RotaryLayersConfig, read_rotary_layers
from models.seq2seq_config import T5_TYPES, Seq2SeqConfig, read_t5


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """A bidirectional encoder, in our names."""

    architecture: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    activation: str
    max_position_embeddings: int
    type_vocab_size: int
    """0 where the model has no token types."""
    norm_eps: float
    pad_token_id: int
    embedding_size: int
    """Width of the embedding tables; projected to `hidden_size` where it differs."""
    num_groups: int
    """Distinct sets of layer weights; as many as layers unless they are shared (ALBERT)."""
    layers_per_group: int
    task_type_vocab_size: int
    """ERNIE's task embedding; 0 for none."""
    num_labels: int
    positions: str = "absolute"
    """HF's position_embedding_type: absolute (learned rows), alibi, relative_key or relative_key_query."""
    rotary: RotaryLayersConfig | None = None
    """None: positions are not rotary."""
    convbert: ConvBertConfig | None = None
    deberta: DebertaConfig | None = None
    experts: ExpertsConfig | None = None
    adapters: AdaptersConfig | None = None
    seq2seq: Seq2SeqConfig | None = None
    """Of an encoder that is one stack of an encoder-decoder."""
    head: HeadConfig = field(default_factory=HeadConfig)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


def read_config(directory: Path) -> EncoderConfig:
    """Raises ModelDirectoryError where a key is missing or its value is one we do not know."""
    path = directory / "config.json"
    keys = read_keys(directory)
    check_supported(path, keys)
    if keys["model_type"] in T5_TYPES:
        return describe_stack(read_t5(path, keys))

    def number(name: str, *, least: int = 1) -> int:
        return require_number(path, keys, name, least=least)

    hidden_size, num_layers, num_heads = (
        number(name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    if hidden_size % num_heads:
        raise ModelDirectoryError(
            f"{path}: hidden_size {hidden_size} is no multiple of num_attention_heads {num_heads}"
        )
    is_albert, is_deberta = keys["model_type"] == "albert", keys["model_type"] in ("deberta", "deberta-v2")
    is_jina = keys["model_type"] in JINA_BERT
    has_narrow_tables = (
        is_albert or keys["model_type"] in ("convbert", "electra") or (is_deberta and "embedding_size" in keys)
    )
    is_rotary = keys["model_type"] in ROTARY_ENCODERS
    has_task_types = keys["model_type"] == "ernie" and keys["use_task_id"]
    return EncoderConfig(
        architecture=read_architecture(keys),
        model_type=keys["model_type"],
        vocab_size=number("vocab_size"),
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        intermediate_size=number("intermediate_size"),
        activation=(read_gate if is_jina else read_activation)(path, find_activation(keys)),
        max_position_embeddings=number("max_position_embeddings"),
        type_vocab_size=number("type_vocab_size", least=0),
        norm_eps=float(keys["layer_norm_eps"]),
        pad_token_id=number("pad_token_id", least=0),
        embedding_size=number("embedding_size") if has_narrow_tables else hidden_size,
        num_groups=number("num_hidden_groups") if is_albert else num_layers,
        layers_per_group=number("inner_group_num") if is_albert else 1,
        task_type_vocab_size=number("task_type_vocab_size") if has_task_types else 0,
        num_labels=len(read_labels(path, keys)),
        positions="absolute" if is_rotary else keys.get("position_embedding_type", "absolute"),
        rotary=read_rotary_layers(path, keys, num_layers) if is_rotary else None,
        convbert=read_convbert(path, keys) if keys["model_type"] == "convbert" else None,
        deberta=read_deberta(path, keys) if is_deberta else None,
        experts=read_nomic_experts(path, keys, num_layers) if keys["model_type"] == "nomic_bert" else None,
        adapters=read_adapters(directory, keys),
        head=read_head_config(path, keys),
    )


def describe_stack(config: Seq2SeqConfig) -> EncoderConfig:
    """T5's encoder, of which heads read no more than this."""
    stack = config.encoder
    return EncoderConfig(
        architecture=config.architecture,
        model_type=config.model_type,
        vocab_size=stack.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=stack.num_layers,
        num_heads=stack.num_heads,
        intermediate_size=stack.intermediate_size,
        activation=config.activation,
        max_position_embeddings=stack.max_positions,
        type_vocab_size=0,
        norm_eps=config.norm_eps,
        pad_token_id=config.pad_token_id,
        embedding_size=config.hidden_size,
        num_groups=stack.num_layers,
        layers_per_group=1,
        task_type_vocab_size=0,
        num_labels=0,
        positions="distance",
        seq2seq=config,
    )


def find_activation(keys: Keys) -> object:
    """NomicBERT's own code has another key, where gelu says that nothing is gated."""
    is_plain = keys["model_type"] == "nomic_bert" and keys.get("activation_function") == "gelu"
    return "gelu" if is_plain else keys["hidden_act"]
