"""An embedded server with TF Serving's API, for laptops and tests: `python -m serving.server --help`."""
