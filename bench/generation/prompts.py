"""Prompts for a chat model: some whose answers repeat them, and ordinary ones."""

from tokenizers import Tokenizer

WORD_LIST = "apple, river, candle, window, garden, pencil, mountain, bottle, forest, mirror, blanket, hammer"
LETTER = (
    "Dear Anna, thank you for your letter of last week. We arrived in Lisbon on Tuesday and have a room with a view of "
    "the harbour. The weather is warm, the food is good, and the children swim every day. We will be back on Sunday."
)
CODE = (
    "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n    return result\n\n\n"
    "def mean(prices):\n    return total(prices) / len(prices)\n"
)

REPETITIVE = (
    f"Repeat this list, word for word: {WORD_LIST}",
    f"Copy this letter, and change nothing: {LETTER}",
    f"Repeat this Python code as it is:\n{CODE}",
    f"Write this list three times: {WORD_LIST}",
)
ORDINARY = (
    "What is gravity?",
    "Write a short story about a dog that finds a key.",
    "How do I make pancakes for four people?",
    "Why do leaves change colour in autumn?",
)


END = "<|im_end|>"


def encode_chat(tokenizer: Tokenizer, text: str) -> list[int]:
    """As the template of SmolLM2-instruct puts it, without a system prompt."""
    chat = f"<|im_start|>user\n{text}{END}\n<|im_start|>assistant\n"
    return list(tokenizer.encode(chat, add_special_tokens=False).ids)


def find_end(tokenizer: Tokenizer) -> int:
    """The token that an answer ends with."""
    (end,) = tokenizer.encode(END, add_special_tokens=False).ids
    return int(end)
