"""From a line of a data file to token ids with their loss mask. No tensors here.

    records.py → templates.py → chat.py         a record, its messages, its tokens and what of them is learned
    tokenizer.py, tokenizer_files.py, …      text to ids and back
    rouge.py, show.py                        comparing texts, looking at an example
"""
