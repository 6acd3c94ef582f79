"""A real encoder-decoder through batcher and engine: the answers of transformers, and those its authors promise."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import transformers
from seq2seq_engines import Answering, Found, answer, build_seq2seq, cut_behind, read_answers, settle
from test_seq2seq_engines import check_same
from tiny_models import Ids, TinyModel
from tokenizers import Tokenizer

from bench.generation.decoders import NotAvailable, find_source
from bench.seq2seq.detransliterator import LINES, SOURCE
from models.info import read_info
from runtime.engines.decoder import DecoderEngine
from server.tasks.text2text import DecodingWish
from server.text.detokenizer import TokenTexts, detokenize

NUM_LINES, NUM_TOKENS = 100, 120
DOCUMENTED = ("musa dunbuya", "ߡߎߛߊ߫ ߘߎ߲ߓߎߦߊ")
"""In the package's own description, with five beams."""
PUT_BACK = {"num_blocks": 40}
"""Too few for the lines that are asked for again."""


@pytest.fixture(scope="module")
def model() -> TinyModel:
    try:
        directory = find_source("detransliterator", SOURCE)
    except NotAvailable as error:
        pytest.skip(str(error))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    return TinyModel(directory, theirs, read_info(directory))


@pytest.fixture(scope="module")
def engine(model: TinyModel) -> DecoderEngine:
    return build_seq2seq(model)


@pytest.fixture(scope="module")
def tokenizer(model: TinyModel) -> Tokenizer:
    return Tokenizer.from_file(str(model.directory / "tokenizer.json"))


@pytest.fixture(scope="module")
def sources(model: TinyModel, tokenizer: Tokenizer) -> list[Ids]:
    """Lines from all over the file."""
    lines = json.loads((model.directory / LINES).read_text(encoding="utf-8"))
    chosen = [lines[place] for place in np.linspace(0, len(lines) - 1, NUM_LINES).astype(int)]
    return [np.array(encoding.ids) for encoding in tokenizer.encode_batch(chosen)]


@torch.inference_mode()
def answer_by_transformers(model: TinyModel, sources: list[Ids], width: int) -> list[list[Found]]:
    """All at once, padded."""
    pad = model.theirs.config.pad_token_id
    rows = [torch.from_numpy(source) for source in sources]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(source) for source in sources])
    found = model.theirs.generate(
        padded,
        attention_mask=(torch.arange(padded.shape[1]) < lengths[:, None]).long(),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=NUM_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=width > 1,
    )
    answers = [cut_behind(row[1:].tolist(), model.info.eos_token_ids) for row in found.sequences]
    scores = found.sequences_scores.tolist() if width > 1 else [None] * len(answers)
    pairs = list(zip(answers, scores, strict=True))
    return [pairs[first : first + width] for first in range(0, len(pairs), width)]


@pytest.mark.parametrize("width", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_real_lines_are_answered_as_by_transformers(
    model: TinyModel, engine: DecoderEngine, sources: list[Ids], width: int
) -> None:
    params = settle(
        model, model.info.eos_token_ids, DecodingWish(max_tokens=NUM_TOKENS, beam_width=width, num_answers=width)
    )
    ask = partial(answer, model, engine, params=params, max_total_tokens=NUM_TOKENS + 1)
    found = ask(sources)
    check_same(found, answer_by_transformers(model, sources, width))
    assert ask(sources[:20], **PUT_BACK) == found[:20]
    assert [ask([source])[0] for source in sources[:5]] == found[:5]


def test_streams_say_what_the_tokenizer_says(
    model: TinyModel, engine: DecoderEngine, tokenizer: Tokenizer, sources: list[Ids]
) -> None:
    """It writes blanks behind words, and has a token that is nothing else."""
    params = settle(model, model.info.eos_token_ids, DecodingWish(max_tokens=30, beam_width=1))
    texts = TokenTexts(tokenizer)
    for ((token_ids, _),) in answer(model, engine, sources[:30], params):
        text = detokenize(texts, token_ids)
        assert text == tokenizer.decode(token_ids) and " " in text


def test_what_its_authors_promise(model: TinyModel, engine: DecoderEngine, tokenizer: Tokenizer) -> None:
    source, expected = DOCUMENTED
    answering = Answering(model, engine)
    params = settle(model, model.info.eos_token_ids, DecodingWish(beam_width=5))
    heard = answering.start(np.array(tokenizer.encode(source).ids), params)
    answering.run.run()
    ((token_ids, _),) = read_answers(heard)
    assert tokenizer.decode(token_ids) == expected
