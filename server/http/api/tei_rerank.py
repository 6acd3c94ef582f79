"""text-embeddings-inference's reranker and similarity routes, as its clients speak them."""

from collections.abc import Sequence
from typing import Annotated, NotRequired

from pydantic import BaseModel, ConfigDict, Field, StrictBool
from typing_extensions import TypedDict

from server.http.api.fields import Label, ModelName, Texts, TruncationFields
from server.http.api.tei import ErrorResponse, offer_truncation, render_error
from server.http.body import parse_body
from server.http.call import Call, Reply, reply_json
from server.http.ranking import Question, SideTexts, pick_ranker, score
from server.http.route import Route
from server.http.state import ServedModel, ServerState
from server.tasks import embed, rerank
from server.text.prompts import choose_prompt


class RerankRequest(TruncationFields):
    """Body of `POST /rerank`."""

    query: str = Field(examples=["What is the capital of France?"])
    texts: Texts = Field(examples=[["Paris is.", "Lyon is not."]])
    raw_scores: StrictBool = Field(False, description="Logits instead of numbers between 0 and 1.")
    return_text: StrictBool = False
    model: ModelName | None = Field(None, description="Needed only where several models rank.")


class Sentences(BaseModel):
    """`inputs` of a SimilarityRequest."""

    source_sentence: str
    sentences: Texts


class SimilarityParameters(TruncationFields):
    """`parameters` of a SimilarityRequest."""

    prompt_name: Label | None = Field(None, description="One of the model's own prompts, in place of the default.")


class SimilarityRequest(BaseModel):
    """Body of `POST /similarity`."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    inputs: Annotated[
        Sentences, Field(description="an object of source_sentence, a text, and sentences, a list of texts")
    ]
    parameters: SimilarityParameters | None = Field(
        None, description="an object of truncate, truncation_direction and prompt_name"
    )
    model: ModelName | None = Field(None, description="Needed only where several models embed.")


class Rank(TypedDict):
    """`text` where return_text is true."""

    index: int
    score: float
    text: NotRequired[str]


async def rerank_texts(call: Call, state: ServerState) -> Reply:
    """Best first."""
    asked = parse_body(RerankRequest, call.take_body())
    return reply_json(await rank_texts(call, state, asked, [asked.query]))


async def rank_texts(call: Call, state: ServerState, asked: RerankRequest, queries: Sequence[str]) -> list[Rank]:
    """Best first. `queries`: one for all texts, or one for each."""
    model = pick_ranker(state, asked.model)
    question = Question(
        SideTexts(queries, "query"),
        SideTexts(asked.texts, "texts"),
        None if asked.truncate is None else asked.choose_truncation("error"),
        "raw" if asked.raw_scores else "sigmoid",
    )
    scores = await score_or_advise(call, model, question)
    values = scores.tolist()
    ranks: list[Rank] = [{"index": index, "score": values[index]} for index in rerank.rank_scores(scores)]
    if asked.return_text:
        ranks = [{**rank, "text": asked.texts[rank["index"]]} for rank in ranks]
    return ranks


async def compare_sentences(call: Call, state: ServerState) -> Reply:
    """Cosines, in the order of the sentences. Both sides get the same prompt: neither is a query."""
    asked = parse_body(SimilarityRequest, call.take_body())
    model = state.pick_model(asked.model, embed.TASK)
    parameters = asked.parameters or SimilarityParameters()
    prompt = choose_prompt(model.info, name=parameters.prompt_name)
    question = Question(
        SideTexts([asked.inputs.source_sentence], "source_sentence"),
        SideTexts(asked.inputs.sentences, "sentences"),
        parameters.choose_truncation(model.config.limits.truncation),
        prompts=(prompt, prompt),
    )
    return reply_json((await score_or_advise(call, model, question)).tolist())


async def score_or_advise(call: Call, model: ServedModel, question: Question) -> rerank.Scores:
    """float32 `[num_documents]`."""
    call.model = model.name
    with offer_truncation():
        return await score(call, model, question)


SIMILARITY = Route(
    "POST",
    "/similarity",
    compare_sentences,
    render_error,
    "Tell how alike sentences are to another one",
    "text-embeddings-inference",
    schema=SimilarityRequest.model_json_schema(),
    operation_id="similarity",
    schema_name="SimilarityRequest",
    reply=list[float],
    error_reply=ErrorResponse,
    deadline="default",
)
ROUTES = (SIMILARITY,)
"""`/rerank` is another protocol's as well: `rerank_either`."""
