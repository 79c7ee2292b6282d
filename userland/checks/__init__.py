"""What `llmos doctor` looks at: one function for each thing, which yields what it has found.

Nothing here uses a network, starts a kernel or changes anything.
"""
