"""The built-in recursion schemes, each described in one file."""
