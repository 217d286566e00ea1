"""A recursive model from a plain one."""
