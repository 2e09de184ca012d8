"""Fast forms of single operations, each beside its plain twin (imported as `sdft.kernels`)."""
