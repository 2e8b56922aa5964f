"""The tests: a folder for each package of the project, with its rooms in it.

A file that tests one module has the module's name. All that is no test stands in `tests.testing`, whoever uses it.
"""
