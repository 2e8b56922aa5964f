"""What leaves the house: the exported SavedModel, its signatures, and scoring with it."""
