"""Programs: everything that reaches the kernel through system calls only."""
