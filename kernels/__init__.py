"""Autograd functions, each next to its plain twin: `rope_plain` shows the mathematics, `rope` computes the same faster.

The folder is `kernels/` at the top of the repository; it is imported as `sdft.kernels`. It imports nothing of sdft:
no models, no files. Every fast form has a test against its plain twin, gradients included (tests/test_kernels.py).
Start reading with swiglu.py, the shortest; lora_linear.py is the one that LoRA trains through.
"""
