"""What parts of the report share: macros, and small functions that return HTML or inline SVG, all of it escaped."""
