"""HF architecture names to families. Adding a model is its file, its defaults and its lines here."""

from models import (
    albert,
    bart,
    bert,
    cohere,
    convbert,
    deberta,
    distilbert,
    electra,
    ernie,
    eurobert,
    gemma,
    gpt2,
    gpt_neox,
    granite,
    gte,
    jina_bert,
    jina_v3,
    llama,
    m2m100,
    marian,
    mixtral,
    modernbert,
    mpnet,
    nomic_bert,
    olmo,
    pegasus,
    phi3,
    qwen,
    roberta,
    roberta_xl,
    t5,
    whisper,
)
from models.family import DecoderFamily, Family, Seq2SeqFamily
from models.info import (
    CLASSIFIER_SUFFIX,
    GENERATOR_SUFFIXES,
    QUESTION_ANSWERER_SUFFIX,
    SEQ2SEQ_SUFFIXES,
    TOKEN_CLASSIFIER_SUFFIX,
)
from models.keys import ModelDirectoryError
from models.late_interaction import ARCHITECTURE

FAMILIES: dict[str, Family] = {
    "Albert": albert.FAMILY,
    "Bert": bert.FAMILY,
    "Camembert": roberta.FAMILY,
    "ConvBert": convbert.FAMILY,
    "Deberta": deberta.FIRST_FAMILY,
    "DebertaV2": deberta.FAMILY,
    "DistilBert": distilbert.FAMILY,
    "Electra": electra.FAMILY,
    "Ernie": ernie.FAMILY,
    "EuroBert": eurobert.FAMILY,
    "Gte": gte.FAMILY,
    "JinaBert": jina_bert.FAMILY,
    "JinaEmbeddingsV3": jina_v3.FAMILY,
    "MT5Encoder": t5.ENCODER_FAMILY,
    "MPNet": mpnet.FAMILY,
    "ModernBert": modernbert.FAMILY,
    "New": gte.NEW_FAMILY,
    "NomicBert": nomic_bert.FAMILY,
    "Roberta": roberta.FAMILY,
    "T5Encoder": t5.ENCODER_FAMILY,
    "UMT5Encoder": t5.ENCODER_FAMILY,
    "XLMRoberta": roberta.FAMILY,
    "XLMRobertaXL": roberta_xl.FAMILY,
}
"""By the architecture's name without its suffix: Model, ForSequenceClassification and the others of SUFFIXES."""

ENCODERS_OF = {f"{name}ForConditionalGeneration": f"{name}EncoderModel" for name in ("MT5", "T5", "UMT5")}
"""Of encoder-decoders: what they are to those that only embed."""

DECODERS: dict[str, DecoderFamily] = {
    "Cohere": cohere.FAMILY,
    "Cohere2": cohere.FAMILY,
    "Falcon": gpt_neox.FALCON_FAMILY,
    "GPT2": gpt2.FAMILY,
    "GPTNeoX": gpt_neox.FAMILY,
    "Gemma": gemma.FAMILY,
    "Gemma2": gemma.GEMMA2_FAMILY,
    "Gemma3": gemma.GEMMA3_FAMILY,
    "Gemma3Text": gemma.GEMMA3_FAMILY,
    "Granite": granite.FAMILY,
    "Llama": llama.FAMILY,
    "Mistral": llama.FAMILY,
    "Mixtral": mixtral.FAMILY,
    "Olmo2": olmo.FAMILY,
    "Olmo3": olmo.FAMILY,
    "Phi3": phi3.FAMILY,
    "Qwen2": qwen.FAMILY,
    "Qwen2Moe": mixtral.FAMILY,
    "Qwen3": qwen.FAMILY,
    "Qwen3Moe": mixtral.FAMILY,
    "SmolLM3": llama.FAMILY,
    "StableLm": llama.FAMILY,
}
"""The same of those that can generate, with the endings of DECODER_SUFFIXES."""

SEQ2SEQ: dict[str, Seq2SeqFamily] = {
    "Bart": bart.FAMILY,
    "M2M100": m2m100.FAMILY,
    "MBart": bart.FAMILY,
    "MT5": t5.FAMILY,
    "Marian": marian.FAMILY,
    "Pegasus": pegasus.FAMILY,
    "T5": t5.FAMILY,
    "UMT5": t5.FAMILY,
    "Whisper": whisper.FAMILY,
}
"""The same of encoder-decoders, with the endings of SEQ2SEQ_SUFFIXES."""

DECODER_SUFFIXES = (*GENERATOR_SUFFIXES, "Model", CLASSIFIER_SUFFIX)
SUFFIXES = (
    "Model",
    CLASSIFIER_SUFFIX,
    TOKEN_CLASSIFIER_SUFFIX,
    QUESTION_ANSWERER_SUFFIX,
    "ForMaskedLM",
    "ForPreTraining",
)


def find_family(architecture: str, model_type: str) -> Family:
    """Raises ModelDirectoryError where the architecture is not served, or is not one of that model type."""
    architecture = ENCODERS_OF.get(architecture, architecture)
    family = next(
        (
            FAMILIES[architecture.removesuffix(suffix)]
            for suffix in SUFFIXES
            if architecture.endswith(suffix) and architecture.removesuffix(suffix) in FAMILIES
        ),
        None,
    )
    check_named(architecture)
    if architecture == ARCHITECTURE:
        family = next((each for each in FAMILIES.values() if model_type in each.model_types), None)
    if family is None:
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} is not served. Served are {', '.join(sorted(FAMILIES))}, "
            f"with the endings {', '.join(SUFFIXES)}"
        )
    check_model_type(architecture, model_type, family.model_types)
    return family


def find_decoder(architecture: str, model_type: str) -> DecoderFamily:
    """Raises ModelDirectoryError as `find_family` does."""
    check_named(architecture)
    if not is_decoder(architecture):
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} cannot generate. Those that can are {', '.join(DECODERS)} "
            f"with the endings {', '.join(DECODER_SUFFIXES)}"
        )
    family = DECODERS[name_decoder(architecture)]
    check_model_type(architecture, model_type, family.model_types)
    return family


def find_seq2seq(architecture: str, model_type: str) -> Seq2SeqFamily:
    """Raises ModelDirectoryError as `find_family` does."""
    ending = next((suffix for suffix in SEQ2SEQ_SUFFIXES if architecture.endswith(suffix)), "")
    family = SEQ2SEQ.get(architecture.removesuffix(ending)) if ending else None
    if family is None:
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} is no encoder-decoder that is served. Those that are: "
            f"{', '.join(SEQ2SEQ)}, with the endings {', '.join(SEQ2SEQ_SUFFIXES)}"
        )
    check_model_type(architecture, model_type, family.model_types)
    return family


def is_decoder(architecture: str) -> bool:
    return name_decoder(architecture) in DECODERS


def name_decoder(architecture: str) -> str:
    """Without its ending."""
    ending = next((suffix for suffix in DECODER_SUFFIXES if architecture.endswith(suffix)), "")
    return architecture.removesuffix(ending)


def check_named(architecture: str) -> None:
    if not architecture:
        raise ModelDirectoryError("config.json: the key 'architectures' is missing, e.g. [\"BertModel\"]")


def check_model_type(architecture: str, model_type: str, model_types: tuple[str, ...]) -> None:
    if model_type not in model_types:
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} contradicts model_type {model_type!r}; "
            f"it goes with {', '.join(model_types)}"
        )
