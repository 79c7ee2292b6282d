"""The commands of `llmos`, one file each; llmsh runs some of them too, in its own task."""
