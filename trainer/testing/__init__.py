"""What tests of models need: small random batches, and the tests that hold for every model."""
