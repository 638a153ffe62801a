"""What the model actually sees: prompts, tokens, words."""
