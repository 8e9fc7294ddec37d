"""Which prompts surely aren't too long for a text encoder, as far as that can be said without its tokenizer.

So that whoever has none need ask the encoder about long ones alone. Knows bytes; nothing of tokenizers or encoders.
"""

import unicodedata

CHUNK_TOKENS = 75  # between a chunk's start and its end
COMMA_REACH = 20  # tokens that may move to the next chunk, to stay with those they follow on

# what a full chunk keeps at least
_LEAST_TOKENS = CHUNK_TOKENS - COMMA_REACH + 1


def surely_fits(prompt: str, max_chunks: int) -> bool:
    """Whether none of the prompt's texts can take more chunks, where no textual inversion has part in it.

    CLIP's tokens are of at least one byte each, of the text in lower case and NFC.
    """
    tokens = len(unicodedata.normalize("NFC", prompt).lower().encode(errors="replace"))
    return -(-tokens // _LEAST_TOKENS) + prompt.count("BREAK") <= max_chunks
