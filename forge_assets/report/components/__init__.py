"""Components shared by the report: small functions that return escaped HTML or inline SVG."""
