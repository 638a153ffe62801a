"""Where records lie: memory, a folder, a Qdrant server."""
