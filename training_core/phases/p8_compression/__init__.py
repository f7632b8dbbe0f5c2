"""The compressed artifact: entropy coding, the tokenizer's compact form and the one-file container."""
