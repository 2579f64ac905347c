"""The Groundwire server: an OpenAI-compatible API over a vLLM engine, grounded by `retrieval`."""
