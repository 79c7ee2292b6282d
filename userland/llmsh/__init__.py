"""llmsh: the interactive shell, in which a quoted string is a call of the model."""
