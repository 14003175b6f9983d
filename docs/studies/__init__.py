"""Measurements that the documentation quotes; each is a module that anyone can run again."""
