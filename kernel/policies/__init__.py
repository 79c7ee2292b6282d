"""The policies that the kernel brings along."""
