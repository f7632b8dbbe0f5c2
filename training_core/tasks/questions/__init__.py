"""Questions of ten levels, how a model answers them with tools, and how right it is."""
