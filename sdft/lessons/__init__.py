"""The lessons room: the whole method in one file, to be read from top to bottom and run.

Of the package a lesson imports only what reads a model folder, in `sdft.model` and `sdft.tokenizers`. Start here:

    python -m sdft.lessons.sdft_in_one_file"""
