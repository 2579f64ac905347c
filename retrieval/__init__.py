"""Retrieval: from a question to packed passages. Knows nothing of HTTP, OpenAI, tenants, Prometheus or vLLM."""
