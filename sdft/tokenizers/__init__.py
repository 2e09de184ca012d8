"""Tokenizers: a byte-level BPE of our own, sentencepiece, and their loading from model folders and GGUF metadata.

It imports errors, files and progress alone, and knows nothing of records and models.
Start reading with tokenizer.py, the interface; bpe.py has the algorithm, loading.py chooses the tokenizer of a folder.
"""
