"""Training a PromptNet on pictures of many people."""
