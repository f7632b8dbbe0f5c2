"""Training data, from text sources to packed tokens: documents, tokenizer, shards, batches, verifiable tasks."""
