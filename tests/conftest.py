"""Settings that every test shares: no network, one thread, no progress bars."""

from __future__ import annotations

import os

# Before any import of torch or of a Hugging Face library: each reads these once, at import.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import torch

torch.set_num_threads(1)
