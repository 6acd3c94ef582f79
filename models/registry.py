"""HF architecture names to families. Adding a model is its file, its defaults and its lines here."""

from models import albert, bert, distilbert, electra, ernie, mpnet, roberta
from models.family import Family
from models.info import CLASSIFIER_SUFFIX, ModelDirectoryError

FAMILIES: dict[str, Family] = {
    "Albert": albert.FAMILY,
    "Bert": bert.FAMILY,
    "Camembert": roberta.FAMILY,
    "DistilBert": distilbert.FAMILY,
    "Electra": electra.FAMILY,
    "Ernie": ernie.FAMILY,
    "MPNet": mpnet.FAMILY,
    "Roberta": roberta.FAMILY,
    "XLMRoberta": roberta.FAMILY,
}
"""By the architecture's name without its suffix (Model, ForSequenceClassification, ForMaskedLM, ForPreTraining)."""

SUFFIXES = ("Model", CLASSIFIER_SUFFIX, "ForMaskedLM", "ForPreTraining")


def find_family(architecture: str, model_type: str) -> Family:
    """Raises ModelDirectoryError where the architecture is not served, or is not one of that model type."""
    family = next(
        (
            FAMILIES[architecture.removesuffix(suffix)]
            for suffix in SUFFIXES
            if architecture.endswith(suffix) and architecture.removesuffix(suffix) in FAMILIES
        ),
        None,
    )
    if family is None:
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} is not served. Served are {', '.join(sorted(FAMILIES))}, "
            f"with the endings {', '.join(SUFFIXES)}"
        )
    if model_type not in family.model_types:
        raise ModelDirectoryError(
            f"config.json: the architecture {architecture!r} contradicts model_type {model_type!r}; "
            f"it goes with {', '.join(family.model_types)}"
        )
    return family
