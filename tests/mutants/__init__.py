"""The bridge broken on purpose, one way at a time: the tests must notice each, by an assertion.

`catalog.py` lists the mutants and the tests that catch them; `python -m tests.mutants` runs them. The tests here
stand for themselves, and are the quickest that see what their mutant does.
"""
