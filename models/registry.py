"""HF architecture names to families. Adding a model is its file and its lines here."""

from models import bert
from models.family import Family
from models.info import ModelDirectoryError

CLASSIFIER_SUFFIX = "ForSequenceClassification"

FAMILIES: dict[str, Family] = {
    "Bert": bert.FAMILY,
}
"""By the architecture's name without its suffix (Model, ForSequenceClassification, ForMaskedLM, ForPreTraining)."""

SUFFIXES = ("Model", CLASSIFIER_SUFFIX, "ForMaskedLM", "ForPreTraining")


def find_family(architecture: str) -> Family:
    """Raises ModelDirectoryError where the architecture is not served."""
    for suffix in SUFFIXES:
        if architecture.endswith(suffix) and architecture.removesuffix(suffix) in FAMILIES:
            return FAMILIES[architecture.removesuffix(suffix)]
    known = ", ".join(sorted(FAMILIES))
    raise ModelDirectoryError(
        f"config.json: the architecture {architecture!r} is not served. Served are {known}, with the endings "
        f"{', '.join(SUFFIXES)}"
    )
