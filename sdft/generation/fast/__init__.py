"""Fast forms of the engine's parts. The first line of each module states its share of a run.

    fused.py, prepacked.py     the model's layers in fewer or faster operations, for a GPU and for a CPU
    drafts.py                  several tokens in one step
    cuda.py, cuda_graphs.py    prompts in one call of a kernel, and captured steps, on a GPU

They may import the cache, the batch and the model; tests compare each with the plain form.
"""
