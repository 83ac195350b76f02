"""How a transformer writes and reads memory."""
