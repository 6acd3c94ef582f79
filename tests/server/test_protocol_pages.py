"""The curl lines of README.md and docs/protocols are requests that work."""

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from conftest import CLASSIFIER, EMBEDDER, RANKER, SPARSE, UNK, build_state
from fake_generator import GenerationServer
from fake_hearer import SOUND, Hearer, build_hearer
from prometheus_client import CollectorRegistry
from test_multi_vector_routes import COLBERT

from models.info import ModelInfo
from server.config import HttpConfig, LimitsConfig, ServerConfig
from server.http.app import App
from server.http.state import ServerState
from server.metrics import Metrics
from server.text.tokenizer import Tokenizer

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
WIDE = replace(EMBEDDER, output_dim=384)
LABELS = {0: "O", 1: "PER"}
ENTITIES = replace(
    EMBEDDER, architecture="BertForTokenClassification", task="token_classify", output_dim=2, id2label=LABELS
)
FILLER = replace(SPARSE, task="fill_mask", mask_token_id=UNK, mask_token="[UNK]")
"""The tokenizer knows no [MASK]."""
ANSWERER = replace(EMBEDDER, architecture="BertForQuestionAnswering", task="question_answering", output_dim=2)
SERVED: Mapping[str, Mapping[str, ModelInfo]] = {
    "README": {"all-MiniLM-L6-v2": WIDE},
    "classify": {"classifier": CLASSIFIER},
    "cohere": {"all-MiniLM-L6-v2": WIDE},
    "hugging-face": {"ner": ENTITIES, "bert": FILLER, "squad": ANSWERER},
    "multi-vector": {"colbert": COLBERT},
    "open-inference": {"all-MiniLM-L6-v2": WIDE},
    "openai-embeddings": {"all-MiniLM-L6-v2": WIDE},
    "pooling": {"colbert": COLBERT},
    "rerank": {"ranker": RANKER},
    "sparse": {"splade": SPARSE},
    "text-embeddings-inference": {"all-MiniLM-L6-v2": WIDE},
}
OF_SPEECH = "transcribe"
"""By page: what it is about."""
CURL = re.compile(r"curl (?:-s )?(?:http://)?(?:localhost|127\.0\.0\.1):8000(/\S+)[^']*'[^']*'[\s\\]+-d '([^']*)'")

FORM_CURL = re.compile(r"curl -s localhost:8000(/\S+)((?: -F \S+)+)")


def find_pages() -> list[Path]:
    pages = (ROOT / "docs" / "protocols").glob("*.md")
    return [ROOT / "README.md", *sorted(page for page in pages if page.stem != OF_SPEECH)]


@pytest.mark.parametrize("page", find_pages(), ids=lambda page: page.stem)
async def test_curl_lines_work(page: Path, tokenizer: Tokenizer, generator: GenerationServer) -> None:
    if page.stem in SERVED:
        state = build_state(tokenizer, LimitsConfig(), HttpConfig(), SERVED[page.stem])
    else:
        state = replace(generator.state, models={"translator": generator.state.models["translator"]})
    lines = CURL.findall(page.read_text(encoding="utf-8"))
    assert lines
    async with httpx.AsyncClient(transport=httpx.ASGITransport(App(state)), base_url="http://padless") as client:
        for path, body in lines:
            response = await client.post(path, content=body, headers={"content-type": "application/json"})
            assert response.status_code == 200, f"{path} {body}: {response.text}"
            assert response.json()


async def test_curl_lines_of_forms_work(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "protocols" / f"{OF_SPEECH}.md").read_text(encoding="utf-8")
    model = replace(build_hearer(pool, tmp_path, Hearer()), name="whisper-1")
    state = ServerState(ServerConfig(models=(model.config,)), {model.name: model}, Metrics(CollectorRegistry()))
    lines = FORM_CURL.findall(page)
    assert lines
    async with httpx.AsyncClient(transport=httpx.ASGITransport(App(state)), base_url="http://padless") as client:
        for path, fields in lines:
            form = dict(field.split("=") for field in fields.split(" -F ")[1:])
            assert form.pop("file") == "@speech.wav"
            response = await client.post(path, data=form, files={"file": ("speech.wav", SOUND)})
            assert response.status_code == 200 and response.json()["text"]
