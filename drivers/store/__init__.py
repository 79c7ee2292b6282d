"""The store: everything that is on disk and secret, in a process of its own. Torch-free.

`base` and `wire` are the contract with the kernel and import no cryptography, `places` says where
things lie, `keys` is what `llmos key` works with; the rest is the store host's alone.
"""
