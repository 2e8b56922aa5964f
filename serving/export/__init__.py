"""The exported model: signatures, their checks, warm-up requests, and the SavedModel that holds them."""
