"""From a line of a data file to token ids with their loss mask. No tensors here.

May import: sdft.tokenizers. Start at records.py, then templates.py and chat.py: a record, its messages, its tokens and
which of them are targets. show.py prints an example token by token.
"""
