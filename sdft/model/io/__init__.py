"""Models and adapters on disk: Hugging Face folders, GGUF files, PEFT adapters, and fetching by name.

It imports the model, its LoRA and the tokenizers.
Start reading with fetch.py: `load` resolves a name to a path, then reads it with checkpoints.py or gguf.py.
adapters.py reads and writes PEFT's format.
"""
