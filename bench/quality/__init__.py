"""What was tried for the quality of retrieval, beside the defaults and over the same vectors."""
