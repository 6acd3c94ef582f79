"""What transformers calls cleaning up tokenization spaces: blanks before signs, which old tokenizers leave, go out."""

import re

SIGNS = re.compile(r" (?=[.?!,])")
ALONE = re.compile(r" ' ")
SHORTENED = re.compile(r" (?=n't|'m|'s|'ve|'re)")


def clean_up(text: str) -> str:
    return SHORTENED.sub("", ALONE.sub("'", SIGNS.sub("", text)))
