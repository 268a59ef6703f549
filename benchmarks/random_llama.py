"""Write the random 135M Llama of docs/benchmarks.md as a checkpoint: SmolLM2-135M's shape, no download.

    python benchmarks/random_llama.py OUT

Speed does not depend on the values of weights. The tokenizer is a sample model's, as some runtimes need one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TOKENIZER = Path(__file__).parents[1] / "sample_models" / "pydoc-gpt2"


def main(out: Path) -> None:
    """Write config, weights and tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
