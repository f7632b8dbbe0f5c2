"""Model code: attention, neural memory, blocks, recursion and halting."""
