"""Ternary weights after BitNet b1.58: the quantiser, its trainable modules and the packed file."""
