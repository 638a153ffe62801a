"""Where records are stored: in memory, in a folder, or on a Qdrant server."""
