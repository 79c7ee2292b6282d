"""Agent programs: what `llmos run` starts. Each is a program to read, and one to use."""
