"""What the model really sees: prompts, tokens, words."""
