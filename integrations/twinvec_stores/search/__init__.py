"""From vectors to ranked results: index, fusion, explanations."""
