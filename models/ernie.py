"""ERNIE (Sun et al., 2019; 2020): BERT, from 2.0 on with an embedding of the training task, where 0 stands for any."""

from models.bert import (
    EMBEDDING_RENAMES,
    LAYER_RENAMES,
    POOLER,
    POOLER_HEAD_RENAMES,
    POSITION_IDS,
    UNUSED_POSITIONS,
    WORD_HEAD_RENAMES,
    Bert,
)
from models.family import Family, Renames

TASK_RENAMES: Renames = ((r"embeddings\.task_type_embeddings\.weight", r"embeddings.task_type.weight"),)

FAMILY = Family(
    encoder=Bert,
    model_types=("ernie",),
    prefix="ernie.",
    renames=EMBEDDING_RENAMES + TASK_RENAMES + LAYER_RENAMES,
    head_renames=POOLER_HEAD_RENAMES,
    head_activation="tanh",
    word_head_renames=WORD_HEAD_RENAMES,
    ignored=(POSITION_IDS, POOLER, r"cls\.(predictions|seq_relationship)\..*"),
    spare=(UNUSED_POSITIONS,),
    tied_head="cls.predictions.decoder.weight",
)
