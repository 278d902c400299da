"""A llama model of 93 000 random weights as a GGUF file, made here so that no hub is asked.

Its greedy answers are nonsense made of syllables, the same on every run and every replica: the
seed fixes the weights, and the rows of the tokens that no answer should have (control and byte
tokens, so also the one that ends an answer) are zero in the output matrix. An answer is always as
long as ``max_tokens`` allows.
"""

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

__all__ = ["write_model"]

WIDTH, FEED_FORWARD, HEADS, CONTEXT = 64, 128, 2, 8192
CONTROL = [b"<unk>", b"<s>", b"</s>"]
SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
WORDS = [*SYLLABLES, *(f"\u2581{s}" for s in SYLLABLES), "\u2581", "\n", ".", ","]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"


def write_model(path: Path, seed: int = 0) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    unused = _vocabulary(writer)
    _shape(writer)
    _weights(writer, unused, np.random.default_rng(seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _vocabulary(writer: gguf.GGUFWriter) -> int:
    """Add it; how many tokens at its start are for input only."""
    single_bytes = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    tokens = [*CONTROL, *single_bytes, *(word.encode() for word in WORDS)]
    kind = gguf.TokenType
    kinds = [kind.UNKNOWN, kind.CONTROL, kind.CONTROL]
    kinds += [kind.BYTE] * len(single_bytes) + [kind.NORMAL] * len(WORDS)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_vocab_size(len(tokens))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    return len(CONTROL) + len(single_bytes)


def _shape(writer: gguf.GGUFWriter) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)


def _weights(writer: gguf.GGUFWriter, unused: int, random: np.random.Generator) -> None:
    def normal(rows: int, columns: int) -> NDArray[np.float32]:
        return random.normal(0, columns**-0.5, (rows, columns)).astype(np.float32)

    tokens = unused + len(WORDS)
    output = 8 * normal(tokens, WIDTH)
    output[:unused] = 0
    ones = np.ones(WIDTH, np.float32)
    writer.add_tensor("token_embd.weight", 8 * normal(tokens, WIDTH))
    writer.add_tensor("output.weight", output)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("blk.0.attn_norm.weight", ones)
    writer.add_tensor("blk.0.ffn_norm.weight", ones)
    # Sharp attention, and more of it than of the last token, so that all of a prompt matters.
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", 2 * normal(WIDTH, WIDTH))
    writer.add_tensor("blk.0.ffn_gate.weight", normal(FEED_FORWARD, WIDTH))
    writer.add_tensor("blk.0.ffn_up.weight", normal(FEED_FORWARD, WIDTH))
    writer.add_tensor("blk.0.ffn_down.weight", normal(WIDTH, FEED_FORWARD))
