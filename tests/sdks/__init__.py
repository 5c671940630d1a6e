"""Real SDKs on httpx2, with poolkit's clients."""
